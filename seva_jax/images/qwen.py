"""Preprocesses images for Qwen2-VL, Qwen2.5-VL and Qwen3-VL, which keep their shape and size.

What lives here: `QwenProcessing`, the size that an image is resized to, and the places of its tiles
and tokens. What does not: positions of text between images (`seva_jax/batches/trees.py`).

A tile is a square of 2 x 2 patches of the tower. Tiles are ordered by windows of 4 x 4 tiles, and
row by row in each, because patches of Qwen2.5-VL attend inside windows; tokens are ordered row by
row.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from typing_extensions import override

from seva_jax.images.preprocess import checked, crossed, stretch
from seva_jax.images.processor_files import Fields
from seva_jax.images.tiled import TiledProcessing, cut_tiles, read_only
from seva_jax.types import DataError, ExampleError, ImageLayout, Native, Size

WINDOW = 4  # tiles along a side of a window
MERGE = 2  # patches along a side of a tile
FRAMES = 2  # of a video that a tile shows

_KINDS = ("Qwen2VLImageProcessor",)
_MOST_PIXELS = 2**28
_SMALL = 8  # tiles along a side of an image that is only compared with others
_MOST_ELONGATED = 200  # long side over short side


@dataclasses.dataclass(frozen=True)
class QwenProcessing(TiledProcessing):
    """Preprocesses images as transformers' Qwen2VLImageProcessor.

    An image is resized to multiples of a tile, with about its own shape, and a number of pixels
    within bounds. `max_pixels` decides how many tokens large images take: a token is a tile.

    Attributes:
        size: height and width of a tile in pixels, twice those of a patch.
        pad_colour: of no effect.
        min_pixels: fewest pixels of the resized image.
        max_pixels: most pixels of the resized image.
    """

    size: int = 28
    min_pixels: int = 56 * 56
    max_pixels: int = 28 * 28 * 1280

    @override
    def __post_init__(self):
        super().__post_init__()
        if self.size % MERGE:
            raise DataError(
                f"QwenProcessing.size is {self.size}; a tile is {MERGE} patches wide: give an even "
                "number"
            )
        if not self.size**2 <= self.min_pixels <= self.max_pixels <= _MOST_PIXELS:
            raise DataError(
                f"QwenProcessing: min_pixels is {self.min_pixels} and max_pixels "
                f"{self.max_pixels}; give {self.size**2} (a tile) <= min_pixels <= max_pixels <= "
                f"{_MOST_PIXELS}"
            )

    @classmethod
    @override
    def _own_fields(cls, fields: Fields, directory: Path) -> dict[str, Any]:
        fields.require_kind(*_KINDS)
        for name, supported in (("merge_size", MERGE), ("temporal_patch_size", FRAMES)):
            if fields.count(name, supported, 2**14) != supported:
                raise fields.unsupported(name, f"must be {supported}")
        size = fields.config.get("size")
        bounds = dict(size) if isinstance(size, dict) else {}
        # Newer files have both in `size`, under the names that other processors have for edges.
        given = {
            "min_pixels": fields.config.get("min_pixels") or bounds.get("shortest_edge"),
            "max_pixels": fields.config.get("max_pixels") or bounds.get("longest_edge"),
        }
        for name, value in given.items():
            if value is not None and (type(value) is not int or not 1 <= value <= _MOST_PIXELS):
                raise DataError(
                    f"{fields.path}: {name} is {value!r}: must be a whole number from 1 to "
                    f"{_MOST_PIXELS}"
                )
        side = MERGE * fields.count("patch_size", 14, 2**10)
        known = {name: value for name, value in given.items() if value is not None}
        return {"size": side, **known}

    @override
    def to_processor_config(self) -> dict[str, Any]:
        return super().to_processor_config() | {
            "image_processor_type": _KINDS[0],
            "size": {"shortest_edge": self.min_pixels, "longest_edge": self.max_pixels},
            "min_pixels": self.min_pixels,  # transformers before 4.49 reads these
            "max_pixels": self.max_pixels,
            "patch_size": self.size // MERGE,
            "merge_size": MERGE,
            "temporal_patch_size": FRAMES,
        }

    @property
    @override
    def native(self) -> bool:
        return True

    def grid(self, size: Size) -> tuple[int, int]:
        """Returns the rows and columns of tiles that an image becomes.

        Args:
            size: height and width of the decoded image.

        Raises:
            ExampleError: the image is too elongated.
        """
        height, width = resized(size, self.size, self.min_pixels, self.max_pixels)
        return height // self.size, width // self.size

    @override
    def __call__(self, image_HWC: np.ndarray) -> np.ndarray:
        """Returns the whole picture, resized and normalised: float32 [H, W, 3]."""
        image = checked(image_HWC)
        height, width = resized(
            (image.height, image.width), self.size, self.min_pixels, self.max_pixels
        )
        return self.normalise(np.asarray(image.resize((width, height), self.resample)))

    @override
    def tiles(self, image_HWC: np.ndarray, alone: bool = True) -> np.ndarray:
        return self._tiles(self(image_HWC))

    def _tiles(self, picture_HWC: np.ndarray) -> np.ndarray:
        """Cuts a picture into tiles, ordered by windows: [I, size, size, 3]."""
        rows, columns = (x // self.size for x in picture_HWC.shape[:2])
        return cut_tiles(picture_HWC, self.size)[window_order(rows, columns)]

    @override
    def view(self, tiles_IHWC: np.ndarray, size: Size) -> np.ndarray:
        rows, columns = self.grid(size)
        by_row = np.empty_like(tiles_IHWC)
        by_row[window_order(rows, columns)] = tiles_IHWC
        blocks = by_row.reshape(rows, columns, self.size, self.size, 3).swapaxes(1, 2)
        return blocks.reshape(rows * self.size, columns * self.size, 3)

    @override
    def places(self, size: Size, side: int, alone: bool = True) -> np.ndarray:
        rows, columns = self.grid(size)
        y, x = (np.arange(num) + 0.5 for num in (rows, columns))
        by_row_I2 = crossed(y / rows, x / columns).reshape(-1, 2)
        return by_row_I2[window_order(rows, columns)].reshape(-1, side, side, 2)

    @override
    def changed(
        self, tiles_IHWC: np.ndarray, size: Size, change: Callable[[int, np.ndarray], np.ndarray]
    ) -> np.ndarray:
        """Applies a change to the whole picture.

        The picture is enlarged to whole windows before, and cut after, because a change is compiled
        for each size.
        """
        picture_HWC = self.view(tiles_IHWC, size)
        height, width, _ = picture_HWC.shape
        unit = WINDOW * self.size
        more = (0, -height % unit), (0, -width % unit), (0, 0)
        changed = change(0, np.pad(picture_HWC, more, mode="edge"))
        return self._tiles(changed[:height, :width])

    @override
    def small(self, image_HWC: np.ndarray) -> np.ndarray:
        side = _SMALL * self.size
        image = stretch(checked(image_HWC), side, side, self.resample)
        return self._tiles(self.normalise(np.asarray(image)))

    @override
    def small_layout(self, features: int) -> ImageLayout:
        return grid_layout(_SMALL, _SMALL)

    @override
    def layouts(self, sizes: Sequence[Size], features: int) -> tuple[ImageLayout, ...]:
        del features  # one for each tile
        return tuple(grid_layout(*self.grid(size)) for size in sizes)


def resized(size: Size, tile: int, min_pixels: int, max_pixels: int) -> Size:
    """Returns the height and width that an image is resized to.

    The arithmetic is that of `smart_resize` in transformers.

    Args:
        size: height and width of the image.
        tile: what both become a multiple of.
        min_pixels: fewest pixels.
        max_pixels: most pixels.

    Raises:
        ExampleError: the image is too elongated.
    """
    height, width = size
    if max(size) > _MOST_ELONGATED * min(size):
        raise ExampleError(
            f"an image of {height} x {width} pixels is more than {_MOST_ELONGATED} times as long "
            "as wide; crop it or drop it",
            "image too elongated",
        )
    out = round(height / tile) * tile, round(width / tile) * tile
    if out[0] * out[1] > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        return (
            max(tile, math.floor(height / shrink / tile) * tile),
            max(tile, math.floor(width / shrink / tile) * tile),
        )
    if out[0] * out[1] < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        return math.ceil(height * grow / tile) * tile, math.ceil(width * grow / tile) * tile
    return out


@functools.lru_cache(2**12)
def window_order(rows: int, columns: int) -> np.ndarray:
    """Returns the tiles of a grid, numbered row by row, in the order of windows."""
    numbers = np.arange(rows * columns).reshape(rows, columns)
    windows = [
        numbers[top : top + WINDOW, left : left + WINDOW].ravel()
        for top in range(0, rows, WINDOW)
        for left in range(0, columns, WINDOW)
    ]
    order = np.concatenate(windows)
    order.setflags(write=False)
    return order


@functools.lru_cache(2**12)
def grid_layout(rows: int, columns: int) -> ImageLayout:
    """Returns the layout of an image with a grid of tiles of this size."""
    order = window_order(rows, columns)
    patch_N = np.empty(len(order), np.int32)
    patch_N[order] = np.arange(len(order))  # where each token's tile is in the order of windows
    row_N, column_N = crossed(np.arange(rows), np.arange(columns)).reshape(-1, 2).T
    picture, same = (np.full(len(order), value) for value in (1, 0))
    place_N5 = np.stack([picture, row_N, column_N, same + rows, same + columns], axis=1)
    position_N3 = np.stack([same, row_N, column_N], axis=1)
    native = Native(
        place_N5[order].astype(np.int32), position_N3.astype(np.int32), max(rows, columns)
    )
    return read_only(ImageLayout(len(order), patch_N, None, native))
