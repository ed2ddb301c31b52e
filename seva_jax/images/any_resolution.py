"""Lays an image out on the grid of tiles that shows most of it: "any resolution" of LLaVA-1.6 on.

What lives here: choosing the grid, the picture on it, and its tokens without the padding. What does
not: the fields of a family (`llava_next.py`, `llava_onevision.py`).
"""

from __future__ import annotations

import abc
import dataclasses
import functools
import math
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from typing_extensions import override

from seva_jax.images.preprocess import checked
from seva_jax.images.processor_files import Fields
from seva_jax.images.tiled import Grid, TiledProcessing
from seva_jax.types import NEWLINE, Blend, DataError, Size

MAX_FEATURES = 4  # features that a token of a picture made smaller is a weighted sum of


class Span(NamedTuple):
    """The rows and columns of features of a grid that the picture covers, without its padding.

    Attributes:
        top: first row.
        left: first column.
        height: number of rows; 0 for a picture so wide that no row is left.
        width: number of columns, likewise.
    """

    top: int
    left: int
    height: int
    width: int


@dataclasses.dataclass(frozen=True)
class AnyResolution(TiledProcessing, abc.ABC):
    """Fits an image into the best of some resolutions, pads it in black, and cuts it into tiles.

    Attributes:
        resolutions: heights and widths in pixels to choose from, multiples of `size`; called
            `image_grid_pinpoints` in transformers.
    """

    resolutions: tuple[Size, ...] = ()

    @override
    def __post_init__(self):
        super().__post_init__()
        if not self.resolutions or any(
            x < 1 or x % self.size for resolution in self.resolutions for x in resolution
        ):
            raise DataError(
                f"{type(self).__name__}.resolutions is {self.resolutions}; give heights and widths "
                f"that are multiples of size ({self.size})"
            )

    @staticmethod
    def grid_fields(fields: Fields, kind: str, crops: bool) -> dict[str, Any]:
        """Reads `size` and `resolutions`.

        Args:
            fields: the fields of the processor file.
            kind: the supported `image_processor_type`.
            crops: whether a file that does not say so crops tiles to `crop_size`.

        Raises:
            DataError: the value of a field is not supported.
        """
        fields.require_kind(kind)
        size, _ = fields.resize_target()
        if fields.flag("do_center_crop", crops) and fields.square("crop_size") != size:
            raise fields.unsupported("crop_size", f"must be equal to size ({size})")
        return {"size": size, "resolutions": fields.resolutions("image_grid_pinpoints", size)}

    def grid(self, size: Size) -> Grid:
        """Returns the rows and columns of tiles that an image is cut into.

        Args:
            size: height and width of the decoded image.
        """
        height, width = best_resolution(size, self.resolutions)
        return height // self.size, width // self.size

    @override
    def tiles(self, image_HWC: np.ndarray, alone: bool = True) -> np.ndarray:
        image = checked(image_HWC)
        target = best_resolution((image.height, image.width), self.resolutions)
        height, width = fitted((image.height, image.width), target)
        canvas = Image.new("RGB", (target[1], target[0]))
        left, top = (target[1] - width) // 2, (target[0] - height) // 2
        canvas.paste(image.resize((width, height), self.resample), (left, top))
        return np.concatenate([self(image_HWC)[None], self._cut(canvas)])

    @override
    def places(self, size: Size, side: int, alone: bool = True) -> np.ndarray:
        picture = fitted(size, best_resolution(size, self.resolutions))
        return self._cut_places(side, self.grid(size), picture)

    @override
    def to_processor_config(self) -> dict[str, Any]:
        return super().to_processor_config() | {
            "do_pad": True,
            "image_grid_pinpoints": [list(resolution) for resolution in self.resolutions],
        }


@functools.lru_cache(2**14)
def best_resolution(size: Size, resolutions: tuple[Size, ...]) -> Size:
    """Returns the resolution in which an image keeps most of its pixels, then the smallest such.

    The arithmetic is that of `select_best_resolution` in transformers.

    Args:
        size: height and width of the image.
        resolutions: heights and widths to choose from; the first of equals is taken.
    """

    def kept_and_spare(resolution: Size) -> tuple[int, int]:
        scale = min(resolution[1] / size[1], resolution[0] / size[0])
        kept = min(int(size[1] * scale) * int(size[0] * scale), size[0] * size[1])
        return kept, kept - resolution[0] * resolution[1]

    return max(resolutions, key=kept_and_spare)


