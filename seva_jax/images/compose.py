"""Composes several images into one, for MIA-DPO.

What lives here: drawing, boxes, and noise on a box. What does not: choosing the images
(`seva_jax/data/composed.py`), the tokens that show a box (`shown.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from seva_jax.types import DataError

GRIDS = {2: (1, 2), 3: (1, 3), 4: (2, 2), 6: (2, 3), 9: (3, 3)}  # tiles -> (rows, columns)
_BACKGROUND = (255, 255, 255)


class Box(NamedTuple):
    """A rectangle in an image, in pixels.

    Attributes:
        left: first column.
        top: first row.
        right: one past the last column.
        bottom: one past the last row.
        width: width of the whole image.
        height: height of the whole image.
    """

    left: int
    top: int
    right: int
    bottom: int
    width: int
    height: int


def grid_box(num: int, number: int, tile: int) -> Box:
    """Returns the box of tile `number` (from 0, row by row) in a grid of `num` tiles.

    Raises:
        DataError: `num` is not in `GRIDS`.
    """
    if num not in GRIDS:
        raise DataError(f"a grid has {', '.join(map(str, GRIDS))} tiles, not {num}")
    rows, columns = GRIDS[num]
    row, column = divmod(number, columns)
    left, top = column * tile, row * tile
    return Box(left, top, left + tile, top + tile, columns * tile, rows * tile)


def inset_box(share: float, side: int) -> Box:
    """Returns the box of the inner image of `draw_inset`: centred, `share` of the outer side."""
    inner = max(round(share * side), 1)
    start = (side - inner) // 2
    return Box(start, start, start + inner, start + inner, side, side)


def draw_grid(images: Sequence[np.ndarray], tile: int, label: str) -> np.ndarray:
    """Draws images in a grid of square tiles, each with its number from 1 in the corner.

    Args:
        images: uint8 RGB [H, W, 3] of any sizes; they are scaled to fit, on white.
        tile: side of a tile in pixels.
        label: text in the corner, in which {number} is replaced; empty for no text.

    Returns:
        uint8 RGB [H, W, 3].

    Raises:
        DataError: there is no grid for that many images.
    """
    from PIL import ImageDraw, ImageFont

    first = grid_box(len(images), 0, tile)
    canvas = Image.new("RGB", (first.width, first.height), _BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(max(tile // 14, 8))
    for number, image_HWC in enumerate(images):
        box = grid_box(len(images), number, tile)
        _place(canvas, image_HWC, box)
        if label:
            text, at = label.format(number=number + 1), (box.left, box.top)
            draw.rectangle(draw.textbbox(at, text, font), fill=(0, 0, 0))
            draw.text(at, text, (255, 255, 255), font)
    return np.asarray(canvas)


def draw_inset(outer_HWC: np.ndarray, inner_HWC: np.ndarray, share: float, side: int) -> np.ndarray:
    """Draws one image in the middle of another, both scaled to fit on white: [side, side, 3]."""
    canvas = Image.new("RGB", (side, side), _BACKGROUND)
    _place(canvas, outer_HWC, Box(0, 0, side, side, side, side))
    box = inset_box(share, side)
    canvas.paste(_BACKGROUND, box[:4])
    _place(canvas, inner_HWC, box)
    return np.asarray(canvas)


def noised(image_HWC: np.ndarray, noise_HWC: np.ndarray, wrap: bool) -> np.ndarray:
    """Adds noise to an image as MIA-DPO's release does, which rounds towards 0.

    Args:
        image_HWC: uint8.
        noise_HWC: in levels of 0 to 255.
        wrap: whether sums outside 0 to 255 wrap around modulo 256, as the release's do on whole
            images; otherwise they become the nearest end, as on tiles.

    Returns:
        uint8 [H, W, C].
    """
    if wrap:
        return ((image_HWC + np.trunc(noise_HWC).astype(np.int64)) % 256).astype(np.uint8)
    return np.clip(image_HWC + noise_HWC, 0, 255).astype(np.uint8)


def _place(canvas: Image.Image, image_HWC: np.ndarray, box: Box) -> None:
    """Draws an image in the middle of a box, as large as fits."""
    image = Image.fromarray(np.ascontiguousarray(image_HWC))
    width, height = box.right - box.left, box.bottom - box.top
    scale = min(width / image.width, height / image.height)
    size = max(round(image.width * scale), 1), max(round(image.height * scale), 1)
    image = image.resize(size, Image.Resampling.BICUBIC)
    left, top = box.left + (width - size[0]) // 2, box.top + (height - size[1]) // 2
    canvas.paste(image, (left, top))
