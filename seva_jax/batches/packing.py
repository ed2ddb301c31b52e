"""Decides which comparisons share a row, and which shapes the rows of a run have.

Every distinct shape of a batch is compiled, so there are few: one that holds any batch with a
comparison in each row, and others that save work where lengths differ. Short comparisons then
share rows, and batches of short comparisons get shorter rows. What a step trains on never depends
on the shapes, and everything follows from the sizes of the comparisons, so all processes agree.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from seva_jax.batches.trees import RowShape, TreeExample, rounded

Members = Sequence[int]  # indices of the comparisons of a batch

_SAMPLE = 2**14  # comparisons that are packed to choose shapes
_LENGTHS = (0.5, 0.625, 0.75, 0.875, 1.0, 1.5, 2.0, 3.0, 4.0)  # multiples of the longest
_WORTH = 0.1  # share of all work that one more shape must save
_ROOM = 1.3  # over the mean, for what a row holds besides tokens


class Sizes(NamedTuple):
    """What comparisons need of a row.

    Attributes:
        length_N: tokens.
        targets_N: tokens of all answers.
        tiles_N: tiles of images.
    """

    length_N: np.ndarray
    targets_N: np.ndarray
    tiles_N: np.ndarray

    @classmethod
    def of(cls, examples: Sequence[TreeExample]) -> Sizes:
        """Returns the sizes of tokenised comparisons."""
        sizes = [(e.length, e.num_targets, e.num_tiles) for e in examples]
        return cls(*np.array(sizes, np.int64).reshape(-1, 3).T)


class Layout(NamedTuple):
    """Shape of a batch.

    Attributes:
        shape: shape of each row.
        rows: number of rows, over all devices and micro-batches.
    """

    shape: RowShape
    rows: int

    def __str__(self) -> str:
        each = f", up to {self.shape.comparisons} comparisons each"
        return f"{self.rows} rows of {self.shape.length}" + each * (self.shape.comparisons > 1)


def fill(sizes: Sizes, members: Members, shape: RowShape) -> list[list[int]]:
    """Packs comparisons into few rows by first fit, longest first.

    Args:
        sizes: sizes of all comparisons.
        members: the comparisons to pack; each fits into a row.
        shape: shape of a row.

    Returns:
        Rows in the order of their first members; members of a row in the order given.
    """
    if shape.comparisons == 1:
        return [[member] for member in members]
    need_N4 = np.stack([*(x[list(members)] for x in sizes), np.ones(len(members), np.int64)], 1)
    room_B4 = np.empty((len(members), 4), np.int64)
    room_B4[:] = shape.length, shape.targets, shape.tiles, shape.comparisons
    rows: list[list[int]] = []
    for place in np.argsort(-need_N4[:, 0], kind="stable"):
        row = int((room_B4 >= need_N4[place]).all(1).argmax())  # an empty one at the latest
        room_B4[row] -= need_N4[place]
        rows += [[]] * (row == len(rows))
        rows[row] = sorted([*rows[row], int(place)])
    return [[members[place] for place in row] for row in sorted(rows)]


@dataclasses.dataclass(frozen=True)
class Packer:
    """Lays batches out in rows.

    Attributes:
        sizes: sizes of all comparisons.
        layouts: shapes of batches, the cheapest first; the last one holds every batch.
    """

    sizes: Sizes
    layouts: tuple[Layout, ...]

    def describe(self) -> str:
        """Returns the layouts in words."""
        most = len(self.layouts)
        return f"at most {most} compilation{'s' * (most > 1)}: " + "; ".join(map(str, self.layouts))

    def __call__(self, members: Members) -> tuple[Layout, list[list[int]]]:
        """Returns the cheapest layout that holds a batch, and its rows; some may be missing."""
        for layout in self.layouts:
            rows = _packed(self.sizes, members, layout.shape)
            if rows is not None and len(rows) <= layout.rows:
                return layout, rows
        raise AssertionError("the last layout holds every batch")


def choose(
    sizes: Sizes,
    widest: RowShape,
    batch_size: int,
    batches: Sequence[Members],
    unit: int,
    most: int,
    cost: Callable[[RowShape], float],
) -> Packer:
    """Chooses the shapes of batches.

    Args:
        sizes: sizes of all comparisons.
        widest: a row shape that holds each of them alone.
        batch_size: comparisons in a batch.
        batches: batches of the run; a sample of them is packed to choose.
        unit: rows of a batch come in multiples of this.
        most: largest number of shapes.
        cost: cost of a row of a shape, in any unit.
    """
    whole = Layout(widest, batch_size)
    sample = batches[:: max(len(batches) * batch_size // _SAMPLE, 1)]
    best_N = np.full(len(sample), whole.rows * cost(widest))
    chosen = [whole]
    offers: dict[Layout, np.ndarray] = {}  # cost of each sampled batch; inf where it has no room
    for shape in _shapes(sizes, widest) if most > 1 else ():
        packed = [_packed(sizes, members, shape) for members in sample]
        needed_N = np.array([-(-len(p) // unit) * unit if p else 0 for p in packed])
        for rows in set(needed_N.tolist()) - {0}:
            fits_N = (needed_N > 0) & (needed_N <= rows)
            offers[Layout(shape, rows)] = np.where(fits_N, rows * cost(shape), np.inf)
    while len(chosen) < most and offers:
        layout = min(offers, key=lambda x: np.minimum(best_N, offers[x]).sum())
        better_N = np.minimum(best_N, offers[layout])
        if better_N.sum() > (1 - _WORTH) * best_N.sum():
            break
        best_N = better_N
        chosen.append(layout)
    ordered = sorted(chosen[1:], key=lambda x: x.rows * cost(x.shape))
    return Packer(sizes, (*ordered, whole))


def _packed(sizes: Sizes, members: Members, shape: RowShape) -> list[list[int]] | None:
    """Returns the rows of a batch; None if one of its members is too large for a row."""
    index = list(members)
    limits = shape.length, shape.targets, shape.tiles
    if any((x[index] > limit).any() for x, limit in zip(sizes, limits, strict=True)):
        return None
    return fill(sizes, members, shape)


def _shapes(sizes: Sizes, widest: RowShape) -> list[RowShape]:
    """Returns row shapes to try: shorter than the longest comparison, or room for several."""
    mean = [float(x.mean()) for x in sizes]
    largest = [int(x.max()) for x in sizes]
    out = []
    for length in sorted({rounded(int(widest.length * factor)) for factor in _LENGTHS}):
        fits_N = sizes.length_N <= length
        if not fits_N.any():
            continue
        nums = {1}
        if length >= 2 * sizes.length_N.min():
            nums = {max(int(room * length / mean[0]), 1) for room in (1.0, _ROOM)}
        for num in sorted(nums):
            targets = widest.targets
            if num > 1:
                wanted = int(_ROOM * length * mean[1] / mean[0])
                targets = min(rounded(max(largest[1], wanted)), length)
            tiles = max(int(sizes.tiles_N[fits_N].max()), int(np.ceil(num * mean[2])))
            shape = dataclasses.replace(
                widest, length=length, comparisons=num, tiles=tiles, targets=targets
            )
            if shape != widest:
                out.append(shape)
    return out