def fitted(size: Size, target: Size) -> Size:
    """Returns the largest height and width of an image's shape that fit into others."""
    (height, width), (target_height, target_width) = size, target
    by_width, by_height = target_width / width, target_height / height
    if by_width < by_height:
        return min(math.ceil(height * by_width), target_height), target_width
    return target_height, min(math.ceil(width * by_height), target_width)


def side_of(features: int) -> int:
    """Returns the number of features in a row of a tile.

    Raises:
        DataError: the features are not a square.
    """
    side = math.isqrt(features)
    if side * side != features:
        raise DataError(
            f"a tile has {features} features, which are no square and cannot be laid out in rows; "
            'vision_feature_select_strategy must be "default" for a tower with a class token'
        )
    return side


def unpadded(size: Size, grid: Grid, side: int) -> Span:
    """Returns the features that a picture covers; the arithmetic is that of `unpad_image`.

    Args:
        size: height and width of the image.
        grid: rows and columns of tiles.
        side: features in a row of a tile.
    """
    (height, width), (full_height, full_width) = size, (grid[0] * side, grid[1] * side)
    if width / height > full_width / full_height:
        covered = int(round(height * (full_width / width), 7))
        top = (full_height - covered) // 2
        return Span(top, 0, full_height - 2 * top, full_width)
    covered = int(round(width * (full_height / height), 7))
    left = (full_width - covered) // 2
    return Span(0, left, full_height, full_width - 2 * left)


def picture_features(grid: Grid, side: int, span: Span) -> np.ndarray:
    """Returns the indices of a picture's features, rows first: int32 [height, width].

    Args:
        grid: rows and columns of tiles, which follow the tile of the whole picture.
        side: features in a row of a tile.
        span: what the picture covers.
    """
    y = np.arange(span.top, span.top + span.height, dtype=np.int32)[:, None]
    x = np.arange(span.left, span.left + span.width, dtype=np.int32)
    tile = 1 + y // side * grid[1] + x // side
    return tile * side * side + y % side * side + x % side


def with_newlines(rows_HW: np.ndarray, end: float) -> np.ndarray:
    """Returns rows of any values one after another, each followed by `end`."""
    height, width, *rest = rows_HW.shape
    ended_HW = np.empty((height, width + 1, *rest), rows_HW.dtype)
    ended_HW[:, :width], ended_HW[:, width] = rows_HW, end
    return ended_HW.reshape(-1, *rest)


def smaller(features_HW: np.ndarray, height: int, width: int) -> Blend:
    """Returns the features and weights of a picture made smaller bilinearly.

    The arithmetic is that of torch's `interpolate` without aligned corners: each token is a sum of
    at most four features, however much smaller the picture becomes.

    Args:
        features_HW: indices of the picture's features.
        height: number of rows to make, at least 1.
        width: number of columns to make, at least 1.

    Returns:
        Indices and weights [height, width, 4].
    """
    y_H2, share_H2 = _between(features_HW.shape[0], height)
    x_W2, share_W2 = _between(features_HW.shape[1], width)
    index = features_HW[y_H2[:, None, :, None], x_W2[:, None]]
    weight = share_H2[:, None, :, None] * share_W2[:, None]
    return Blend(index.reshape(height, width, 4), weight.reshape(height, width, 4))


def _between(old: int, new: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the two old places around each of the new ones, and their shares: [new, 2]."""
    scale = np.float64(np.float32(old) / np.float32(new))
    # torch multiplies and subtracts in float32 with one rounding.
    place = np.float32(scale * (np.arange(new) + 0.5) - 0.5).clip(0)
    low = place.astype(np.int32)
    share = place - low.astype(np.float32)
    return np.stack([low, np.minimum(low + 1, old - 1)], 1), np.stack([1 - share, share], 1)


def whole_features(patch_N: np.ndarray) -> Blend:
    """Returns features and weights [N, 4] of tokens each of which is one feature, or a newline."""
    index_NM = np.repeat(np.maximum(patch_N, 0)[:, None], MAX_FEATURES, axis=1)
    weight_NM = np.zeros((len(patch_N), MAX_FEATURES), np.float32)
    weight_NM[:, 0] = patch_N != NEWLINE
    return Blend(index_NM, weight_NM)
