"""Bounds of the numbers in a config, written next to the fields: `lr: Annotated[float, ABOVE_0]`.

What lives here: `Range`, `NO_EFFECT`, `ADDED` and `CountsAs`, the marks that a field's annotation
may carry, and `out_of_range`, which finds every number outside its bounds. What does not: the
bounds of a particular field, which are in its annotation, and checks that involve several sections
(`seva_jax/config/experiment.py`).
"""

from __future__ import annotations

import dataclasses
import functools
import math
import typing
from collections.abc import Iterator
from typing import Any, NamedTuple

_NUMBERS: dict[Any, tuple[type, ...]] = {int: (int,), float: (int, float)}  # by annotation
_MOST = 2**32  # counts, sizes and seeds are smaller


class Range(NamedTuple):
    """An interval of numbers, from `low` to `high`.

    Attributes:
        low: lower bound.
        high: upper bound.
        above: whether `low` itself is excluded.
        below: whether `high` itself is excluded.
    """

    low: float
    high: float = math.inf
    above: bool = False
    below: bool = False

    def __contains__(self, value: Any) -> bool:
        return (self.low < value if self.above else self.low <= value) and (
            value < self.high if self.below else value <= self.high
        )

    def words(self) -> str:
        """Returns the interval in words, to follow "must be".

        >>> Range(0, 1, below=True).words(), Range(0, above=True).words()
        ('at least 0 and below 1', 'above 0')
        """
        low = f"{'above' if self.above else 'at least'} {self.low:g}"
        high = f" and {'below' if self.below else 'at most'} {self.high:g}"
        return low + high * math.isfinite(self.high)


ABOVE_0 = Range(0, above=True)
FROM_0 = Range(0)
FROM_1 = Range(1)
DECAY = Range(0, 1, below=True)


@dataclasses.dataclass(frozen=True)
class _NoEffect:
    """Marks a config field, `Annotated[int, NO_EFFECT]`, that changes neither results nor files."""


NO_EFFECT = _NoEffect()


@dataclasses.dataclass(frozen=True)
class _Added:
    """Marks a config field, `Annotated[float, ADDED]`, that work directories may not have recorded.

    Its default must give the results of the time before. A record without the field counts as one
    with the default, and fingerprints leave the field out while it has its default.
    """


ADDED = _Added()


@dataclasses.dataclass(frozen=True)
class CountsAs:
    """Marks a config field one of whose values counts as another one in records and fingerprints.

    `Annotated[str, CountsAs("auto", "layers")]`: a later version may make "auto" the default where
    "layers" was, and its runs continue those of the version before. Both must give the same results
    but for rounding.

    Attributes:
        value: the value.
        counts_as: the one that it counts as.
    """

    value: Any
    counts_as: Any


class Bounds(NamedTuple):
    """What the annotation of a field says about its value.

    Attributes:
        kind: the annotated type, without `Annotated`.
        range: the `Range` in the `Annotated`; None without one.
    """

    kind: Any
    range: Range | None


@functools.cache
def bounds(config_class: type) -> dict[str, Bounds]:
    """Returns the bounds of every field of a dataclass, by name.

    A class that annotates an inherited field again keeps its range unless it gives another one.
    """
    ranges: dict[str, Range] = {}
    for base in filter(dataclasses.is_dataclass, reversed(config_class.__mro__)):
        for name, annotation in typing.get_type_hints(base, include_extras=True).items():
            for mark in getattr(annotation, "__metadata__", ()):
                if isinstance(mark, Range) and name in vars(base).get("__annotations__", ()):
                    ranges[name] = mark
    kinds = typing.get_type_hints(config_class)  # without Annotated
    names = [field.name for field in dataclasses.fields(config_class)]
    return {name: Bounds(kinds[name], ranges.get(name)) for name in names}


def out_of_range(config: Any, name: str = "") -> Iterator[str]:
    """Yields a message such as "optim.lr must be above 0, not -1.0" for every bad number.

    A field annotated `int` must hold an int, one annotated `float` a float or an int. Every float
    must be finite, and every int between -2^32 and 2^32. A `Range` bounds a field further, if its
    value is not None.

    Args:
        config: a config dataclass, or the value of a field of one.
        name: the dotted name of `config`; empty for the whole config.
    """
    if dataclasses.is_dataclass(config):
        for field, (kind, allowed) in bounds(type(config)).items():
            value, inner = getattr(config, field), f"{name}.{field}".lstrip(".")
            if kind in _NUMBERS and type(value) not in _NUMBERS[kind]:
                words = "whole number" if kind is int else "number"
                yield f"{inner} must be a {words}, not {value!r}"
                continue
            problems = list(out_of_range(value, inner))
            yield from problems
            known = value is not None and not problems
            if known and allowed is not None and value not in allowed:
                yield f"{inner} must be {allowed.words()}, not {value!r}"
    elif isinstance(config, tuple | list):
        for index, item in enumerate(config):
            yield from out_of_range(item, f"{name}.{index}")
    elif isinstance(config, float) and not math.isfinite(config):
        yield f"{name} must be a finite number, not {config!r}"
    elif isinstance(config, int) and abs(config) >= _MOST:
        yield f"{name} must be below 2^32, not {config!r}"
