"""Tokenised examples laid out as tree rows (`seva_jax.types.TreeBatch`). NumPy only."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from seva_jax.types import DataError, TreeBatch


@dataclasses.dataclass(frozen=True)
class TreeExample:
    """One comparison, tokenised.

    Attributes:
        trunk: int32 token ids, with every image already expanded to its image tokens.
        branches: int32 token ids of each answer, closing token included.
        images_IX: images as the model gets them, in order of appearance.
        weight: weight in the mean over comparisons.
        reference: float32 reference log-probs of each branch's tokens, or None.
        index: position in the data set.
    """

    trunk: np.ndarray
    branches: tuple[np.ndarray, ...]
    images_IX: np.ndarray
    weight: float = 1.0
    reference: tuple[np.ndarray, ...] | None = None
    index: int = -1

    @property
    def length(self) -> int:
        """Row positions the example takes."""
        return len(self.trunk) + self.num_targets

    @property
    def num_targets(self) -> int:
        """Tokens of all answers."""
        return sum(map(len, self.branches))


@dataclasses.dataclass(frozen=True)
class RowShape:
    """Static sizes of a row: one compilation for each distinct value.

    Attributes:
        length: S, positions.
        comparisons: C.
        branches: K.
        answer: T, tokens of the longest branch.
        images: I.
        targets: A, tokens of all answers.
    """

    length: int
    comparisons: int
    branches: int
    answer: int
    images: int
    targets: int

    @classmethod
    def covering(cls, examples: Sequence[TreeExample]) -> RowShape:
        """The smallest shape that holds each example in a row of its own, sizes rounded up."""
        return cls(
            length=rounded(max(e.length for e in examples)),
            comparisons=1,
            branches=max(len(e.branches) for e in examples),
            answer=rounded(max(len(b) for e in examples for b in e.branches)),
            images=max(len(e.images_IX) for e in examples),
            targets=rounded(max(e.num_targets for e in examples)),
        )


def rounded(length: int) -> int:
    """Up to a multiple of 8, or of 64 where that adds little: similar data share a compilation."""
    multiple = 8 if length <= 256 else 64
    return -(-length // multiple) * multiple


def pack_row(
    examples: Sequence[TreeExample],
    shape: RowShape,
    *,
    image_shape: tuple[int, ...],
    image_dtype: Any = np.float32,
    tokens_per_image: int,
    image_token_id: int,
    pad_id: int,
) -> TreeBatch:
    """Lays examples one after another in a single row.

    Args:
        examples: at most `shape.comparisons`; fewer leave comparisons of weight 0.
        shape: sizes of the row.
        image_shape: of an image as the model gets it, see `TreeBatch.images_BIX`.
        image_dtype: of the same.
        tokens_per_image: positions an image takes in a trunk.
        image_token_id: marks those positions.
        pad_id: token of unused positions.

    Returns:
        A `TreeBatch` without the leading B dim.

    Raises:
        DataError: the examples do not fit in the row.
    """
    S, C, K, T = shape.length, shape.comparisons, shape.branches, shape.answer
    tokens = np.full(S, pad_id, np.int32)
    positions, tree, branch = (np.zeros(S, np.int32) for _ in range(3))
    patch = np.full(S, -1, np.int32)
    pixels = np.zeros((shape.images, *image_shape), image_dtype)
    source, target = np.zeros(shape.targets, np.int32), np.zeros(shape.targets, np.int32)
    slot = np.zeros((C, K, T), np.int32)
    mask, reference = np.zeros((C, K, T), np.float32), np.zeros((C, K, T), np.float32)
    weight, index = np.zeros(C, np.float32), np.full(C, -1, np.int32)

    start = num_images = num_branches = num_targets = 0
    for c, example in enumerate(examples):
        trunk_length, end = len(example.trunk), start + example.length
        images = len(example.images_IX)
        sizes = {
            "positions": (end, S),
            "comparisons": (c + 1, C),
            "branches": (len(example.branches), K),
            "answer tokens": (max(map(len, example.branches)), T),
            "images": (num_images + images, shape.images),
            "answer tokens in all": (num_targets + example.num_targets, shape.targets),
        }
        for what, (need, have) in sizes.items():
            if need > have:
                raise DataError(f"example {example.index} needs {need} {what}, the row has {have}")
        image_at = np.flatnonzero(example.trunk == image_token_id)
        if len(image_at) != images * tokens_per_image:
            raise DataError(
                f"example {example.index} has {len(image_at)} image tokens for {images} images "
                f"of {tokens_per_image} tokens each"
            )
        tree[start:end] = c + 1
        tokens[start : start + trunk_length] = example.trunk
        positions[start : start + trunk_length] = np.arange(trunk_length)
        patch[start + image_at] = num_images * tokens_per_image + np.arange(len(image_at))
        pixels[num_images : num_images + images] = example.images_IX
        at = start + trunk_length
        for k, answer in enumerate(example.branches):
            size = len(answer)
            num_branches += 1
            tokens[at : at + size] = answer
            positions[at : at + size] = trunk_length + np.arange(size)
            branch[at : at + size] = num_branches
            # Each answer token is predicted by the one before it, the first by the trunk's last.
            here = slice(num_targets, num_targets + size)
            source[here] = np.r_[start + trunk_length - 1, np.arange(at, at + size - 1)]
            target[here] = answer
            slot[c, k, :size] = np.arange(num_targets, num_targets + size)
            num_targets += size
            mask[c, k, :size] = 1
            if example.reference is not None:
                reference[c, k, :size] = example.reference[k]
            at += size
        weight[c], index[c] = example.weight, example.index
        start, num_images = end, num_images + images
    return TreeBatch(
        tokens, positions, tree, branch, patch, pixels,
        source, target, slot, mask, weight, reference, index,
    )  # fmt: skip


def stack_rows(rows: Sequence[TreeBatch]) -> TreeBatch:
    """Rows without a leading dim to a batch."""
    return TreeBatch(*(np.stack(leaves) for leaves in zip(*rows, strict=True)))
