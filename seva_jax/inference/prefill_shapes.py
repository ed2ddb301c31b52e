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
        tiles: tiles of images.
    """

    width: int
    tiles: int

    def __str__(self) -> str:
        tiles = f"{self.tiles} image tile{'s' * (self.tiles != 1)}" if self.tiles else "no image"
        return f"{self.width} tokens and {tiles}"


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
        cls, length_N: Sequence[int], tiles_N: Sequence[int], prompts_at_once: float
    ) -> Prefills:
        """Chooses at most four shapes that minimise the tokens, padding included, of all prompts.

        Another shape has to save a tenth of these tokens, and as much as 16 of the widest prefills,
        because it has to be compiled.

        Args:
            length_N: tokens of each prompt; 0 for one that is not answered.
            tiles_N: tiles of the images of each prompt.
            prompts_at_once: prompts that a prefill starts, over all devices.
        """
        lengths, tiles = np.array(length_N, np.int64), np.array(tiles_N, np.int64)
        width_N = -(-lengths // _UNIT) * _UNIT
        if not width_N.any():
            return cls((PrefillShape(_UNIT, 0),), np.zeros(len(width_N), np.int64))
        widths = _widths(width_N[width_N > 0], _COMPILING * prompts_at_once)
        most = [int(tiles[(width_N > 0) & (width_N <= width)].max()) for width in widths]
        shapes = tuple(map(PrefillShape, widths, most))
        return cls(shapes, np.searchsorted(widths, width_N))

    def __str__(self) -> str:
        num = len(self.shapes)
        return f"{num} prefill program{'s' * (num > 1)}: {'; '.join(map(str, self.shapes))}"

    def phases(self, window: int) -> np.ndarray:
        """Returns the order in which prompts start: by shape within windows, up and down in turns.

        Each prompt has a phase, and those of a phase have the same shape. No prompt moves far, and
        its phase does not depend on the prompt at which answering begins.

        Args:
            window: number of prompts in a window.

        Returns:
            int64 [N], increasing with time.
        """
        num = len(self.shapes)
        window_N = np.arange(len(self.needed_N)) // window
        up_N = window_N % 2 == 0
        return window_N * num + np.where(up_N, self.needed_N, num - 1 - self.needed_N)

    def shape_of(self, phase: int) -> int:
        """Returns the index of the shape of a phase, see `phases`."""
        window, rank = divmod(phase, len(self.shapes))
        return rank if window % 2 == 0 else len(self.shapes) - 1 - rank


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
