"""Comparisons to batches: a Grain pipeline with a one-integer position.

Example i of epoch e is fixed by the seed, for any number of hosts and reading threads. The last
batch is filled up with rows of weight 0, so every comparison counts exactly once an epoch.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import grain
import numpy as np
from grain.experimental import ElasticIterator

from seva_jax.data.trees import RowShape, TreeExample, pack_row, stack_rows
from seva_jax.images.preprocess import ImageProcessing
from seva_jax.text.encode import Encoder
from seva_jax.types import Comparison, ExampleError, TreeBatch


@dataclasses.dataclass(frozen=True)
class ComparisonRows:
    """Random access to comparisons as rows.

    Attributes:
        comparisons: what to train on.
        encoder: text to tokens.
        processing: image pipeline.
        load_image: image name -> uint8 [H, W, 3].
        shape: sizes of every row.
        reference: reference log-probs of every comparison's answers, or None.
    """

    comparisons: Sequence[Comparison]
    encoder: Encoder
    processing: ImageProcessing
    load_image: Callable[[str], np.ndarray]
    shape: RowShape
    reference: Sequence[tuple[np.ndarray, ...]] | None = None

    def __len__(self) -> int:
        return len(self.comparisons)

    def __getitem__(self, index: int) -> TreeBatch:
        """One comparison as a row. An image that no longer decodes gives a row of weight 0."""
        comparison = self.comparisons[index]
        tree = self.encoder.encode(
            comparison.prompt.question, len(comparison.prompt.images), comparison.answers
        )
        try:
            pixels = load_pixels(comparison.prompt.images, self.load_image, self.processing)
        except ExampleError:
            return self.empty()
        reference = self.reference[index] if self.reference is not None else None
        example = TreeExample(
            tree.trunk, tree.branches, pixels, comparison.weight, reference, index
        )
        return self._pack([example])

    def empty(self) -> TreeBatch:
        """A row without comparisons."""
        return self._pack([])

    def _pack(self, examples: list[TreeExample]) -> TreeBatch:
        return pack_row(
            examples,
            self.shape,
            image_size=self.processing.size,
            tokens_per_image=self.encoder.tokens_per_image,
            image_token_id=self.encoder.image_token_id,
            pad_id=self.encoder.pad_id,
        )


def load_pixels(
    images: Sequence[str],
    load_image: Callable[[str], np.ndarray],
    processing: ImageProcessing,
) -> np.ndarray:
    """Preprocessed images [I, H, W, 3], float32; I may be 0."""
    size = processing.size
    pixels = [processing(load_image(name)) for name in images]
    return np.stack(pixels) if pixels else np.zeros((0, size, size, 3), np.float32)


class Encodable(NamedTuple):
    """Comparisons whose text fits.

    Attributes:
        comparisons: those, in order.
        drops: how many do not fit, by reason.
        num_cut: answers that were cut to fit.
        shape: a row shape that holds each of them; None if there are none.
    """

    comparisons: list[Comparison]
    drops: collections.Counter[str]
    num_cut: int
    shape: RowShape | None


def encodable(comparisons: Sequence[Comparison], encoder: Encoder) -> Encodable:
    """Sorts out comparisons whose text cannot be encoded, and measures the others."""
    kept, sizes, num_cut = [], [], 0
    drops: collections.Counter[str] = collections.Counter()
    for comparison in comparisons:
        num_images = len(comparison.prompt.images)
        try:
            tree = encoder.encode(comparison.prompt.question, num_images, comparison.answers)
        except ExampleError as error:
            drops[error.reason] += 1
            continue
        if tree.truncated and len({b.tobytes() for b in tree.branches}) < len(tree.branches):
            drops["equal answers after cutting"] += 1
            continue
        num_cut += tree.truncated
        kept.append(comparison)
        sizes.append(TreeExample(tree.trunk, tree.branches, np.empty((num_images, 0))))
    return Encodable(kept, drops, num_cut, RowShape.covering(sizes) if sizes else None)


class _Order:
    """`num_batches * batch_size` indices: shuffled epochs, then None."""

    def __init__(self, num: int, epochs: int, seed: int, total: int) -> None:
        # shuffle(seed=s) would give epoch 1 of seed s the order of epoch 0 of seed s + 1.
        self._order = grain.MapDataset.range(num).seed(seed).shuffle().repeat(epochs)
        self._total = total

    def __len__(self) -> int:
        return self._total

    def __getitem__(self, index: int) -> int:
        found = self._order[index] if index < len(self._order) else None
        return -1 if found is None else found


def num_steps(num: int, batch_size: int, epochs: int, repeat: int, max_steps: int) -> int:
    """Optimiser steps of a run over `num` comparisons."""
    steps = -(-num * repeat * epochs // batch_size)
    return min(steps, max_steps) if max_steps else steps


def batches(
    rows: ComparisonRows,
    shard: tuple[int, int],
    batch_size: int,
    steps: int,
    epochs: int,
    repeat: int,
    seed: int,
) -> Any:
    """One share of every batch, with `get_state` and `set_state`.

    Args:
        rows: the data.
        shard: which share, of how many.
        batch_size: rows of a batch in all shares.
        steps: number of batches.
        epochs: passes; each is shuffled differently.
        repeat: how many times the list is concatenated with itself before it is shuffled.
        seed: of the order.

    Returns:
        A Grain iterator over `TreeBatch`es of NumPy arrays. Its state is one integer and valid
        for any number of shares.
    """
    order = _Order(len(rows) * repeat, epochs, seed, steps * batch_size)
    dataset = grain.MapDataset.source(order).map(
        lambda i: rows.empty() if i < 0 else rows[int(i) % len(rows)]
    )
    return iter(ElasticIterator(dataset, batch_size, grain.sharding.ShardOptions(*shard)))


def in_order(rows: ComparisonRows, shard: tuple[int, int], batch_size: int) -> Iterator[TreeBatch]:
    """One share of batches that hold all rows once, in order, filled up with empty rows."""
    index, count = shard
    local = batch_size // count

    def row(i: int) -> TreeBatch:
        at = i // local * batch_size + index * local + i % local
        return rows[at] if at < len(rows) else rows.empty()

    total = -(-len(rows) // batch_size) * local
    dataset = grain.MapDataset.range(total).map(lambda i: row(int(i)))
    yield from dataset.batch(local, batch_fn=stack_rows).to_iter_dataset()
