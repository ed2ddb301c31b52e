"""Lays tokenised examples out as tree rows (`seva_jax.types.TreeBatch`). NumPy only.

What lives here: examples, the shape of a row, and packing examples into one row. What does not:
which examples share a row (`packing.py`), batches (`pipeline.py`).
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from seva_jax.types import TEXT, Blend, DataError, ImageLayout, Native, TreeBatch


@dataclasses.dataclass(frozen=True)
class TreeExample:
    """One comparison, tokenised.

    Attributes:
        trunk: int32 token ids, with every image already expanded to its image tokens.
        branches: int32 token ids of each answer, closing token included.
        images_IX: tiles of its images as the model gets them, in order of appearance.
        weight: weight in the mean over comparisons.
        reference: float32 reference log-probs of each branch's tokens, or None.
        index: position in the data set.
        scores: score of each branch, or empty.
        spans: for each branch, 1 at tokens that differ; or None.
        more: further trees of the comparison. Their branches follow these; reference, scores and
            spans cover all branches, and everything else is taken from the first tree.
        layouts: the layout of each image; None where the features of all tiles, in order, are the
            image tokens.
    """

    trunk: np.ndarray
    branches: tuple[np.ndarray, ...]
    images_IX: np.ndarray
    weight: float = 1.0
    reference: tuple[np.ndarray, ...] | None = None
    index: int = -1
    scores: tuple[float, ...] = ()
    spans: tuple[np.ndarray, ...] | None = None
    more: tuple[TreeExample, ...] = ()
    layouts: tuple[ImageLayout, ...] | None = None

    @property
    def trees(self) -> tuple[TreeExample, ...]:
        """All trees."""
        return (self, *self.more)

    @property
    def all_branches(self) -> list[np.ndarray]:
        """Branches of all trees."""
        return [branch for tree in self.trees for branch in tree.branches]

    @property
    def length(self) -> int:
        """Row positions the example takes."""
        return sum(len(tree.trunk) for tree in self.trees) + self.num_targets

    @property
    def num_targets(self) -> int:
        """Tokens of all answers."""
        return sum(map(len, self.all_branches))

    @property
    def num_tiles(self) -> int:
        """Tiles of the images of all trees."""
        return sum(len(tree.images_IX) for tree in self.trees)


def differing(chosen: np.ndarray, rejected: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns 1 at the tokens of two answers that an alignment replaces by others.

    The alignment is that of `difflib`: the longest common run of tokens, then the same to the left
    and right of it. As in RRPO's release, a phrase that only one of the answers has is not marked,
    because nothing stands in its place in the other one.

    >>> [x.tolist() for x in differing(np.array([5, 6, 7, 2]), np.array([5, 8, 9, 7, 2]))]
    [[0, 1, 0, 0], [0, 1, 1, 0, 0]]
    >>> [x.tolist() for x in differing(np.array([5, 7, 2]), np.array([5, 8, 7, 2]))]
    [[0, 0, 0], [0, 0, 0, 0]]
    """
    matcher = difflib.SequenceMatcher(None, chosen.tolist(), rejected.tolist(), autojunk=False)
    spans = np.zeros(len(chosen), np.int32), np.zeros(len(rejected), np.int32)
    a = b = 0  # where the last common run ended
    for block in matcher.get_matching_blocks():  # the last one is empty, at the ends
        if block.a > a and block.b > b:
            spans[0][a : block.a] = 1
            spans[1][b : block.b] = 1
        a, b = block.a + block.size, block.b + block.size
    return spans


@dataclasses.dataclass(frozen=True)
class RowShape:
    """Static sizes of a row: one compilation for each distinct value.

    Attributes:
        length: S, positions.
        comparisons: C.
        branches: K.
        answer: T, tokens of the longest branch.
        tiles: I.
        targets: A, tokens of all answers.
    """

    length: int
    comparisons: int
    branches: int
    answer: int
    tiles: int
    targets: int

    @classmethod
    def covering(cls, examples: Sequence[TreeExample]) -> RowShape:
        """Returns the smallest shape that holds each example in a row of its own, rounded up."""
        return cls(
            length=rounded(max(e.length for e in examples)),
            comparisons=1,
            branches=max(len(e.all_branches) for e in examples),
            answer=rounded(max(len(b) for e in examples for b in e.all_branches)),
            tiles=max(e.num_tiles for e in examples),
            targets=rounded(max(e.num_targets for e in examples)),
        )


