"""The command line of a run: `--config FILE.py` and typed overrides of its fields.

Every command calls `load_experiments`, or `load_experiment` if it takes one run. Reading a config
file is in `config_files.py`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import tyro

from seva_jax.config.config_files import config_directory, only_experiment, read_configs
from seva_jax.config.experiment import Experiment, check
from seva_jax.runtime import shutdown
from seva_jax.runtime.paths import expand_home
from seva_jax.runtime.stores import as_path
from seva_jax.types import DataError


def load_experiment(
    description: str, argv: Sequence[str] | None = None, default: Experiment | None = None
) -> tuple[Experiment, argparse.Namespace]:
    """Does the same as `load_experiments`, for commands that take one run.

    Raises:
        DataError: also if there are several runs.
    """
    experiments, flags = load_experiments(description, argv, default)
    if flags.only is not None:
        experiments = [experiments[flags.only]]
    return only_experiment(experiments, flags.config), flags


def load_experiments(
    description: str, argv: Sequence[str] | None = None, default: Experiment | None = None
) -> tuple[list[Experiment], argparse.Namespace]:
    """Returns all experiments that a command line describes, checked.

    Args:
        description: first paragraph of `--help`.
        argv: arguments; None takes those of the process.
        default: what options change if there is no `--config`; None takes configs/tiny.py.

    Returns:
        The resolved experiments, and the options that are not part of them: `config`,
        `print_config`, and `only`, the index of the one run that is wanted, or None.

    Raises:
        DataError: the config file or the resolved config has problems.
        SystemExit: an unknown option (with a suggestion), or `--help`.
    """
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--config", default="" if default else config_directory() / "tiny.py")
    parser.add_argument("--print-config", action="store_true")
    parser.add_argument("--only", type=int)
    flags, rest = parser.parse_known_args(argv)
    defaults = [default] if default and not flags.config else read_configs(as_path(flags.config))
    flags.config = as_path(flags.config)
    help_text = (
        f"{description}\n\n--config FILE picks a config file (now {flags.config}); every option "
        "below changes one of its fields. --print-config shows the resolved config and stops. "
        "--only N takes run N, from 0, of a file that defines several.\n\n"
        f"{shutdown.HELP}"
    )
    # Options change fields of the values in the config file; they do not choose other classes.
    config = (tyro.conf.AvoidSubcommands,)
    experiments = [
        expand_home(
            tyro.cli(Experiment, default=default, args=rest, config=config, description=help_text)
        )
        for default in defaults
    ]
    if flags.only is not None and not 0 <= flags.only < len(experiments):
        raise DataError(
            f"--only {flags.only}: {flags.config} defines runs 0 to {len(experiments) - 1}"
        )
    for experiment in experiments:
        check(experiment)
    if len({experiment.workdir for experiment in experiments}) < len(experiments):
        raise DataError(f"{flags.config}: two of its runs have the same workdir")
    return experiments, flags
