"""Config files and the command line: `--config FILE.py` plus typed overrides.

`load_experiment` is what every command calls. `to_source` writes a resolved config back as
Python, so that a run can be repeated from its work directory.
"""

from __future__ import annotations

import argparse
import dataclasses
import enum
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tyro

from seva_jax.experiment import Experiment, check
from seva_jax.types import DataError


def config_directory() -> Path:
    """Where the shipped configs are: beside the package in a checkout, inside it when installed."""
    package = Path(__file__).parent
    checkout = package.parent / "configs"
    return checkout if checkout.is_dir() else package / "_configs"


def read_config(path: Path) -> Experiment:
    """Runs a config file and returns its experiment.

    Raises:
        DataError: the file is missing, fails, or has no `get_config`; names it.
    """
    if not path.is_file():
        shipped = ", ".join(sorted(p.name for p in config_directory().glob("*.py")))
        raise DataError(f"config file {path} does not exist; shipped configs: {shipped}")
    spec = importlib.util.spec_from_file_location(f"seva_jax_config_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise DataError(f"config file {path} is not Python; its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.parent.resolve()))  # variants import the config they vary
    sys.modules[spec.name] = module  # where dataclasses defined in the file look up their types
    try:
        spec.loader.exec_module(module)
        if not hasattr(module, "get_config"):
            raise DataError("a config file defines get_config(), this one does not")
        experiment = module.get_config()
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    except Exception as error:
        raise DataError(f"{path}: {type(error).__name__}: {error}") from error
    finally:
        sys.path.pop(0)
    if not isinstance(experiment, Experiment):
        kind = type(experiment).__name__
        raise DataError(f"{path}: get_config() returned {kind}, not an Experiment")
    return experiment


def load_experiment(
    description: str, argv: Sequence[str] | None = None
) -> tuple[Experiment, argparse.Namespace]:
    """The experiment of a command line, checked.

    Args:
        description: first paragraph of `--help`.
        argv: arguments; None takes the process's own.

    Returns:
        The resolved experiment, and the flags that are not part of it.

    Raises:
        DataError: the config file or the resolved config is bad.
        SystemExit: an unknown option (with a suggestion), or `--help`.
    """
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--config", type=Path, default=config_directory() / "tiny.py")
    parser.add_argument("--print-config", action="store_true")
    flags, rest = parser.parse_known_args(argv)
    experiment = tyro.cli(
        Experiment,
        default=read_config(flags.config),
        args=rest,
        description=(
            f"{description}\n\n--config FILE picks a config file (now {flags.config}); every "
            "option below changes one of its fields. --print-config shows the resolved config and "
            "stops."
        ),
    )
    check(experiment)
    return experiment, flags


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """A config as dotted field names and plain values, with the class of every polymorphic part.

    >>> flatten(Experiment())["objective.beta"]
    0.1
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        flat: dict[str, Any] = {}
        if prefix:
            flat[prefix] = f"{type(value).__module__}.{type(value).__qualname__}"
        for field in dataclasses.fields(value):
            name = f"{prefix}.{field.name}" if prefix else field.name
            flat |= flatten(getattr(value, field.name), name)
        return flat
    if isinstance(value, tuple) and any(dataclasses.is_dataclass(v) for v in value):
        flat = {prefix: f"{len(value)} items"}
        for index, item in enumerate(value):
            flat |= flatten(item, f"{prefix}.{index}")
        return flat
    if isinstance(value, enum.Enum):
        return {prefix: value.name}
    return {prefix: list(value) if isinstance(value, tuple) else value}


def _source(value: Any, modules: set[str], indent: int) -> str:
    pad = "    " * (indent + 1)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        kind = type(value)
        modules.add(kind.__module__)
        arguments = [
            f"{pad}{f.name}={_source(getattr(value, f.name), modules, indent + 1)},\n"
            for f in dataclasses.fields(value)
            if f.init
        ]
        body = "".join(arguments)
        close = f"\n{body}{'    ' * indent})" if body else ")"
        return f"{kind.__module__}.{kind.__qualname__}({close}"
    if isinstance(value, enum.Enum):
        modules.add(type(value).__module__)
        return f"{type(value).__module__}.{type(value).__qualname__}.{value.name}"
    if isinstance(value, tuple) and value:
        items = "".join(f"{pad}{_source(v, modules, indent + 1)},\n" for v in value)
        return f"(\n{items}{'    ' * indent})"
    return repr(value)


def to_source(experiment: Experiment) -> str:
    """The experiment as a config file that rebuilds it."""
    modules: set[str] = set()
    body = _source(experiment, modules, 1)
    imports = "".join(f"import {m}\n" for m in sorted(modules))
    return (
        '"""Resolved config of a run, written by seva_jax. Usable with --config."""\n\n'
        f"{imports}\n\ndef get_config():\n    return {body}\n"
    )
