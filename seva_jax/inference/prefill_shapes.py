"""Chooses the few shapes in which prompts are prefilled.

What lives here: `Prefills`, the shapes for the prompts of a data set. What does not: which prompts
start together (`rollouts.py`), prefill itself (`sampler.py`).

Every shape is compiled once. Everything follows from the sizes of all prompts, so all processes
agree, and a resumed run has the same shapes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

_UNIT = 32  # widths are multiples of this
_MOST = 4  # shapes
_WORTH = 0.1  # share of all tokens that one more shape must save
_COMPILING = 16  # widest prefills that take as long as compiling one more


class PrefillShape(NamedTuple):
    """What each row of a prefill has room for.

    Attributes:
        width: tokens.
        images: images.
    """

    width: int
    images: int

    def __str__(self) -> str:
        images = f"{self.images} image{'s' * (self.images != 1)}" if self.images else "no image"
        return f"{self.width} tokens and {images}"


@dataclasses.dataclass(frozen=True)
class Prefills:
    """The shapes of prefill, and which of them each prompt needs.

    Attributes:
        shapes: in increasing order; each holds what those before it hold.
        needed_N: int64, the index of the smallest shape that holds a prompt.
    """

    shapes: tuple[PrefillShape, ...]
    needed_N: np.ndarray

    @classmethod
    def of(
        cls, length_N: Sequence[int], images_N: Sequence[int], prompts_at_once: float
    ) -> Prefills:
        """Chooses at most four shapes that minimise the tokens, padding included, of all prompts.

        Another shape has to save a tenth of these tokens, and as much as 16 of the widest prefills,
        because it has to be compiled.

        Args:
            length_N: tokens of each prompt; 0 for one that is not answered.
            images_N: images of each prompt.
            prompts_at_once: prompts that a prefill starts, over all devices.
        """
        lengths, images = np.array(length_N, np.int64), np.array(images_N, np.int64)
        width_N = -(-lengths // _UNIT) * _UNIT
        if not width_N.any():
            return cls((PrefillShape(_UNIT, 0),), np.zeros(len(width_N), np.int64))
        widths = _widths(width_N[width_N > 0], _COMPILING * prompts_at_once)
        most = [int(images[(width_N > 0) & (width_N <= width)].max()) for width in widths]
        shapes = tuple(map(PrefillShape, widths, most))
        return cls(shapes, np.searchsorted(widths, width_N))

    def __str__(self) -> str:
        num = len(self.shapes)
        return f"{num} prefill program{'s' * (num > 1)}: {'; '.join(map(str, self.shapes))}"

    def sorted_by_shape(self, indices: Sequence[int], window: int) -> list[int]:
        """Sorts prompts by their shapes within windows, up and down in turns.

        Prompts that start together then need the same shape, and no prompt moves far.

        Args:
            indices: prompts.
            window: number of prompts in a window.
        """
        ordered: list[int] = []
        for number, first in enumerate(range(0, len(indices), window)):
            part = indices[first : first + window]
            ordered += sorted(part, key=lambda i: int(self.needed_N[i]), reverse=number % 2 == 1)
        return ordered


def _widths(width_N: np.ndarray, compiling: float) -> list[int]:
    """Returns the widths with the fewest tokens, as many as are worth compiling.

    Args:
        width_N: the width that each prompt needs; at least one.
        compiling: prompts of the largest width that take as long as compiling one more program.
    """
    widths, counts = np.unique(width_N, return_counts=True)
    up_to = counts.cumsum()
    tokens, chosen = widths * up_to, [[int(width)] for width in widths]  # with one shape
    for _ in range(min(_MOST, len(widths)) - 1):
        # With one more shape of width j above those for prompts up to width i.
        more = tokens[:, None] + widths * (up_to - up_to[:, None])
        more = np.where(np.tri(len(widths), dtype=bool), np.inf, more)
        before = more.argmin(axis=0)
        saved = tokens[-1] - more[before[-1], -1]
        if saved < max(_WORTH * tokens[-1], compiling * widths[-1]):
            break
        tokens = more.min(axis=0)
        chosen = [[*chosen[i], int(width)] for i, width in zip(before, widths, strict=True)]
    return chosen[-1]
