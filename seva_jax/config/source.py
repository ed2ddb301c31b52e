"""A config as plain values, as Python source, and as a fingerprint."""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import importlib.machinery
import json
import sys
from pathlib import Path
from types import FunctionType
from typing import Any

from seva_jax.config.config_files import CONFIG_MODULE
from seva_jax.config.experiment import Experiment
from seva_jax.runtime.paths import hide_home


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """A config as dotted field names and plain values, with the class of every polymorphic part.

    Paths in the home directory begin with `~`.

    >>> flatten(Experiment())["objective.beta"]
    0.1
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        flat: dict[str, Any] = {}
        if prefix:
            flat[prefix] = ".".join(public_name(type(value)))
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
        return {prefix: ".".join(public_name(value))}
    if isinstance(value, tuple):
        return {prefix: [hide_home(v) if isinstance(v, str) else v for v in value]}
    return {prefix: hide_home(value) if isinstance(value, str) else value}


def public_name(thing: type | FunctionType) -> tuple[str, str]:
    """Returns the outermost module that shows a class or function, and its name there.

    What configs and work directories record, so a class may move to another file of its package.

    >>> from seva_jax.objectives.dpo import DPO
    >>> public_name(DPO)
    ('seva_jax.objectives', 'DPO')
    """
    name, parts = thing.__qualname__, thing.__module__.split(".")
    for end in range(1, len(parts)):
        package = ".".join(parts[:end])
        if getattr(sys.modules.get(package), name, None) is thing:
            return package, name
    return thing.__module__, name


def _source(value: Any, modules: set[str], indent: int) -> str:
    def named(thing: type | FunctionType) -> str:
        module, name = public_name(thing)
        modules.add(module)
        return f"{module}.{name}"

    pad = "    " * (indent + 1)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        arguments = [
            f"{pad}{f.name}={_source(getattr(value, f.name), modules, indent + 1)},\n"
            for f in dataclasses.fields(value)
            if f.init
        ]
        body = "".join(arguments)
        close = f"\n{body}{'    ' * indent})" if body else ")"
        return f"{named(type(value))}({close}"
    if isinstance(value, FunctionType):
        return named(value)
    if isinstance(value, enum.Enum):
        return f"{named(type(value))}.{value.name}"
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
    if name.startswith(CONFIG_MODULE):
        path = hide_home(file)
        return f"import seva_jax.config\n{name} = seva_jax.config.config_module({path!r})\n"
    top = name.split(".")[0]
    if not file or importlib.machinery.PathFinder.find_spec(top):
        return f"import {name}\n"
    folder = Path(sys.modules[top].__file__ or file).parent  # of a file beside the config
    folder = folder.parent if hasattr(sys.modules[top], "__path__") else folder
    return (
        "import seva_jax.config\n"
        f"with seva_jax.config.files_in({hide_home(str(folder))!r}):\n    import {name}\n"
    )


def fingerprint(*parts: Any) -> str:
    """A short hash of configs and plain values.

    >>> fingerprint("a", 1) == fingerprint("a", 1) != fingerprint("a", 2)
    True
    """
    # With a name in front flatten tells classes with the same fields apart.
    plain = [flatten(p, "part") if dataclasses.is_dataclass(p) else p for p in parts]
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]