def rounded(length: int) -> int:
    """Rounds up to a multiple of 8, or of 64 where that adds little, so that few shapes occur."""
    multiple = 8 if length <= 256 else 64
    return -(-length // multiple) * multiple


def pack_row(
    examples: Sequence[TreeExample],
    shape: RowShape,
    *,
    image_shape: tuple[int, ...],
    image_dtype: Any = np.float32,
    tile_features: int,
    image_token_id: int,
    pad_id: int,
    blended: int = 1,
    native: bool = False,
) -> TreeBatch:
    """Lays examples one after another in a single row.

    Args:
        examples: at most `shape.comparisons`; fewer leave comparisons of weight 0.
        shape: sizes of the row.
        image_shape: shape of a tile as the model gets it, see `TreeBatch.images_BIX`.
        image_dtype: its dtype.
        tile_features: features of a tile, P.
        image_token_id: the token at the positions of images.
        pad_id: the token at unused positions.
        blended: how many features an image token of the model is a sum of, M; 1 makes no `blend`.
        native: see `Layouts.native`.

    Returns:
        A `TreeBatch` without the leading B dim.

    Raises:
        DataError: the examples do not fit in the row.
    """
    S, C, K, T = shape.length, shape.comparisons, shape.branches, shape.answer
    tokens = np.full(S, pad_id, np.int32)
    tree, branch = np.zeros(S, np.int32), np.zeros(S, np.int32)
    positions = np.zeros((S, 3) if native else S, np.int32)
    place = np.zeros((shape.tiles, 5), np.int32)
    patch = np.full(S, TEXT, np.int32)
    blend = Blend(np.zeros((S, blended), np.int32), np.zeros((S, blended), np.float32))
    pixels = np.zeros((shape.tiles, *image_shape), image_dtype)
    source, target = np.zeros(shape.targets, np.int32), np.zeros(shape.targets, np.int32)
    slot = np.zeros((C, K, T), np.int32)
    mask, reference = np.zeros((C, K, T), np.float32), np.zeros((C, K, T), np.float32)
    weight, index = np.zeros(C, np.float32), np.full(C, -1, np.int32)
    scores, spans = np.zeros((C, K), np.float32), np.zeros((C, K, T), np.float32)

    start = num_tiles = num_trees = num_branches = num_targets = num_pictures = 0
    for c, example in enumerate(examples):
        sizes = {
            "positions": (start + example.length, S),
            "comparisons": (c + 1, C),
            "branches": (len(example.all_branches), K),
            "answer tokens": (max(map(len, example.all_branches)), T),
            "image tiles": (num_tiles + example.num_tiles, shape.tiles),
            "answer tokens in all": (num_targets + example.num_targets, shape.targets),
        }
        for what, (need, have) in sizes.items():
            if need > have:
                raise DataError(f"example {example.index} needs {need} {what}, the row has {have}")
        k = 0  # branch of the comparison
        for part in example.trees:
            trunk_length, tiles = len(part.trunk), len(part.images_IX)
            image_at = start + np.flatnonzero(part.trunk == image_token_id)
            layouts = part.layouts
            if layouts is None:
                every_N = np.arange(tiles * tile_features, dtype=np.int32)
                layouts = (ImageLayout(tiles, every_N),)
            own = joint_layout(layouts, tile_features, blended)
            if len(image_at) != len(own.patch_N) or tiles != own.tiles:
                raise DataError(
                    f"example {example.index} has {len(image_at)} image tokens and {tiles} tiles, "
                    f"and its images need {len(own.patch_N)} and {own.tiles}"
                )
            num_trees += 1
            at = start + trunk_length
            tree[start : at + sum(map(len, part.branches))] = num_trees
            tokens[start:at] = part.trunk
            positions[start:at], after = trunk_positions(
                part.trunk == image_token_id, layouts, native
            )
            first = num_tiles * tile_features  # of its features in the row
            patch[image_at] = np.where(own.patch_N >= 0, own.patch_N + first, own.patch_N)
            if own.blend is not None:
                blend.index_BSM[image_at] = own.blend.index_BSM + first
                blend.weight_BSM[image_at] = own.blend.weight_BSM
            pixels[num_tiles : num_tiles + tiles] = part.images_IX
            if own.native is not None:
                here = slice(num_tiles, num_tiles + tiles)
                place[here], num_pictures = places_after(own.native, num_pictures)
            for answer in part.branches:
                size = len(answer)
                num_branches += 1
                tokens[at : at + size] = answer
                along = after + np.arange(size)
                positions[at : at + size] = along[:, None] if native else along
                branch[at : at + size] = num_branches
                # Each answer token is predicted by the one before it, the first by the trunk's
                # last.
                here = slice(num_targets, num_targets + size)
                source[here] = np.r_[start + trunk_length - 1, np.arange(at, at + size - 1)]
                target[here] = answer
                slot[c, k, :size] = np.arange(num_targets, num_targets + size)
                num_targets += size
                mask[c, k, :size] = 1
                if example.reference is not None:
                    reference[c, k, :size] = example.reference[k]
                if example.spans is not None:
                    spans[c, k, :size] = example.spans[k]
                k, at = k + 1, at + size
            start, num_tiles = at, num_tiles + tiles
        weight[c], index[c] = example.weight, example.index
        scores[c, : len(example.scores)] = example.scores
    return TreeBatch(
        tokens, positions, tree, branch, patch, pixels,
        source, target, slot, mask, weight, reference, index, scores, spans,
        blend if blended > 1 else None,
        place if native else None,
    )  # fmt: skip


def trunk_positions(
    is_image_S: np.ndarray, layouts: Sequence[ImageLayout], native: bool
) -> tuple[np.ndarray, int]:
    """Returns the positions of a trunk's tokens, and the position of what follows it.

    Text counts on from the largest position of an image before it, not from its number of tokens.

    Args:
        is_image_S: whether a token is of an image.
        layouts: the layout of each image, in order.
        native: see `Layouts.native`.

    Returns:
        int32 [S], or [S, 3] if `native`; and the position after the largest.
    """
    length = len(is_image_S)
    if not native:
        return np.arange(length, dtype=np.int32), length
    positions = np.zeros((length, 3), np.int32)
    starts = np.flatnonzero(is_image_S)
    at = next_position = taken = 0
    for layout in layouts:
        assert layout.native is not None, "all images of such a model keep their own size"
        first, num = int(starts[taken]), layout.num_tokens
        positions[at:first] = next_position + np.arange(first - at)[:, None]
        next_position += first - at
        positions[first : first + num] = next_position + layout.native.position_N3
        next_position += layout.native.advance
        at, taken = first + num, taken + num
    positions[at:] = next_position + np.arange(length - at)[:, None]
    return positions, int(positions.max()) + 1


def places_after(native: Native, pictures: int) -> tuple[np.ndarray, int]:
    """Returns the places of an image's tiles in a row, and how many pictures the row has then.

    Args:
        native: the image's.
        pictures: how many pictures precede it in the row.
    """
    place_I5 = native.place_I5.copy()
    place_I5[:, 0] += pictures
    return place_I5, int(place_I5[:, 0].max(initial=pictures))


def joint_layout(layouts: Sequence[ImageLayout], tile_features: int, blended: int) -> ImageLayout:
    """Returns the layouts of several images as one, whose tiles follow one another.

    Of its `native` there are the places of tiles alone: positions depend on the text in between.

    Args:
        layouts: the layout of each image, in order.
        tile_features: features of a tile, P.
        blended: see `pack_row`.
    """
    patches, places = [np.zeros(0, np.int32)], [np.zeros((0, 5), np.int32)]
    parts = [Blend(np.zeros((0, blended), np.int32), np.zeros((0, blended), np.float32))]
    tiles = pictures = 0
    for layout in layouts:
        if layout.native is not None:
            place_I5, pictures = places_after(layout.native, pictures)
            places.append(place_I5)
        first, patch_N = tiles * tile_features, layout.patch_N
        patches.append(np.where(patch_N >= 0, patch_N + first, patch_N))
        if blended > 1:
            assert layout.blend is not None, "all images of such a model have one"
            parts.append(Blend(layout.blend.index_BSM + first, layout.blend.weight_BSM))
        tiles += layout.tiles
    joined = Blend(*map(np.concatenate, zip(*parts, strict=True))) if blended > 1 else None
    native = None
    if len(places) > 1:
        native = Native(np.concatenate(places), np.zeros((0, 3), np.int32), 0)
    return ImageLayout(tiles, np.concatenate(patches), joined, native)


def stack_rows(rows: Sequence[TreeBatch]) -> TreeBatch:
    """Stacks rows without a leading dim into a batch."""
    return jax.tree.map(lambda *leaves: np.stack(leaves), *rows)
