"""Preprocesses images for LLaVA-OneVision.

What lives here: `LlavaOnevisionProcessing`. What does not: choosing a grid of tiles and laying out
its features (`any_resolution.py`).
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from typing_extensions import override

from seva_jax.images.any_resolution import (
    AnyResolution,
    Span,
    picture_features,
    side_of,
    smaller,
    unpadded,
    whole_features,
    with_newlines,
)
from seva_jax.images.preprocess import (
    ImageProcessing,
    checked,
    colour,
    require_paddable,
    still,
)
from seva_jax.images.processor_files import Fields
from seva_jax.images.tiled import Grid, read_only
from seva_jax.ranges import ADDED
from seva_jax.runtime.stores import as_path
from seva_jax.types import (
    NEWLINE,
    Blend,
    DataError,
    ExampleError,
    Frame,
    ImageLayout,
    ImageSize,
    Size,
)

VideoPool = Literal["bilinear", "average"]
VideoNewline = Literal["one_token", "grid", "frame", "no_token"]

_KIND = "LlavaOnevisionImageProcessor"
_TILE = 384
_TOLERATED = 1.1  # sides longer than allowed by this factor are not made smaller


@dataclasses.dataclass(frozen=True)
class LlavaOnevisionProcessing(AnyResolution):
    """Preprocesses images as transformers' LlavaOnevisionImageProcessor.

    The only image of a prompt becomes the features of the tile of the whole picture, then those of
    the grid without its padding, made smaller where there are many, each row of which ends with a
    newline. Each of several images becomes one tile, padded to a square, and one newline. A video
    becomes a tile for each frame, stretched, with half as many rows and columns of features, and
    one newline after the last frame, as with transformers' LlavaOnevisionVideoProcessor. Models in
    the layout of LLaVA's own code, such as LLaVA-Video, may have other newlines in videos.

    Attributes:
        mean: mean to subtract from each of RGB, which are scaled to 0-1 before.
        std: standard deviation to divide each of RGB by, on the same scale.
        pad_colour: colour of the padding of each of several images, RGB 0-255; transformers uses
            int(255 * mean).
        resolutions: heights and widths in pixels to choose from, multiples of `size`; called
            `image_grid_pinpoints` in transformers.
        anyres_max: the features of the grid are made fewer where they exceed those of this number
            of tiles (by more than a fifth); the N of `vision_aspect_ratio` "anyres_max_N" in the
            model's config.json.
        video_pool: how a frame gets half as many rows and columns. "bilinear" rounds an odd number
            up, as transformers does; "average" takes means of 2 x 2 features and leaves out the
            last of an odd number of rows and columns. It is `mm_spatial_pool_mode` of LLaVA's code.
        video_newline: where newlines are in a video: one after the last frame ("one_token", as in
            transformers), after every row of every frame ("grid", LLaVA-Video), after every frame
            ("frame"), or nowhere ("no_token"); `mm_newline_position` of LLaVA's code.
    """

    size: int = _TILE
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    pad_colour: tuple[int, int, int] = (127, 127, 127)
    resolutions: tuple[Size, ...] = tuple(
        (rows * _TILE, columns * _TILE) for rows in range(1, 7) for columns in range(1, 7)
    )
    anyres_max: int = 9
    video_pool: Annotated[VideoPool, ADDED] = "bilinear"
    video_newline: Annotated[VideoNewline, ADDED] = "one_token"

    @override
    def __post_init__(self):
        super().__post_init__()
        if self.anyres_max < 1:
            raise DataError(
                f"{type(self).__name__}.anyres_max is {self.anyres_max}; it must be at least 1"
            )

    @classmethod
    @override
    def _own_fields(cls, fields: Fields, directory: Path) -> dict[str, Any]:
        return cls.grid_fields(fields, _KIND, crops=False) | {
            "anyres_max": _anyres_max(as_path(directory) / "config.json")
        }

    @override
    def to_processor_config(self) -> dict[str, Any]:
        if self.pad_colour != colour(self.mean):
            raise DataError(
                f"images are padded with the colour {self.pad_colour}, but the processors of "
                f"transformers pad with 255 times the mean, {colour(self.mean)}; train with that "
                "pad_colour to export the model"
            )
        if (self.video_pool, self.video_newline) != ("bilinear", "one_token"):
            raise DataError(
                "transformers' LLaVA-OneVision makes the frames of a video smaller bilinearly and "
                "puts one newline after the last one, but this model has mm_spatial_pool_mode "
                f"{self.video_pool!r} and mm_newline_position {self.video_newline!r}, which its "
                "layout cannot say; to-llava exports the model in the layout of LLaVA's own code"
            )
        return super().to_processor_config() | {
            "image_processor_type": _KIND,
            "size": {"height": self.size, "width": self.size},
        }

    @property
    @override
    def blended(self) -> int:
        return 4

    @property
    @override
    def videos(self) -> bool:
        return True

    @override
    def tiles(self, image_HWC: np.ndarray, alone: bool = True) -> np.ndarray:
        if alone:
            return super().tiles(image_HWC)
        return self._cut(self._pad_and_resize(checked(image_HWC), self.size))

    @override
    def places(self, size: Size, side: int, alone: bool = True) -> np.ndarray:
        if alone:
            return super().places(size, side)
        return ImageProcessing(size=self.size, pad_to_square=True).places(size, side)

    @override
    def layouts(self, sizes: Sequence[ImageSize], features: int) -> tuple[ImageLayout, ...]:
        side = side_of(features)
        if any(isinstance(size, Frame) for size in sizes):
            return (_video(len(sizes), side, self.video_pool, self.video_newline),)
        images = still(sizes)
        if len(images) > 1:
            for size in images:
                require_paddable(size, self.size)
            return (_one_tile(features),) * len(images)
        layouts = []
        for size in images:
            grid = self.grid(size)
            span = unpadded(size, grid, side)
            layouts.append(_layout(grid, side, span, self.anyres_max))
        return tuple(layouts)


def _anyres_max(path: Path) -> int:
    """Reads the N of "anyres_max_N" from a model's config.json; 9 where it does not say.

    Raises:
        DataError: the file is unreadable, or images are laid out in another way.
    """
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        value = config.get("vision_aspect_ratio", "anyres_max_9")
    except FileNotFoundError:
        return 9
    except (OSError, ValueError, AttributeError) as error:
        raise DataError(f"{path}: not readable as a JSON object ({error})") from error
    match = re.fullmatch(r"anyres_max_([1-9]\d{0,3})", str(value))
    if not match:
        raise DataError(f"{path}: vision_aspect_ratio is {value!r}: only anyres_max_N is supported")
    return int(match[1])


@functools.lru_cache
def _one_tile(features: int) -> ImageLayout:
    """Returns the layout of each of several images."""
    patch_N = np.append(np.arange(features, dtype=np.int32), np.int32(NEWLINE))
    return read_only(ImageLayout(1, patch_N, whole_features(patch_N)))


@functools.lru_cache(2**6)
def _video(frames: int, side: int, pool: VideoPool, newline: VideoNewline) -> ImageLayout:
    """Returns the layout of a video, which has half as many rows and columns of every frame."""
    frame_HW = np.arange(side * side, dtype=np.int32).reshape(side, side)
    if pool == "bilinear":
        half = -(-side // 2)
        frame_HWM = smaller(frame_HW, half, half)
    else:
        frame_HWM = _averaged(frame_HW)
    first_I = side * side * np.arange(frames, dtype=np.int32)
    index_IHWM = first_I[:, None, None, None] + frame_HWM.index_BSM
    weight_IHWM = np.broadcast_to(frame_HWM.weight_BSM, index_IHWM.shape)
    index_NM = _video_tokens(index_IHWM, newline, NEWLINE)
    blend = Blend(np.maximum(index_NM, 0), _video_tokens(weight_IHWM, newline, 0))
    return read_only(ImageLayout(frames, index_NM[:, 0].copy(), blend))


def _video_tokens(values_IHWM: np.ndarray, newline: VideoNewline, end: float) -> np.ndarray:
    """Returns values of all frames, rows first, with `end` where newlines are: [N, M]."""
    frames, height, width, features = values_IHWM.shape
    if newline == "no_token":
        return values_IHWM.reshape(-1, features)
    between = {"grid": width, "frame": height * width, "one_token": frames * height * width}
    return with_newlines(values_IHWM.reshape(-1, between[newline], features), end)


def _averaged(features_HW: np.ndarray) -> Blend:
    """Returns features and weights [H // 2, W // 2, 4] of the means of 2 x 2 features."""
    height, width = features_HW.shape[0] // 2, features_HW.shape[1] // 2
    even_HW = features_HW[: 2 * height, : 2 * width]
    index_HWM = even_HW.reshape(height, 2, width, 2).swapaxes(1, 2).reshape(height, width, 4)
    return Blend(index_HWM, np.full(index_HWM.shape, 0.25, np.float32))


@functools.lru_cache(2**9)
def _layout(grid: Grid, side: int, span: Span, anyres_max: int) -> ImageLayout:
    """Returns the layout of a picture that covers a span of a grid of tiles."""
    picture_HW = picture_features(grid, side, span)
    too_long = math.sqrt(picture_HW.size / (anyres_max * side**2))
    whole_N = np.arange(side * side, dtype=np.int32)
    if too_long <= _TOLERATED:
        patch_N = np.concatenate([whole_N, with_newlines(picture_HW, NEWLINE)])
        return read_only(ImageLayout(1 + grid[0] * grid[1], patch_N, whole_features(patch_N)))
    height, width = int(span.height // too_long), int(span.width // too_long)
    if not height or not width:
        raise ExampleError(
            f"an image covers {span.height} x {span.width} features, of which none are left when "
            f"they are made fewer for anyres_max_{anyres_max}; crop it or drop it",
            "image too elongated",
        )
    index_HWM, weight_HWM = smaller(picture_HW, height, width)
    whole = whole_features(whole_N)
    blend = Blend(
        np.concatenate([whole.index_BSM, with_newlines(index_HWM, 0)]),
        np.concatenate([whole.weight_BSM, with_newlines(weight_HWM, 0)]),
    )
    patch_N = np.concatenate([whole_N, with_newlines(index_HWM[..., 0], NEWLINE)])
    return read_only(ImageLayout(1 + grid[0] * grid[1], patch_N, blend))
