"""Config files and suite files: Python files that are run for the value of a function.

What lives here: `read_config`, `read_configs` and `read_suites`, with errors that name the file.
What does not: overrides on the command line (`command_line.py`), writing a config (`source.py`).

A file in an object store is copied to this machine before it runs, with the Python files beside it;
messages and recorded configs name it by its URL.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path, PurePath
from types import ModuleType
from typing import Any

from seva_jax.config.experiment import Experiment
from seva_jax.evals import Suite
from seva_jax.runtime.copies import scratch_folder
from seva_jax.runtime.paths import expand_home
from seva_jax.runtime.stores import ObjectStat, as_path, is_remote
from seva_jax.types import DataError

MODULE_PREFIX = "seva_jax_config_"  # of the modules of config files, before the file's name
_COPIES: dict[str, str] = {}  # folders of config files in stores, by that of their copies
RECORD_TITLE = "Resolved config of a run, written by seva_jax"  # of configs in work directories


def config_directory() -> Path:
    """Returns where the shipped configs are: next to the package, inside it when installed."""
    package = Path(__file__).parent.parent
    installed = package / "_configs"
    return installed if installed.is_dir() else package.parent / "configs"


def find_config(text: str | Path) -> Path:
    """Returns the config file that `--config` names: a path, or the name of a shipped config.

    A file of that name in the current directory comes first.
    """
    path = as_path(text)
    if path.is_file() or str(text) != path.name:
        return path
    shipped = config_directory() / f"{path.name.removesuffix('.py')}.py"
    return shipped if shipped.is_file() else path


def read_config(path: Path) -> Experiment:
    """Runs a config file and returns its experiment.

    Raises:
        DataError: as `read_configs`, or the file defines several experiments.
    """
    return only_experiment(read_configs(path), path)


def only_experiment(experiments: list[Experiment], path: Path) -> Experiment:
    """Returns the experiment of a config file that defines one.

    Raises:
        DataError: there are several; the message says how to pick one.
    """
    if len(experiments) > 1:
        raise DataError(
            f"{path} defines {len(experiments)} runs; pick one with --only 0 to "
            f"--only {len(experiments) - 1}"
        )
    return experiments[0]


def read_configs(path: Path) -> list[Experiment]:
    """Runs a config file and returns its experiments: of `get_config`, or of `get_configs`.

    Raises:
        DataError: the file is missing, fails, has neither function, returns something else, or is
            the record of a run of another version; the message names the file.
    """
    if not path.is_file():
        raise DataError(_missing(path))

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


def _missing(path: Path) -> str:
    """Returns the error for a config file that is not there: what was meant, or all that ship."""
    if (path / "config.py").is_file():
        return f"{path} is a work directory; its config is {path / 'config.py'}"
    if path.name == "config.py" and (path.parent / "stages.json").is_file():
        return f"{path.parent} is the work directory of a run, but {path} is gone; put back a copy"
    shipped = sorted(p.stem for p in config_directory().glob("*.py"))
    beside = [] if is_remote(path) else [str(p) for p in path.parent.glob("*.py")]
    names = {PurePath(name).stem: name for name in (*shipped, *beside)}
    problem = f"config file {path} does not exist"
    if near := difflib.get_close_matches(path.stem, names, 1, 0.7):
        return f"{problem}; did you mean --config {names[near[0]]}?"
    return f"{problem}; shipped configs, which need no path: {', '.join(shipped)}"


def read_suites(where: str) -> list[Suite]:
    """Runs a suite file and returns the suites of its `get_suites`.

    Args:
        where: path of the file, or dotted name of an importable module.

    Raises:
        DataError: the file is missing, fails or does not give suites; the message names it.
    """
    path = as_path(where)
    if not path.is_file():
        try:
            spec = None if is_remote(path) else importlib.util.find_spec(where)
        except (ImportError, ValueError):
            spec = None
        if spec is None or spec.origin is None:
            raise DataError(
                f"there is no suite file and no module {where}; give a Python file with "
                "get_suites()"
            )
        path = Path(spec.origin)  # a module of this interpreter

    def get(module: ModuleType) -> list[Any]:
        if not hasattr(module, "get_suites"):
            raise DataError("a suite file defines get_suites(); this one does not")
        return list(module.get_suites())

    suites = _run_file(path, get)
    for suite in suites:
        if not isinstance(suite, Suite):
            kind = type(suite).__name__
            raise DataError(f"{path}: get_suites() gave {kind}, which is no Suite")
    return list(map(expand_home, suites))


def _run_file(path: Path, get: Callable[[ModuleType], list[Any]]) -> list[Any]:
    """Runs a Python file and returns `get` of its module; errors of either name the file."""
    file = _on_disk(path.parent) / path.name
    spec = importlib.util.spec_from_file_location(MODULE_PREFIX + path.stem, file)
    if spec is None or spec.loader is None:
        raise DataError(f"config file {path} is not Python; its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses defined in the file look up their types
    try:
        with files_in(file.parent):  # variants import the config they vary
            spec.loader.exec_module(module)
            return get(module)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    except Exception as error:
        if _names_old_module(module, error):
            raise DataError(
                f"{path} was written by seva_jax 0.1, whose work directories this version cannot "
                "read; finish that run with seva_jax 0.1, or choose another --workdir"
            ) from error
        raise DataError(f"{path}: {type(error).__name__}: {error}") from error


def _names_old_module(module: ModuleType, error: Exception) -> bool:
    """Returns whether a recorded config failed because a module of the package no longer exists."""
    return (
        isinstance(error, ModuleNotFoundError)
        and (error.name or "").startswith("seva_jax.")
        and (module.__doc__ or "").startswith(RECORD_TITLE)
    )


def _on_disk(folder: Path) -> Path:
    """Returns a folder of config files, or a copy of its Python files if it is in a store."""
    if not is_remote(folder):
        return folder
    files = [path for path in folder.iterdir() if path.suffix == ".py"]
    return _copied(str(folder), tuple((path.name, path.stat()) for path in files))


@functools.cache
def _copied(folder: str, files: tuple[tuple[str, ObjectStat], ...]) -> Path:
    """Copies files to a folder on this machine, once for what they hold now."""
    copy = scratch_folder("config")
    for name, _ in files:
        (copy / name).write_bytes((as_path(folder) / name).read_bytes())
    _COPIES[str(copy)] = folder
    return copy


def origin(path: str) -> str:
    """Returns the URL of what a copied config file, or its folder, is a copy of; else the path."""
    for copy, folder in _COPIES.items():
        if path == copy or path.startswith(f"{copy}/"):
            return folder + path.removeprefix(copy)
    return path


@contextlib.contextmanager
def files_in(folder: str | Path) -> Iterator[None]:
    """Lets the body import the Python files of a folder, before others of the same names."""
    sys.path.insert(0, str(_on_disk(as_path(folder).expanduser()).resolve()))
    try:
        yield
    finally:
        sys.path.pop(0)


def config_module(path: str | Path) -> ModuleType:
    """Returns the module of a config file, for a recorded config with classes defined there.

    Raises:
        DataError: the file is missing or fails.
    """
    path = as_path(path).expanduser()
    module = sys.modules.get(MODULE_PREFIX + path.stem)
    if module is not None and origin(module.__file__ or "") == str(path):
        return module
    if not path.is_file():
        raise DataError(f"{path} is not there, and it defines classes of this run; put it back")
    return _run_file(path, lambda module: [module])[0]
