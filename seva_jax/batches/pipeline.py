"""From comparisons to batches: a Grain pipeline whose position is one integer, the step.

The seed fixes the comparisons of step i, for any number of hosts and reading threads. The last
batch may leave rows empty, so every comparison counts exactly once an epoch. `packing.py` decides
which comparisons share a row.
"""

from __future__ import annotations

import bisect
import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from seva_jax.batches.encoded import EncodedComparisons
from seva_jax.batches.image_inputs import ImageInput, image_uses, load_images, read_together
from seva_jax.batches.packing import Packer, Sizes, choose
from seva_jax.batches.trees import RowShape, TreeExample, differing, pack_row, stack_rows
from seva_jax.batches.worker_processes import ProcessIterator
from seva_jax.runtime.read_ahead import READERS
from seva_jax.types import Comparison, ExampleError, TreeBatch

_AHEAD_BYTES = 2**30  # of batches that are prepared before they are needed


@dataclasses.dataclass(frozen=True)
class ComparisonRows:
    """Comparisons as rows of trees.

    Attributes:
        encoded: what to train on.
        images: gives an image, by name, as the model gets it.
        reference: reference log-probs of every comparison's answers, or None; empty for a
            comparison whose images did not decode.
        spans: whether rows say which tokens of a chosen and a rejected answer are marked or, if
            none are, differ.
    """

    encoded: EncodedComparisons
    images: ImageInput
    reference: Sequence[tuple[np.ndarray, ...]] | None = None
    spans: bool = False

    def __len__(self) -> int:
        return len(self.encoded.encoded)

    @functools.cached_property
    def comparisons(self) -> list[Comparison]:
        """The comparisons, in order."""
        return self.encoded.comparisons

    @property
    def sizes(self) -> Sizes:
        """What each comparison needs of a row."""
        return self.encoded.sizes

    @property
    def shape(self) -> RowShape:
        """A row that holds any one comparison."""
        assert self.encoded.shape is not None, "there are no comparisons"
        return self.encoded.shape

    def read(self, members: Iterable[int], threads: int) -> ComparisonRows:
        """Returns the rows with the images of some comparisons, which are read together.

        Args:
            members: the comparisons.
            threads: how many images are read at a time.
        """
        compared = (self.encoded.encoded[i].comparison for i in members)
        views = (view for comparison in compared for view in comparison.views)
        uses = (use for view in views for use in image_uses(view.prompt))
        return dataclasses.replace(self, images=read_together(self.images, uses, threads))

    def row(self, members: Sequence[int], shape: RowShape) -> TreeBatch:
        """Returns comparisons as one row.

        Those whose images do not decode, now or in the pass over the reference, are left out;
        their places have weight 0.
        """
        tokens = self.encoded.tokens
        examples = [example for i in members if (example := self._example(i)) is not None]
        return pack_row(
            examples,
            shape,
            image_shape=self.images.shape,
            image_dtype=self.images.dtype,
            tile_features=tokens.layouts.tile_features,
            image_token_id=tokens.image_token_id,
            pad_id=tokens.pad_id,
            blended=tokens.layouts.blended,
            native=tokens.layouts.native,
        )

    def _example(self, index: int) -> TreeExample | None:
        encoded, tokens = self.encoded.encoded[index], self.encoded.tokens
        comparison = encoded.comparison
        reference = self.reference[index] if self.reference is not None else None
        if reference == ():
            return None
        trees = list[TreeExample]()
        views = zip(comparison.views, encoded.trees, encoded.sizes, strict=True)
        try:
            for view, (trunk, branches), sizes in views:
                layouts = tokens.layouts(sizes)
                tiles_IX = load_images(self.images, view.prompt)
                trunk = tokens.expand(trunk, layouts)
                trees.append(TreeExample(trunk, branches, tiles_IX, layouts=layouts))
        except ExampleError:
            return None
        first, *more = trees
        spans = encoded.spans if self.spans else None
        if self.spans and spans is None and len(first.branches) == 2:
            spans = differing(*first.branches)
        return dataclasses.replace(
            first,
            weight=comparison.weight,
            reference=reference,
            index=index,
            scores=comparison.scores,
            spans=spans,
            more=tuple(more),
        )


class RowShapes(NamedTuple):
    """How the shapes of rows are chosen.

    Attributes:
        most: largest number of shapes of batches; each is compiled.
        cost: cost of a row of a shape, in any unit.
    """

    most: int
    cost: Callable[[RowShape], float]


