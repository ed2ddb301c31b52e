"""Which numbers a config may hold.

What lives here: `Range`, and the walk through a config that names every number out of its range.
What does not: the ranges themselves, which stand beside the fields (`lr: Annotated[float,
ABOVE_0]`), and checks that cross sections (`config.check`).
"""

from __future__ import annotations

import dataclasses
import functools
import math
import typing
from collections.abc import Iterator
from typing import Any, NamedTuple

_NUMBERS: dict[Any, tuple[type, ...]] = {int: (int,), float: (int, float)}  # by annotation
_MOST = 2**32  # no count, size or seed is larger


class Range(NamedTuple):
    """Numbers from `low` to `high`.

    Attributes:
        low: the least.
        high: the greatest.
        above: whether `low` itself is left out.
        below: whether `high` itself is left out.
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
        """What a number must be.

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


class Bounds(NamedTuple):
    """What the annotation of a field says of its numbers.

    Attributes:
        kind: `int`, `float`, or another annotation.
        range: the `Range` in its `Annotated`, if any.
    """

    kind: Any
    range: Range | None


@functools.cache
def bounds(config_class: type) -> dict[str, Bounds]:
    """Returns the bounds of every field of a dataclass."""
    hints = typing.get_type_hints(config_class, include_extras=True)
    fields = {field.name: hints[field.name] for field in dataclasses.fields(config_class)}
    return {
        name: Bounds(
            getattr(hint, "__origin__", hint) if hasattr(hint, "__metadata__") else hint,
            next((x for x in getattr(hint, "__metadata__", ()) if isinstance(x, Range)), None),
        )
        for name, hint in fields.items()
    }


def out_of_range(config: Any, name: str = "") -> Iterator[str]:
    """Yields every number in a config that cannot be, as "optim.lr must be above 0, not -1.0".

    Any number must be finite, and any integer below 2^32. A field may bound its numbers further:
    `lr: Annotated[float, ABOVE_0]`.

    Args:
        config: a dataclass, or what one holds.
        name: its dotted name.
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
            if not problems and allowed is not None and value not in allowed:
                yield f"{inner} must be {allowed.words()}, not {value!r}"
    elif isinstance(config, tuple | list):
        for index, item in enumerate(config):
            yield from out_of_range(item, f"{name}.{index}")
    elif isinstance(config, float) and not math.isfinite(config):
        yield f"{name} must be a finite number, not {config!r}"
    elif isinstance(config, int) and abs(config) >= _MOST:
        yield f"{name} must be below 2^32, not {config!r}"
