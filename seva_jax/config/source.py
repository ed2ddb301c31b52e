"""Other forms of a config: plain values, Python source, a fingerprint.

What lives here: `flatten`, `to_source`, `suite_source`, `fingerprint`, and the fields that
fingerprints leave out. What does not: reading a config file (`config_files.py`).
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import hashlib
import importlib.machinery
import itertools
import json
import sys
import typing
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import FunctionType
from typing import Any

from seva_jax.config.config_files import MODULE_PREFIX, RECORD_TITLE, origin
from seva_jax.config.experiment import Experiment
from seva_jax.evals import Suite
from seva_jax.ranges import ADDED, NO_EFFECT, CountsAs
from seva_jax.runtime.paths import hide_home


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Returns a config as plain values by dotted field names, with the class of every section.

    Paths in the home directory begin with `~`.

    Args:
        value: a dataclass, or the value of a field of one.
        prefix: its dotted name.

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


def without_effect(config: Any, prefix: str = "") -> frozenset[str]:
    """Returns the names of the fields that change neither results nor files, as `flatten` has them.

    These are the fields marked with `NO_EFFECT`, at every depth; a marked section is one name,
    which stands for everything in it.

    Args:
        config: a dataclass, or the value of a field of one.
        prefix: its dotted name.

    >>> "train.log_every" in without_effect(Experiment())
    True
    """
    return frozenset(_marked(config, NO_EFFECT, prefix))


def added_later(config: Any, prefix: str = "") -> dict[str, Any]:
    """Returns the defaults of the fields that older records lack, by the names of `flatten`.

    These are the fields marked with `ADDED`, at every depth outside of other such fields. See
    there what their absence means.

    Args:
        config: a dataclass, or the value of a field of one.
        prefix: its dotted name.
    """
    return {
        name: field.default if field.default_factory is dataclasses.MISSING
        else field.default_factory()
        for name, (field, _) in _marked(config, ADDED, prefix).items()
    }  # fmt: skip


def with_defaults(recorded: dict[str, Any], wanted: dict[str, Any], config: Any) -> dict[str, Any]:
    """Returns a recorded flat config, completed by fields that were added since it was written.

    A recorded value that counts as the same as that of `config` (`CountsAs`) becomes that one.

    Args:
        recorded: what `flatten` once gave.
        wanted: what it gives for the config that is compared with the record.
        config: that config.
    """
    complete = dict(recorded)
    for name, default in added_later(config).items():
        section = name.rpartition(".")[0]
        if name not in recorded and recorded.get(section) == wanted.get(section):
            complete |= json.loads(json.dumps(flatten(default, name)))
    for name, mark in _counting_as(config).items():
        if name not in complete or name not in wanted:
            continue
        if _counted(complete[name], mark) == _counted(wanted[name], mark):
            complete[name] = wanted[name]
    return complete


def _counting_as(config: Any, prefix: str = "") -> dict[str, CountsAs]:
    """Returns the marks of the fields that have a `CountsAs`, by dotted name."""
    found: dict[str, CountsAs] = {}
    if dataclasses.is_dataclass(config):
        here = _counting_fields(type(config))
        for field in dataclasses.fields(config):
            name = f"{prefix}.{field.name}" if prefix else field.name
            value = getattr(config, field.name)
            found |= {name: here[field.name]} if field.name in here else _counting_as(value, name)
    elif isinstance(config, tuple):
        for index, item in enumerate(config):
            found |= _counting_as(item, f"{prefix}.{index}")
    return found


def _counted(value: Any, mark: CountsAs) -> Any:
    return mark.counts_as if value == mark.value else value


def differing_fields(there: dict[str, Any], now: dict[str, Any]) -> dict[str, str]:
    """Returns the fields in which two flat configs differ, sorted, each with both values in words.

    Args:
        there: what `flatten` gave for one config.
        now: what it gave for the other.
    """
    return {
        name: f"{name}: {there.get(name, 'absent')!r} there, {now.get(name, 'absent')!r} now"
        for name in sorted(there.keys() | now.keys())
        if there.get(name) != now.get(name)
    }


def _marked(config: Any, mark: Any, prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """Returns the marked fields and their values, by dotted name."""
    marked: dict[str, tuple[Any, Any]] = {}
    if dataclasses.is_dataclass(config):
        here = _marked_fields(type(config), mark)
        for field in dataclasses.fields(config):
            name = f"{prefix}.{field.name}" if prefix else field.name
            value = getattr(config, field.name)
            marked |= {name: (field, value)} if field.name in here else _marked(value, mark, name)
    elif isinstance(config, tuple):
        for index, item in enumerate(config):
            marked |= _marked(item, mark, f"{prefix}.{index}")
    return marked


def is_within(name: str, fields: Iterable[str]) -> bool:
    """Returns whether a dotted name is one of the fields, or is inside one that is a section."""
    return any(name == field or name.startswith(f"{field}.") for field in fields)


@functools.cache
def _marked_fields(config_class: Any, mark: Any) -> frozenset[str]:
    hints = typing.get_type_hints(config_class, include_extras=True)
    return frozenset(
        name for name, hint in hints.items() if mark in getattr(hint, "__metadata__", ())
    )


@functools.cache
def _counting_fields(config_class: Any) -> dict[str, CountsAs]:
    hints = typing.get_type_hints(config_class, include_extras=True)
    marks = ((name, getattr(hint, "__metadata__", ())) for name, hint in hints.items())
    return {name: mark for name, found in marks for mark in found if isinstance(mark, CountsAs)}


def public_name(thing: type | FunctionType) -> tuple[str, str]:
    """Returns the outermost module that exports a class or function, and its name there.

    Configs and work directories record this name, so a class may move to another file of its
    package.

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
    """Returns an expression for a value, and adds the modules that it names to `modules`."""

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
    """Returns a config file that rebuilds an experiment; paths at home begin with `~`."""
    return _file(f"{RECORD_TITLE}. Usable with --config.", "get_config", experiment)


