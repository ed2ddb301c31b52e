"""Config files and the command line: `--config FILE.py` plus typed overrides.

`load_experiments` is what every command calls. `to_source` writes a resolved config back as
Python, so that a run can be repeated from its work directory.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import tyro

from seva_jax.config.config_files import config_directory, read_configs, single
from seva_jax.config.experiment import Experiment, check
from seva_jax.runtime import shutdown
from seva_jax.runtime.paths import expand_home
from seva_jax.types import DataError


def load_experiment(
    description: str, argv: Sequence[str] | None = None
) -> tuple[Experiment, argparse.Namespace]:
    """As `load_experiments`, for commands that take one run.

    Raises:
        DataError: also for several runs.
    """
    experiments, flags = load_experiments(description, argv)
    chosen = experiments if flags.only is None else [experiments[flags.only]]
    return single(chosen, flags.config), flags


def load_experiments(
    description: str, argv: Sequence[str] | None = None
) -> tuple[list[Experiment], argparse.Namespace]:
    """All experiments of a command line, checked.

    Args:
        description: first paragraph of `--help`.
        argv: arguments; None takes the process's own.

    Returns:
        The resolved experiments, and the flags that are not part of them: `config`,
        `print_config`, and `only`, the index of the one run that is wanted, or None.

    Raises:
        DataError: the config file or the resolved config is bad.
        SystemExit: an unknown option (with a suggestion), or `--help`.
    """
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--config", type=Path, default=config_directory() / "tiny.py")
    parser.add_argument("--print-config", action="store_true")
    parser.add_argument("--only", type=int)
    flags, rest = parser.parse_known_args(argv)
    experiments = [
        tyro.cli(
            Experiment,
            default=default,
            args=rest,
            config=(tyro.conf.AvoidSubcommands,),  # a field that may be None is what it is
            description=(
                f"{description}\n\n--config FILE picks a config file (now {flags.config}); every "
                "option below changes one of its fields. --print-config shows the resolved config "
                "and stops. --only N takes run N, from 0, of a file that defines several.\n\n"
                f"{shutdown.HELP}"
            ),
        )
        for default in read_configs(flags.config)
    ]
    experiments = list(map(expand_home, experiments))
    if flags.only is not None and not 0 <= flags.only < len(experiments):
        raise DataError(
            f"--only {flags.only}: {flags.config} defines runs 0 to {len(experiments) - 1}"
        )
    for experiment in experiments:
        check(experiment)
    if len({e.workdir for e in experiments}) < len(experiments):
        raise DataError(f"{flags.config}: two of its runs have the same workdir")
    return experiments, flags
