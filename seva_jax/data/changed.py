"""Pairs with a second view of changed images, for objectives that compare images.

What lives here: `ChangedImages`. What does not: the changes (`seva_jax/corrupt`) and the objectives
(`seva_jax/objectives/visual.py`).
"""

from __future__ import annotations

import dataclasses
from typing import Annotated

import numpy as np
from typing_extensions import override

from seva_jax.corrupt import (
    Corruption,
    PixelNoise,
    apply_pixels,
    changed_size,
    corruption_key,
)
from seva_jax.data.sources import PreferenceSet, PreferenceSource, PromptSource
from seva_jax.data.wrapped import opened_pairs, require_single_view, rewritten
from seva_jax.ranges import FROM_0
from seva_jax.types import Comparison, DataError, Size, View

_PREFIX = "changed:"


@dataclasses.dataclass(frozen=True)
class ChangedImages(PreferenceSource):
    """The pairs of a source, each with its chosen answer repeated for changed images.

    The seed and the name of an image determine how it is changed. Scores of the source are
    dropped, because none of them belongs to the new side. Pairs without images ("no image") or with
    a second view already ("several views") are left out and counted.

    Attributes:
        source: the pairs.
        change: how images are changed; its space must be "pixels".
        keep_rejected: keep the rejected answers, as POVID's second stage needs. Without them, the
            chosen answer to the changed images is the only rejected side (MMedPO's visual pairs).
        seed: seed of the changes.
    """

    source: PromptSource = PreferenceSource()
    change: Corruption = PixelNoise()
    keep_rejected: bool = True
    seed: Annotated[int, FROM_0] = 0

    @override
    def open(self) -> PreferenceSet:
        if self.change.space != "pixels":
            raise DataError(
                f"ChangedImages: {type(self.change).__name__} does not work on pixels; give a "
                "change of pixels, such as PixelNoise"
            )
        data = opened_pairs(self.source, "ChangedImages")

        def load_image(name: str) -> np.ndarray:
            original = name.removeprefix(_PREFIX)
            image_HWC = data.load_image(original)
            if original == name:
                return image_HWC
            return apply_pixels(self.change, corruption_key(self.seed, original, 0), image_HWC)

        def read_size(name: str) -> Size:
            original = name.removeprefix(_PREFIX)
            size = data.image_size(original)
            return size if original == name else changed_size(self.change, size)

        def pair(comparison: Comparison) -> Comparison:
            require_single_view(comparison, "change")
            prompt = comparison.prompt
            names = tuple(_PREFIX + name for name in prompt.images)
            again = View(dataclasses.replace(prompt, images=names), comparison.answers[:1])
            answers = comparison.answers if self.keep_rejected else comparison.answers[:1]
            return dataclasses.replace(
                comparison, answers=answers, scores=(), more=(again,), spans=()
            )

        return dataclasses.replace(
            rewritten(data, pair), load_image=load_image, read_image=None, read_size=read_size
        )