def suite_source(suite: Suite) -> str:
    """Returns a suite file that rebuilds a suite; paths at home begin with `~`."""
    return _file("Suite of an evaluation. Usable with --suite.", "get_suites", (suite,))


def _file(title: str, function: str, value: Any) -> str:
    """Returns a Python file with a function that returns a value."""
    modules: set[str] = set()
    body = _source(value, modules, 1)
    imports = "".join(map(_import, sorted(modules)))
    return f'"""{title}"""\n\n{imports}\n\ndef {function}():\n    return {body}\n'


def _import(name: str) -> str:
    """Returns lines that import a module in a process that has not read the original config."""
    file = str(getattr(sys.modules.get(name), "__file__", ""))
    if name.startswith(MODULE_PREFIX):
        path = hide_home(origin(file))
        return f"import seva_jax.config\n{name} = seva_jax.config.config_module({path!r})\n"
    top = name.split(".")[0]
    if not file or importlib.machinery.PathFinder.find_spec(top):
        return f"import {name}\n"
    folder = Path(sys.modules[top].__file__ or file).parent  # of a file next to the config
    folder = folder.parent if hasattr(sys.modules[top], "__path__") else folder
    return (
        "import seva_jax.config\n"
        f"with seva_jax.config.files_in({hide_home(origin(str(folder)))!r}):\n    import {name}\n"
    )


def fingerprint(*parts: Any) -> str:
    """Returns a short hash of configs and plain values.

    Fields marked with `NO_EFFECT` are left out, at every depth, and so are fields marked with
    `ADDED` that have their default. A value that counts as another one (`CountsAs`) is that one.

    >>> fingerprint("a", 1) == fingerprint("a", 1) != fingerprint("a", 2)
    True

    Args:
        *parts: configs and JSON values; an iterator counts as the list of its items, which are
            never in memory at once.
    """
    digest, between = hashlib.sha256(b"["), ""
    for part in parts:
        digest.update(between.encode())
        for piece in _as_json(part):
            digest.update(piece.encode())
        between = ", "
    digest.update(b"]")
    return digest.hexdigest()[:16]


def _as_json(part: Any) -> Iterator[str]:
    """Yields a config or plain value as JSON, in pieces."""
    if isinstance(part, Iterator):
        yield "["
        between = ""
        while some := list(itertools.islice(part, 1000)):
            yield between + json.dumps(some, sort_keys=True)[1:-1]
            between = ", "
        yield "]"
        return
    # A prefix makes `flatten` record the outermost class, too.
    plain = with_effect(part, "part") if dataclasses.is_dataclass(part) else part
    yield json.dumps(plain, sort_keys=True)


def with_effect(config: Any, prefix: str) -> dict[str, Any]:
    """Returns what `flatten` does, without the fields that fingerprints leave out.

    Values that count as others are these.
    """
    defaults = added_later(config, prefix)
    left_out = without_effect(config, prefix) | {
        name
        for name, (_, value) in _marked(config, ADDED, prefix).items()
        if value == defaults[name]
    }
    marks = _counting_as(config, prefix)
    return {
        name: _counted(value, marks[name]) if name in marks else value
        for name, value in flatten(config, prefix).items()
        if not is_within(name, left_out)
    }
