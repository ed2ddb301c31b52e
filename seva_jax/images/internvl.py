"""Preprocesses images for InternVL (from version 1.5 on).

What lives here: `InternvlProcessing`, the grid of tiles, and its tokens. What does not: the pixel
unshuffle, after which a tile has a quarter of its patches as features
(`seva_jax/models/`).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from typing_extensions import override

from seva_jax.images.preprocess import checked, still, stretch
from seva_jax.images.processor_files import Fields
from seva_jax.images.tiled import Grid, TiledProcessing, read_only
from seva_jax.types import DataError, ImageLayout, ImageSize, Size

_KIND = "GotOcr2ImageProcessor"
_MOST_TILES = 256


@dataclasses.dataclass(frozen=True)
class InternvlProcessing(TiledProcessing):
    """Preprocesses images as transformers' InternVLProcessor, with a GotOcr2ImageProcessor.

    An image is stretched to the grid of tiles whose shape is most like its own, and becomes the
    features of these tiles, row by row, then those of a tile of the whole picture unless the grid
    is one tile.

    Attributes:
        size: height and width of a tile in pixels.
        mean: mean to subtract from each of RGB, which are scaled to 0-1 before.
        std: standard deviation to divide each of RGB by, on the same scale.
        pad_colour: of no effect.
        min_tiles: smallest number of tiles of a grid.
        max_tiles: largest number of tiles of a grid; with 1, images have one tile.
    """

    size: int = 448
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    pad_colour: tuple[int, int, int] = (123, 116, 103)
    min_tiles: int = 1
    max_tiles: int = 12

    @override
    def __post_init__(self):
        super().__post_init__()
        if not 1 <= self.min_tiles <= self.max_tiles <= _MOST_TILES:
            raise DataError(
                f"{type(self).__name__}: min_tiles is {self.min_tiles} and max_tiles "
                f"{self.max_tiles}; give 1 <= min_tiles <= max_tiles <= {_MOST_TILES}"
            )

    @classmethod
    @override
    def _own_fields(cls, fields: Fields, directory: Path) -> dict[str, Any]:
        fields.require_kind(_KIND)
        # `crop_to_patches` is not read: InternVLProcessor sets it whatever the file says.
        most = fields.count("max_patches", 12, _MOST_TILES)
        least = fields.count("min_patches", 1, _MOST_TILES)
        if least > most:
            raise fields.unsupported("min_patches", f"more than max_patches ({most})")
        return {"size": fields.square("size"), "min_tiles": least, "max_tiles": most}

    @override
    def to_processor_config(self) -> dict[str, Any]:
        return super().to_processor_config() | {
            "image_processor_type": _KIND,
            "size": {"height": self.size, "width": self.size},
            "crop_to_patches": True,
            "min_patches": self.min_tiles,
            "max_patches": self.max_tiles,
        }

    @override
    def view(self, tiles_IHWC: np.ndarray, size: ImageSize) -> np.ndarray:
        return tiles_IHWC[-1]

    @property
    @override
    def one_layout(self) -> bool:
        return self.max_tiles == 1

    def grid(self, size: Size) -> Grid:
        """Returns the rows and columns of tiles that an image is cut into.

        Args:
            size: height and width of the decoded image.
        """
        return best_grid(size, self.size, self.min_tiles, self.max_tiles)

    @override
    def tiles(self, image_HWC: np.ndarray, alone: bool = True) -> np.ndarray:
        image = checked(image_HWC)
        rows, columns = self.grid((image.height, image.width))
        if rows * columns == 1:
            return self(image_HWC)[None]
        canvas = stretch(image, columns * self.size, rows * self.size, self.resample)
        return np.concatenate([self._cut(canvas), self(image_HWC)[None]])

    @override
    def places(self, size: Size, side: int, alone: bool = True) -> np.ndarray:
        rows, columns = grid = self.grid(size)
        picture = rows * self.size, columns * self.size
        whole, *cut = self._cut_places(side, grid, picture)
        return np.stack([*cut, whole] if len(cut) > 1 else [whole])

    @override
    def layouts(self, sizes: Sequence[ImageSize], features: int) -> tuple[ImageLayout, ...]:
        if self.one_layout:
            return (_layout(1, features),) * len(sizes)
        grids = (self.grid(size) for size in still(sizes))
        return tuple(
            _layout(rows * columns + (rows * columns > 1), features) for rows, columns in grids
        )


@functools.lru_cache
def _layout(tiles: int, features: int) -> ImageLayout:
    return read_only(ImageLayout(tiles, np.arange(tiles * features, dtype=np.int32)))


@functools.lru_cache(2**14)
def best_grid(size: Size, tile: int, min_tiles: int, max_tiles: int) -> Grid:
    """Returns the grid of tiles whose shape is most like an image's.

    Among equally good grids, such as 1 x 1 and 2 x 2, the last is taken of which the image has more
    than half of the pixels. The arithmetic is that of `get_optimal_tiled_canvas` in transformers.

    Args:
        size: height and width of the image.
        tile: height and width of a tile.
        min_tiles: smallest number of tiles.
        max_tiles: largest number of tiles.
    """
    height, width = size
    best, least = (1, 1), float("inf")
    for rows, columns in _grids(min_tiles, max_tiles):
        difference = abs(width / height - columns / rows)
        enough = height * width > 0.5 * tile * tile * rows * columns
        if difference < least or (difference == least and enough):
            best, least = (rows, columns), difference
    return best


@functools.lru_cache
def _grids(min_tiles: int, max_tiles: int) -> tuple[Grid, ...]:
    """Returns all grids with some number of tiles, by number of tiles, then of columns."""
    sides = range(1, max_tiles + 1)
    grids = ((rows, columns) for columns in sides for rows in sides)
    chosen = (grid for grid in grids if min_tiles <= grid[0] * grid[1] <= max_tiles)
    return tuple(sorted(chosen, key=lambda grid: grid[0] * grid[1]))
