"""What the model is asked of one prompt: the clean variant, and one under each corruption.

What lives here: trunks, tiles and layouts of the variants of a prompt, and their sizes before any
image is decoded. What does not: the images under corruptions (`corrupted.py`), answering
(`rollouts.py`).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from seva_jax.batches.encoded import ImageTokens
from seva_jax.batches.trees import joint_layout, trunk_positions
from seva_jax.corrupt import Corruption
from seva_jax.corrupt.base import changed_size
from seva_jax.images import ImageProcessing
from seva_jax.inference.corrupted import corrupted_prompt, prompt_images
from seva_jax.text import EncodedTree, Encoder
from seva_jax.types import ExampleError, Frame, ImageLayout, ImageSize, Prompt, View


class Variant(NamedTuple):
    """What the model is asked once.

    Attributes:
        trunk: int32 [S], token ids.
        tiles_IHWC: float32, the tiles of all images; a changed sequence may have fewer images.
        images: the layout of all images together.
        positions: int32 [S], or [S, 3], positions of the trunk, see `trunk_positions`.
    """

    trunk: np.ndarray
    tiles_IHWC: np.ndarray
    images: ImageLayout
    positions: np.ndarray


@dataclasses.dataclass(frozen=True)
class PromptVariants:
    """Makes the variants of prompts.

    Attributes:
        encoder: text to tokens, with the generation template.
        processing: image pipeline.
        seed: seed of corruptions.
    """

    encoder: Encoder
    processing: ImageProcessing
    seed: int

    def __call__(
        self,
        prompt: Prompt,
        load_image: Callable[[str], np.ndarray],
        corruptions: Sequence[Corruption],
    ) -> list[Variant]:
        """Returns the clean variant of a prompt, then one for each corruption.

        Raises:
            ExampleError: an image cannot be read, or a variant does not fit the model.
        """
        trees = self.encoder.trees(View(each, ()) for each in self._asked(prompt, corruptions))
        images = prompt_images(prompt, load_image, self.processing, corruptions, self.seed)
        variants, layouts = list[Variant](), self.encoder.layouts
        for tree, (tiles_IHWC, sizes) in zip(trees, images, strict=True):
            trunk, own = self._fitted(tree, lambda _, known=sizes: known)
            joint = joint_layout(own, layouts.tile_features, layouts.blended)
            is_image_S = trunk == self.encoder.image_token_id
            positions, _ = trunk_positions(is_image_S, own, layouts.native)
            variants.append(Variant(trunk, tiles_IHWC, joint, positions))
        return variants

    def sizes(
        self, prompts: Sequence[Prompt], corruptions: Sequence[Corruption]
    ) -> list[tuple[int, int]]:
        """Returns the most tokens and tiles of each prompt's variants; 0 if it is not answered."""
        all_asked = list[list[Prompt]]()
        for prompt in prompts:
            try:
                all_asked.append(self._asked(prompt, corruptions))
            except ExampleError:
                all_asked.append([])
        # Most corruptions ask the same.
        distinct = [list({id(asked): asked for asked in each}.values()) for each in all_asked]
        encoded = self.encoder.trees(View(asked, ()) for each in distinct for asked in each)
        out = []
        for each, some in zip(all_asked, distinct, strict=True):
            trees = {id(asked): next(encoded) for asked in some}
            try:
                variants = [
                    self._fitted(trees[id(asked)], functools.partial(_sizes_under, corruption))
                    for asked, corruption in zip(each, [None, *corruptions], strict=False)
                ]
                most = [(len(trunk), sum(x.tiles for x in own)) for trunk, own in variants]
                lengths, tiles = zip(*most, strict=True) if most else ((0,), (0,))
                out.append((max(lengths), max(tiles)))
            except ExampleError:
                out.append((0, 0))
        return out

    def _fitted(
        self,
        tree: EncodedTree | ExampleError,
        change: Callable[[tuple[ImageSize, ...]], tuple[ImageSize, ...]],
    ) -> tuple[np.ndarray, tuple[ImageLayout, ...]]:
        """Returns the trunk of a prompt whose images have changed, and their layouts.

        Args:
            tree: the encoded prompt, or why it has no tokens.
            change: from the sizes of its images to those after the change.

        Raises:
            ExampleError: the error in the place of the tree, or the trunk leaves no room to answer.
        """
        if isinstance(tree, ExampleError):
            raise tree
        tokens, trunk, sizes = ImageTokens.of(self.encoder), tree.trunk, tree.sizes
        layouts = before = tokens.layouts(sizes)
        if not self.processing.one_layout and (changed := change(sizes)) != sizes:
            layouts = tokens.layouts(changed)
            trunk = tokens.expand(tokens.collapse(trunk, before), layouts)
        self.encoder.fit(trunk, trunk[:1])  # room for at least one token
        return trunk, layouts

    def _asked(self, prompt: Prompt, corruptions: Sequence[Corruption]) -> list[Prompt]:
        """Returns the prompt, and what is asked under each corruption."""
        return [
            prompt,
            *(corrupted_prompt(prompt, c, i, self.seed) for i, c in enumerate(corruptions)),
        ]


def _sizes_under(
    corruption: Corruption | None, sizes: tuple[ImageSize, ...]
) -> tuple[ImageSize, ...]:
    """Returns the sizes of a prompt's images under a corruption; None changes nothing."""
    if corruption is None or corruption.space != "pixels":
        return sizes
    return tuple(x if isinstance(x, Frame) else changed_size(corruption, x) for x in sizes)
