"""Config files and the command line: `--config FILE.py` plus typed overrides.

`load_experiments` is what every command calls. `to_source` writes a resolved config back as
Python, so that a run can be repeated from its work directory.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import enum
import importlib.machinery
import importlib.util
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import tyro

from seva_jax import stopping
from seva_jax.evals import Suite
from seva_jax.experiment import Experiment, check
from seva_jax.home import expand_home, hide_home
from seva_jax.types import DataError

_OWN = "seva_jax_config_"  # with the name of a config file, its module


def config_directory() -> Path:
    """Where the shipped configs are: beside the package in a checkout, inside it when installed."""
    package = Path(__file__).parent
    checkout = package.parent / "configs"
    return checkout if checkout.is_dir() else package / "_configs"


def read_config(path: Path) -> Experiment:
    """Runs a config file and returns its experiment.

    Raises:
        DataError: as `read_configs`, or the file defines several experiments.
    """
    return _single(read_configs(path), path)


def _single(experiments: list[Experiment], path: Path) -> Experiment:
    if len(experiments) > 1:
        raise DataError(
            f"{path} defines {len(experiments)} runs; pick one with --only 0 to "
            f"--only {len(experiments) - 1}"
        )
    return experiments[0]


def read_configs(path: Path) -> list[Experiment]:
    """Runs a config file and returns its experiments: that of `get_config`, or of `get_configs`.

    Raises:
        DataError: the file is missing, fails, has neither function, or two of its runs have one
            work directory; names the file.
    """
    if not path.is_file():
        shipped = ", ".join(sorted(p.name for p in config_directory().glob("*.py")))
        raise DataError(f"config file {path} does not exist; shipped configs: {shipped}")

    def get(module: ModuleType) -> list[Any]:
        if hasattr(module, "get_configs"):
            return list(module.get_configs())
        if hasattr(module, "get_config"):
            return [module.get_config()]
        raise DataError(
            "a config file defines get_config(), or get_configs() for several runs; this one "
            "defines neither"
        )

    experiments = _run_file(path, get)
    for experiment in experiments:
        if not isinstance(experiment, Experiment):
            kind = type(experiment).__name__
            raise DataError(f"{path}: get_config() returned {kind}, not an Experiment")
    if not experiments:
        raise DataError(f"{path}: get_configs() yields no run")
    return list(map(expand_home, experiments))


def read_suites(where: str) -> list[Suite]:
    """Runs a suite file and returns what its `get_suites` gives.

    Args:
        where: path of the file, or the dotted name of a module that can be imported.

    Raises:
        DataError: the file is missing, fails or does not give suites; names the file.
    """
    path = Path(where)
    if not path.is_file():
        try:
            spec = importlib.util.find_spec(where)
        except (ImportError, ValueError):
            spec = None
        if spec is None or spec.origin is None:
            raise DataError(
                f"there is no suite file and no module {where}; give a Python file with "
                "get_suites()"
            )
        path = Path(spec.origin)

    def get(module: ModuleType) -> list[Any]:
        if not hasattr(module, "get_suites"):
            raise DataError("a suite file defines get_suites(); this one does not")
        return list(module.get_suites())

    suites = _run_file(path, get)
    for suite in suites:
        if not isinstance(suite, Suite):
            kind = type(suite).__name__
            raise DataError(f"{path}: get_suites() gave {kind}, which is no Suite")
    return suites


def _run_file(path: Path, get: Callable[[ModuleType], list[Any]]) -> list[Any]:
    """Runs a Python file and takes something from it; whatever fails in either names the file."""
    spec = importlib.util.spec_from_file_location(_OWN + path.stem, path)
    if spec is None or spec.loader is None:
        raise DataError(f"config file {path} is not Python; its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses defined in the file look up their types
    try:
        with files_in(path.parent):  # variants import the config they vary
            spec.loader.exec_module(module)
            return get(module)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    except Exception as error:
        raise DataError(f"{path}: {type(error).__name__}: {error}") from error


@contextlib.contextmanager
def files_in(folder: str | Path) -> Iterator[None]:
    """Inside, the Python files of a folder can be imported, before all others of their names."""
    sys.path.insert(0, str(Path(folder).expanduser().resolve()))
    try:
        yield
    finally:
        sys.path.pop(0)


def config_module(path: str | Path) -> ModuleType:
    """The module of a config file, for classes that it defines.

    Raises:
        DataError: the file is missing or fails.
    """
    path = Path(path).expanduser()
    found = sys.modules.get(_OWN + path.stem)
    if found is not None and found.__file__ == str(path):
        return found
    if not path.is_file():
        raise DataError(f"{path} is not there, and it defines classes of this run; put it back")
    return _run_file(path, lambda module: [module])[0]


def load_experiment(
    description: str, argv: Sequence[str] | None = None
) -> tuple[Experiment, argparse.Namespace]:
    """As `load_experiments`, for commands that take one run.

    Raises:
        DataError: also for several runs.
    """
    experiments, flags = load_experiments(description, argv)
    chosen = experiments if flags.only is None else [experiments[flags.only]]
    return _single(chosen, flags.config), flags


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
                f"{stopping.HELP}"
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


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """A config as dotted field names and plain values, with the class of every polymorphic part.

    Paths in the home directory begin with `~`.

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
    if isinstance(value, FunctionType):
        return {prefix: f"{value.__module__}.{value.__qualname__}"}
    if isinstance(value, tuple):
        return {prefix: [hide_home(v) if isinstance(v, str) else v for v in value]}
    return {prefix: hide_home(value) if isinstance(value, str) else value}


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
    if isinstance(value, FunctionType):
        modules.add(value.__module__)
        return f"{value.__module__}.{value.__qualname__}"
    if isinstance(value, enum.Enum):
        modules.add(type(value).__module__)
        return f"{type(value).__module__}.{type(value).__qualname__}.{value.name}"
    if isinstance(value, tuple) and value:
        items = "".join(f"{pad}{_source(v, modules, indent + 1)},\n" for v in value)
        return f"(\n{items}{'    ' * indent})"
    return repr(hide_home(value) if isinstance(value, str) else value)


def to_source(experiment: Experiment) -> str:
    """The experiment as a config file that rebuilds it; paths at home begin with `~`."""
    modules: set[str] = set()
    body = _source(experiment, modules, 1)
    imports = "".join(map(_import, sorted(modules)))
    return (
        '"""Resolved config of a run, written by seva_jax. Usable with --config."""\n\n'
        f"{imports}\n\ndef get_config():\n    return {body}\n"
    )


def _import(name: str) -> str:
    """Lines that import a module, in a process that knows nothing of the config that named it."""
    file = str(getattr(sys.modules.get(name), "__file__", ""))
    if name.startswith(_OWN):
        return f"import seva_jax.cli\n{name} = seva_jax.cli.config_module({hide_home(file)!r})\n"
    top = name.split(".")[0]
    if not file or importlib.machinery.PathFinder.find_spec(top):
        return f"import {name}\n"
    folder = Path(sys.modules[top].__file__ or file).parent  # of a file beside the config
    folder = folder.parent if hasattr(sys.modules[top], "__path__") else folder
    return (
        "import seva_jax.cli\n"
        f"with seva_jax.cli.files_in({hide_home(str(folder))!r}):\n    import {name}\n"
    )
