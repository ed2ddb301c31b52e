"""Settings of a run in words: which differ from the defaults of their classes, and which do not.

What lives here: `brief`, which writes a part of a config as an expression, and `changed_settings`.
What does not: the tables that show them (`page.py`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from seva_jax.config import Experiment, flatten


def brief(value: object) -> str:
    """Returns a part of a config as an expression, without what is at its default.

    The first field of a class is its main setting, so a number or text there is always shown.

    >>> from seva_jax.objectives import DPO
    >>> brief(DPO(beta=0.1)), brief(DPO(beta=0.5, sft_weight=1.0))
    ('DPO(beta=0.1)', 'DPO(beta=0.5, sft_weight=1.0)')
    """
    if isinstance(value, tuple):
        return f"({', '.join(map(brief, value))}{',' if len(value) == 1 else ''})"
    if not _is_config(value):
        return repr(value)
    shown = [
        f"{name}={brief(held)}"
        for index, (name, held, default) in enumerate(_fields(value))
        if held != default or (index == 0 and isinstance(held, int | float | str))
    ]
    return type(value).__name__ + (f"({', '.join(shown)})" if shown else "")


def changed_settings(config: Experiment) -> frozenset[str]:
    """Returns the dotted names of the settings that are not at the defaults of their classes.

    The class of a section counts as a setting under the name of the section, as in `flatten`.

    >>> sorted(changed_settings(Experiment(seed=1)))
    ['seed']
    """
    return frozenset(_changed(config, type(config)(), ""))


def _changed(value: Any, default: Any, prefix: str) -> Iterator[str]:
    """Yields the names below `prefix` of what differs; `default` is what the field has by default.

    Where that has another class, the defaults of the value's own class count.
    """
    if _is_config(value):
        if prefix and type(value) is not type(default):
            yield prefix
        same = type(value) is type(default)
        for name, held, usual in _fields(value):
            there = getattr(default, name, usual) if same else usual
            yield from _changed(held, there, f"{prefix}.{name}" if prefix else name)
    elif isinstance(value, tuple) and any(map(_is_config, value)):
        others = default if isinstance(default, tuple) else ()
        if len(others) != len(value):
            yield prefix
        for index, item in enumerate(value):
            other = others[index] if index < len(others) else None
            yield from _changed(item, other, f"{prefix}.{index}")
    elif value != default:
        yield from flatten(value, prefix)


def _fields(value: Any) -> Iterator[tuple[str, Any, Any]]:
    """Yields name, value and default of each field; the default of a required one is MISSING."""
    for field in dataclasses.fields(value):
        default = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        yield field.name, getattr(value, field.name), default


def _is_config(value: object) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)
