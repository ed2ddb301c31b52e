"""Preprocesses images for LLaVA-NeXT (LLaVA-1.6).

What lives here: `LlavaNextProcessing`. What does not: choosing a grid of tiles and laying out its
features (`any_resolution.py`).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from typing_extensions import override

from seva_jax.images.any_resolution import (
    AnyResolution,
    Span,
    picture_features,
    side_of,
    unpadded,
    with_newlines,
)
from seva_jax.images.preprocess import still
from seva_jax.images.processor_files import Fields
from seva_jax.images.tiled import Grid, read_only
from seva_jax.types import NEWLINE, ImageLayout, ImageSize, Size

_KIND = "LlavaNextImageProcessor"


@dataclasses.dataclass(frozen=True)
class LlavaNextProcessing(AnyResolution):
    """Preprocesses images as transformers' LlavaNextImageProcessor.

    An image becomes the features of the tile of the whole picture, then those of the grid without
    its padding, each row of which ends with a newline.

    Attributes:
        resolutions: heights and widths in pixels to choose from, multiples of `size`; called
            `image_grid_pinpoints` in transformers.
    """

    resolutions: tuple[Size, ...] = ((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008))

    @classmethod
    @override
    def _own_fields(cls, fields: Fields, directory: Path) -> dict[str, Any]:
        return cls.grid_fields(fields, _KIND, crops=True)

    @override
    def to_processor_config(self) -> dict[str, Any]:
        return super().to_processor_config() | {
            "image_processor_type": _KIND,
            "size": {"shortest_edge": self.size},
            "do_center_crop": True,
            "crop_size": {"height": self.size, "width": self.size},
        }

    @override
    def layouts(self, sizes: Sequence[ImageSize], features: int) -> tuple[ImageLayout, ...]:
        side = side_of(features)
        images = still(sizes)
        grids = [self.grid(size) for size in images]
        return tuple(
            _layout(grid, side, unpadded(size, grid, side))
            for size, grid in zip(images, grids, strict=True)
        )


@functools.lru_cache(2**10)
def _layout(grid: Grid, side: int, span: Span) -> ImageLayout:
    """Returns the layout of a picture that covers a span of a grid of tiles."""
    whole_N = np.arange(side * side, dtype=np.int32)
    rows_N = with_newlines(picture_features(grid, side, span), NEWLINE)
    return read_only(ImageLayout(1 + grid[0] * grid[1], np.concatenate([whole_N, rows_N])))