def num_steps(
    num: int,
    batch_size: int,
    epochs: int,
    repeat: int,
    max_steps: int,
    done: int = 0,
    trained: int = 0,
) -> int:
    """Returns the optimiser steps of a run over `num` comparisons.

    Args:
        num: number of comparisons.
        batch_size: comparisons in a batch.
        epochs: passes over the data.
        repeat: see `shuffled`.
        max_steps: the most steps; 0 means no limit.
        done: steps of an earlier training that the run continues.
        trained: comparisons, counted at every visit, that these steps were trained on.
    """
    steps = done + -(-(num * repeat * epochs - trained) // batch_size)
    return min(steps, max_steps) if max_steps else steps


class Schedule(Sequence[list[int]]):
    """The indices of the comparisons of every batch.

    Args:
        order: order of the comparisons, over all epochs.
        num: number of comparisons; larger indices are repetitions.
        batch_size: comparisons in a batch; the last one may have fewer.
        steps: number of batches.
        ends: places in the order at which a batch ends even if it has fewer comparisons.
    """

    def __init__(
        self,
        order: Sequence[int],
        num: int,
        batch_size: int,
        steps: int,
        ends: Sequence[int] = (),
    ) -> None:
        self._order, self._num, self._batch_size, self._steps = order, num, batch_size, steps
        # Of each part between two such places: where it ends, and its first batch.
        self._ends = [*ends, len(order)]
        lengths = [end - start for start, end in itertools.pairwise([0, *self._ends])]
        self._firsts = [0, *itertools.accumulate(-(-length // batch_size) for length in lengths)]

    def __len__(self) -> int:
        return self._steps

    def __getitem__(self, step: Any) -> Any:
        if isinstance(step, slice):
            return [self[i] for i in range(*step.indices(len(self)))]
        part = bisect.bisect_right(self._firsts, step, hi=len(self._ends)) - 1
        first = ([0, *self._ends][part]) + (step - self._firsts[part]) * self._batch_size
        last = min(first + self._batch_size, self._ends[part])
        return [int(self._order[i]) % self._num for i in range(first, last)]


def shuffled(
    rows: ComparisonRows,
    batch_size: int,
    steps: int,
    epochs: int,
    repeat: int,
    seed: int,
    ends: Sequence[int] = (),
) -> Schedule:
    """Returns the batches of a training run.

    Args:
        rows: the data.
        batch_size: comparisons in a batch.
        steps: number of batches.
        epochs: passes over the data; each is shuffled differently.
        repeat: how many copies of the list are concatenated before it is shuffled.
        seed: seed of the order. More epochs begin with the order of fewer.
        ends: see `Schedule`.
    """
    import grain

    # shuffle(seed=s) would give epoch 1 of seed s the order of epoch 0 of seed s + 1.
    order = grain.MapDataset.range(len(rows) * repeat).seed(seed).shuffle().repeat(epochs)
    return Schedule(order, len(rows), batch_size, steps, ends)  # pyright: ignore[reportArgumentType]


def in_order(rows: ComparisonRows, batch_size: int) -> Schedule:
    """Returns batches that hold every comparison once, in order."""
    return Schedule(range(len(rows)), len(rows), batch_size, -(-len(rows) // batch_size))


@dataclasses.dataclass(frozen=True)
class Batches:
    """One process's share of every batch, by step.

    Attributes:
        rows: the data.
        schedule: comparisons of every batch.
        packer: lays batches out in rows.
        share: index of this process's share of the rows, and number of shares.
        readers: how many images of a batch are read at a time, from an object store.
    """

    rows: ComparisonRows
    schedule: Schedule
    packer: Packer
    share: tuple[int, int]
    readers: int = READERS

    @classmethod
    def chosen(
        cls,
        rows: ComparisonRows,
        schedule: Schedule,
        batch_size: int,
        share: tuple[int, int],
        unit: int,
        shapes: RowShapes,
    ) -> Batches:
        """Chooses the layouts that suit these batches.

        Args:
            rows: the data.
            schedule: comparisons of every batch.
            batch_size: comparisons in a full batch, a multiple of `unit`.
            share: index of this process's share of the rows, and number of shares.
            unit: rows of a batch come in multiples of this.
            shapes: how many layouts may be chosen, and what a row costs.
        """
        packer = choose(
            rows.sizes, rows.shape, batch_size, schedule, unit, shapes.most, shapes.cost
        )
        return cls(rows, schedule, packer, share)

    def __len__(self) -> int:
        return len(self.schedule)

    def __getitem__(self, index: int) -> TreeBatch:
        """Returns this share of the rows of one step, [B, ...]."""
        layout, packed = self.packer(self.schedule[index])
        packed += [[]] * (layout.rows - len(packed))
        number, count = self.share
        local = layout.rows // count
        mine = packed[number * local : (number + 1) * local]
        rows = self.rows
        if rows.images.remote:
            rows = rows.read(itertools.chain(*mine), self.readers)
        return stack_rows([rows.row(members, layout.shape) for members in mine])

    def iterate(self, processes: int = 0) -> Any:
        """Returns an iterator over the steps, with `get_state`, `set_state` and `close`.

        Its state is one integer, the step, and valid for any number of shares and processes.

        Args:
            processes: number of processes that read ahead; 0 reads in threads of this one.
        """
        import grain

        tiles = max(x.rows * x.shape.tiles for x in self.packer.layouts) // self.share[1]
        image = self.rows.images
        size = tiles * math.prod(image.shape) * np.dtype(image.dtype).itemsize
        ahead = int(np.clip(_AHEAD_BYTES // max(size, 1), 2, 8))
        if processes:
            dataset = grain.MapDataset.source(self)
            return ProcessIterator(dataset, processes, max(ahead // processes, 1))
        # Each thread prepares a batch.
        shared = dataclasses.replace(self, readers=READERS // ahead)
        dataset = grain.MapDataset.source(shared)
        options = grain.ReadOptions(num_threads=ahead, prefetch_buffer_size=ahead)
        return iter(dataset.to_iter_dataset(options))
