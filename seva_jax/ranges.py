"""Which numbers a config may hold.

What lives here: `Range`, and the walk through a config that names every number out of its range.
What does not: the ranges themselves, which stand in the classes (`ranges = {"lr": ABOVE_0}`), and
checks that cross sections (`experiment.check`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

_NUMBERS = {"int": (int,), "float": (int, float)}  # by annotation, as dataclasses keep it
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


Ranges = Mapping[str, Range]
ABOVE_0 = Range(0, above=True)
FROM_0 = Range(0)
FROM_1 = Range(1)
DECAY = Range(0, 1, below=True)


def out_of_range(config: Any, name: str = "") -> Iterator[str]:
    """Every number in a config that cannot be, as "optim.lr must be above 0, not -1.0".

    Any number must be finite, and any integer below 2^32. A class may say more of its fields in a
    class variable `ranges`.

    Args:
        config: a dataclass, or what one holds.
        name: its dotted name.
    """
    if dataclasses.is_dataclass(config):
        ranges: dict[str, Range] = {}
        for kind in reversed(type(config).__mro__):
            ranges |= vars(kind).get("ranges", {})
        for field in dataclasses.fields(config):
            value, inner = getattr(config, field.name), f"{name}.{field.name}".lstrip(".")
            if field.type in _NUMBERS and type(value) not in _NUMBERS[field.type]:
                kind = "whole number" if field.type == "int" else "number"
                yield f"{inner} must be a {kind}, not {value!r}"
                continue
            problem = list(out_of_range(value, inner))
            yield from problem
            if not problem and field.name in ranges and value not in ranges[field.name]:
                yield f"{inner} must be {ranges[field.name].words()}, not {value!r}"
    elif isinstance(config, tuple | list):
        for index, item in enumerate(config):
            yield from out_of_range(item, f"{name}.{index}")
    elif isinstance(config, float) and not math.isfinite(config):
        yield f"{name} must be a finite number, not {config!r}"
    elif isinstance(config, int) and abs(config) >= _MOST:
        yield f"{name} must be below 2^32, not {config!r}"
