"""The command lines of all commands, and that of a run: `--config FILE.py` and typed overrides.

Commands that take a run call `load_experiments`, or `load_experiment` if they take one; the others
call `parse_options`. Reading a config file is in `config_files.py`, answers to options that do not
exist are in `suggestions.py`.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import itertools
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import tyro

from seva_jax.config.config_files import find_config, only_experiment, read_config, read_configs
from seva_jax.config.experiment import Experiment, check
from seva_jax.config.suggestions import PUBLISHED, Option, answer
from seva_jax.runtime import shutdown
from seva_jax.runtime.paths import expand_home, hide_home
from seva_jax.types import DataError

SMOKE_HELP = (
    " --smoke tries the run first, in about a minute: 8 examples, 2 steps, and a model of the "
    "same kind that is small and random, in WORKDIR-smoke."
)


def program(command: str) -> str:
    """Returns how a command was started, as people type it: seva-jax train, or python -m ....

    Args:
        command: such as "train".
    """
    program_file = sys.argv[0] if sys.argv else ""
    started = Path(program_file)
    if started.stem == "seva-jax":
        return f"seva-jax {command}"
    whole = started.name == "__main__.py" and started.parent.name == "seva_jax"
    return f"python -m seva_jax{' ' if whole else '.'}{command}"


def parse_options(
    kind: Any, command: str, argv: Sequence[str] | None, description: str | None = None
) -> Any:
    """Returns the options of a command that takes no run.

    Args:
        kind: a dataclass, or a union of dataclasses for a command with commands of its own.
        command: its name, such as "report".
        argv: arguments; None takes those of the process.
        description: first paragraph of `--help`; None takes the docstring.

    Raises:
        SystemExit: an unknown option (with a suggestion), or `--help`.
    """
    argv, prog = sys.argv[1:] if argv is None else argv, program(command)
    with plain_errors(prog):
        options, unknown = tyro.cli(
            kind, args=argv, prog=prog, description=description, return_unknown_args=True
        )
    if unknown:
        inner = "" if dataclasses.is_dataclass(kind) else f" {argv[0]}"
        _refuse([answer(*each, options) for each in _pairs(unknown)], prog + inner)
    return options


@contextlib.contextmanager
def plain_errors(prog: str) -> Iterator[None]:
    """Prints what tyro says of a value or a missing argument as one line, without its box."""
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed):
            yield
    except SystemExit as done:
        if done.code == 2:
            _refuse([_unboxed(printed.getvalue())], prog)
        raise
    sys.stderr.write(printed.getvalue())  # warnings


def _unboxed(text: str) -> str:
    r"""Returns the first paragraph of a box that tyro draws around an error.

    >>> _unboxed("╭─ Value error ─╮\n│ Error parsing --n: │\n│ no int │\n│ ── │\n│ Help │\n╰──╯")
    '--n: no int'
    """
    rows = [line.strip().strip("│+| ").strip() for line in text.splitlines()[1:]]
    # Paragraphs stand between lines; where the box is made of ASCII, the title has one, too.
    parts = itertools.groupby(rows, key=lambda row: bool(row) and set(row) <= set("─-╰╯"))
    first = next((list(part) for is_line, part in parts if not is_line), [])
    return " ".join(row for row in first if row).removeprefix("Error parsing ")


def _refuse(problems: Iterable[str], prog: str) -> NoReturn:
    """Ends a command with status 2 because of options that do not exist."""
    text = "\n".join(f"error: {problem}" for problem in problems)
    print(hide_home(f"{text}\n{prog} --help lists all options"), file=sys.stderr)
    sys.exit(2)


def _pairs(arguments: Sequence[str]) -> list[tuple[str, str]]:
    """Returns options with the values that follow them; the option of a stray value is empty."""
    pairs: list[tuple[str, str]] = []
    for argument in arguments:
        if argument.startswith("--"):
            option, _, value = argument.partition("=")
            pairs.append((option, value))
        elif pairs and pairs[-1][0]:
            pairs[-1] = (pairs[-1][0], f"{pairs[-1][1]} {argument}".strip())
        else:
            pairs.append(("", argument))
    return pairs


def load_experiment(
    description: str,
    argv: Sequence[str] | None = None,
    command: str = "train",
    others: Sequence[str] = (),
    default: Experiment | None = None,
) -> tuple[Experiment, argparse.Namespace]:
    """Does the same as `load_experiments`, for commands that take one run.

    Raises:
        DataError: also if there are several runs.
    """
    experiments, flags = load_experiments(description, argv, command, others, default=default)
    if flags.only is not None:
        experiments = [experiments[flags.only]]
    return only_experiment(experiments, flags.config), flags


def load_experiments(
    description: str,
    argv: Sequence[str] | None = None,
    command: str = "train",
    others: Sequence[str] = (),
    *,
    smoke: bool = False,
    default: Experiment | None = None,
) -> tuple[list[Experiment], argparse.Namespace]:
    """Returns all experiments that a command line describes, checked.

    Args:
        description: first paragraph of `--help`.
        argv: arguments; None takes those of the process.
        command: name of the command, such as "evaluate".
        others: further options of the command, which the caller has taken from `argv`, such as
            "model": they may be what a misspelt one means.
        smoke: whether the command has the option --smoke.
        default: what options change if there is no --config; None takes the shipped config tiny.

    Returns:
        The resolved experiments, and the options that are not part of them: `config`,
        `print_config`, `smoke`, and `only`, the index of the one run that is wanted, or None.

    Raises:
        DataError: the config file or the resolved config has problems.
        SystemExit: an unknown option (with a suggestion), or `--help`.
    """
    prog = program(command)
    parser = argparse.ArgumentParser(prog, add_help=False, allow_abbrev=False)
    parser.add_argument("--config", default="" if default else "tiny")
    parser.add_argument("--print-config", action="store_true")
    parser.add_argument("--only", type=int)
    parser.set_defaults(smoke=False)
    if smoke:
        parser.add_argument("--smoke", action="store_true")
    flags, rest = parser.parse_known_args(argv)
    defaults = [default] if default and not flags.config else None
    flags.config = find_config(flags.config)
    now = "none" if defaults else flags.config
    help_text = (
        f"{description}\n\n--config FILE picks a config file (now {now}), or a shipped "
        "config by its name; every option below changes one of its fields. --print-config shows "
        "the resolved config and stops. --only N takes run N, from 0, of a file that defines "
        "several."
        f"{SMOKE_HELP if smoke else ''}\n\n"
        f"{shutdown.HELP}"
    )
    experiments: list[Experiment] = []
    for config in defaults or read_configs(flags.config):
        # Options change fields of values in the config file; they do not choose other classes.
        with plain_errors(prog):
            experiment, unknown = tyro.cli(
                Experiment, default=config, args=rest, config=(tyro.conf.AvoidSubcommands,),
                prog=prog, description=help_text, return_unknown_args=True,
            )  # fmt: skip
        if unknown:
            own = ("config", "print-config", "only", *["smoke"] * smoke, *others)
            published = read_config(find_config(PUBLISHED))
            mine = [Option(name) for name in own]
            _refuse([answer(*each, experiment, mine, published) for each in _pairs(unknown)], prog)
        experiments.append(expand_home(experiment))
    if flags.only is not None and not 0 <= flags.only < len(experiments):
        raise DataError(
            f"--only {flags.only}: {flags.config} defines runs 0 to {len(experiments) - 1}"
        )
    for experiment in experiments:
        check(experiment)
    if len({experiment.workdir for experiment in experiments}) < len(experiments):
        raise DataError(f"{flags.config}: two of its runs have the same workdir")
    return experiments, flags
