"""Where the tiles and tokens of Qwen-VL's images and videos lie.

What lives here: the size that an image or a video is resized to, the order of its tiles, and its
layout. What does not: pixels (`qwen.py`), positions of text between images
(`seva_jax/batches/trees.py`).

A tile is a square of 2 x 2 patches of the tower, of one image or of two frames of a video. Tiles
are ordered by windows of 4 x 4 tiles, and row by row in each, because patches of Qwen2.5-VL attend
inside windows; tokens are ordered row by row.
"""

from __future__ import annotations

import functools
import math

import numpy as np

from seva_jax.images.preprocess import crossed
from seva_jax.images.tiled import read_only
from seva_jax.types import ExampleError, ImageLayout, Native, Size

WINDOW = 4  # tiles along a side of a window
MERGE = 2  # patches along a side of a tile
FRAMES = 2  # of a video that a tile shows

_MOST_ELONGATED = 200  # long side over short side


def resized(size: Size, tile: int, min_pixels: int, max_pixels: int) -> Size:
    """Returns the height and width that an image, or each frame of a video, is resized to.

    The arithmetic is that of `smart_resize` in transformers.

    Args:
        size: height and width of the image.
        tile: what both become a multiple of.
        min_pixels: fewest pixels.
        max_pixels: most pixels.

    Raises:
        ExampleError: the image is too elongated.
    """
    return _resized(size, tile, min_pixels, max_pixels, 1, 1)


def video_resized(size: Size, frames: int, tile: int, min_pixels: int, max_pixels: int) -> Size:
    """Returns the height and width of frames where bounds are those of a whole video.

    The arithmetic is that of `smart_resize` of videos in transformers' Qwen3-VL, which takes a
    number of frames rounded to an even one for comparing, and the number itself for scaling.

    Args:
        size: height and width of the video.
        frames: how many frames it has.
        tile: see `resized`.
        min_pixels: fewest pixels of all frames together.
        max_pixels: most pixels of all frames together.

    Raises:
        ExampleError: the video is too elongated.
    """
    if min(size) < tile:
        scale = max(tile / size[0], tile / size[1])
        size = int(size[0] * scale), int(size[1] * scale)
    frames = max(frames, FRAMES)  # a video of one frame shows it twice
    even = round(frames / FRAMES) * FRAMES
    return _resized(size, tile, min_pixels, max_pixels, even, frames)


def _resized(
    size: Size, tile: int, min_pixels: int, max_pixels: int, compared: int, frames: int
) -> Size:
    height, width = size
    if max(size) > _MOST_ELONGATED * min(size):
        raise ExampleError(
            f"an image of {height} x {width} pixels is more than {_MOST_ELONGATED} times as long "
            "as wide; crop it or drop it",
            "image too elongated",
        )
    out = round(height / tile) * tile, round(width / tile) * tile
    if compared * out[0] * out[1] > max_pixels:
        shrink = math.sqrt(frames * height * width / max_pixels)
        return (
            max(tile, math.floor(height / shrink / tile) * tile),
            max(tile, math.floor(width / shrink / tile) * tile),
        )
    if compared * out[0] * out[1] < min_pixels:
        grow = math.sqrt(min_pixels / (frames * height * width))
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
def grid_layout(rows: int, columns: int, pairs: int = 1, interval: float = 1.0) -> ImageLayout:
    """Returns the layout of an image or a video.

    Args:
        rows: rows of tiles.
        columns: columns of tiles.
        pairs: of frames, each of which is a picture of its own to the tower; 1 for an image.
        interval: by how much the position in time of a pair is larger than that of the one before;
            positions are rounded down.
    """
    order, num = window_order(rows, columns), rows * columns
    patch_N = np.empty(num, np.int32)
    patch_N[order] = np.arange(num)  # where each token's tile is in the order of windows
    row_N, column_N = crossed(np.arange(rows), np.arange(columns)).reshape(-1, 2).T
    # Rounded as by torch, which multiplies in float32.
    times = (np.arange(pairs, dtype=np.float32) * np.float32(interval)).astype(np.int32)

    def every(values: np.ndarray) -> np.ndarray:
        return np.tile(values, pairs)

    place_I5 = np.stack(
        [
            np.repeat(np.arange(pairs) + 1, num), every(row_N[order]), every(column_N[order]),
            np.full(pairs * num, rows), np.full(pairs * num, columns),
        ],
        axis=1,
    )  # fmt: skip
    position_N3 = np.stack([np.repeat(times, num), every(row_N), every(column_N)], axis=1)
    native = Native(
        place_I5.astype(np.int32), position_N3.astype(np.int32),
        max(rows, columns, int(times[-1]) + 1),
    )  # fmt: skip
    first_N = np.repeat(np.arange(pairs, dtype=np.int32) * num, num)
    return read_only(ImageLayout(pairs * num, every(patch_N) + first_N, None, native))
