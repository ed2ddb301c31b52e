"""Preprocesses images for Qwen2-VL, Qwen2.5-VL and Qwen3-VL, which keep their shape and size.

What lives here: `QwenProcessing`. What does not: where tiles and tokens lie (`qwen_layouts.py`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from typing_extensions import override

from seva_jax.images.preprocess import checked, crossed, stretch
from seva_jax.images.processor_files import Fields, read_video_fields
from seva_jax.images.qwen_layouts import (
    FRAMES,
    MERGE,
    WINDOW,
    grid_layout,
    resized,
    video_resized,
    window_order,
)
from seva_jax.images.tiled import TiledProcessing, cut_tiles
from seva_jax.types import DataError, Frame, ImageLayout, ImageSize, Prompt, Size

_KINDS = ("Qwen2VLImageProcessor",)
_VIDEO_KINDS = ("Qwen2VLVideoProcessor", "Qwen3VLVideoProcessor")
_MOST_PIXELS = 2**28
_SMALL = 8  # tiles along a side of an image that is only compared with others


@dataclasses.dataclass(frozen=True)
class QwenProcessing(TiledProcessing):
    """Preprocesses images and videos as transformers' processors for Qwen-VL.

    An image is resized to multiples of a tile, with about its own shape, and a number of pixels
    within bounds. `max_pixels` decides how many tokens large images take: a token is a tile. All
    frames of a video get the size of the first; two of them share a tile, and an odd last one is
    shown twice.

    Attributes:
        size: height and width of a tile in pixels, twice those of a patch.
        pad_colour: of no effect.
        min_pixels: fewest pixels of the resized image.
        max_pixels: most pixels of the resized image.
        min_video_pixels: fewest pixels of a frame of a video; with `timestamps`, of all its frames
            together.
        max_video_pixels: most pixels of a frame of a video; with `timestamps`, of all its frames
            together.
        total_video_pixels: most pixels of all tiles of a video, without `timestamps`; 0 for no such
            bound. It is VIDEO_TOTAL_PIXELS of qwen-vl-utils, which counts two frames as one, and
            leaves each at least 1.05 times `min_video_pixels`.
        positions_per_second: how fast positions in time grow in a video (Qwen2.5-VL); 0 for 1
            every two frames (Qwen2-VL).
        timestamps: whether text in front of every two frames says when they are shown (Qwen3-VL).
        frames: frames of a tile as the model takes it, see `of_prompts`.
    """

    size: int = 28
    min_pixels: int = 56 * 56
    max_pixels: int = 28 * 28 * 1280
    min_video_pixels: int = 28 * 28 * 128
    max_video_pixels: int = 28 * 28 * 768
    total_video_pixels: int = 0
    positions_per_second: int = 0
    timestamps: bool = False
    frames: int = 1

    @override
    def __post_init__(self):
        super().__post_init__()
        if self.size % MERGE:
            raise DataError(
                f"QwenProcessing.size is {self.size}; a tile is {MERGE} patches wide: give an even "
                "number"
            )
        for least, most in (("min_pixels", "max_pixels"), ("min_video_pixels", "max_video_pixels")):
            low, high = getattr(self, least), getattr(self, most)
            if not self.size**2 <= low <= high <= _MOST_PIXELS:
                raise DataError(
                    f"QwenProcessing: {least} is {low} and {most} {high}; give {self.size**2} (a "
                    f"tile) <= {least} <= {most} <= {_MOST_PIXELS}"
                )

    @classmethod
    @override
    def _own_fields(cls, fields: Fields, directory: Path) -> dict[str, Any]:
        fields.require_kind(*_KINDS)
        for name, supported in (("merge_size", MERGE), ("temporal_patch_size", FRAMES)):
            if fields.count(name, supported, 2**14) != supported:
                raise fields.unsupported(name, f"must be {supported}")
        side = MERGE * fields.count("patch_size", 14, 2**10)
        least, most = _bounds(fields)
        # As in transformers, a checkpoint without a file for videos has the bounds of images.
        video = read_video_fields(directory) or fields
        least_video, most_video = _bounds(video)
        bounds = {
            "min_pixels": least,
            "max_pixels": most,
            "min_video_pixels": least_video,
            "max_video_pixels": most_video,
        }
        return {"size": side, **{name: x for name, x in bounds.items() if x is not None}}

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

    @override
    def to_video_config(self) -> dict[str, Any]:
        return super().to_processor_config() | {
            "video_processor_type": _VIDEO_KINDS[self.timestamps],
            "size": {
                "shortest_edge": self.min_video_pixels,
                "longest_edge": self.max_video_pixels,
            },
            "patch_size": self.size // MERGE,
            "merge_size": MERGE,
            "temporal_patch_size": FRAMES,
        }

    @property
    @override
    def native(self) -> bool:
        return True

    @property
    @override
    def videos(self) -> bool:
        return True

    @property
    @override
    def tile_shape(self) -> tuple[int, int, int]:
        return self.frames * self.size, self.size, 3

    @override
    def of_prompts(self, prompts: Iterable[Prompt]) -> Self:
        """Returns the pipeline for a set of prompts.

        Where some are about videos, all tiles show two frames, which are one under the other; of an
        image they are equal.
        """
        frames = FRAMES if any(prompt.about_video for prompt in prompts) else 1
        return dataclasses.replace(self, frames=frames)

    def grid(self, size: ImageSize) -> tuple[int, int]:
        """Returns the rows and columns of tiles that an image, or a frame, becomes.

        Args:
            size: height and width of the decoded image; or which frame of a video it is.

        Raises:
            ExampleError: the image is too elongated.
        """
        if not isinstance(size, Frame):
            height, width = resized(size, self.size, self.min_pixels, self.max_pixels)
        else:
            video = size.height, size.width
            bounds = self.min_video_pixels, self.max_video_pixels
            if self.timestamps:
                height, width = video_resized(video, size.total, self.size, *bounds)
            else:
                if self.total_video_pixels:
                    share = self.total_video_pixels * FRAMES // size.total
                    bounds = bounds[0], max(min(bounds[1], share), int(1.05 * bounds[0]))
                height, width = resized(video, self.size, *bounds)
        return height // self.size, width // self.size

    @override
    def __call__(self, image_HWC: np.ndarray) -> np.ndarray:
        """Returns the whole picture, resized and normalised: float32 [H, W, 3]."""
        height, width, _ = image_HWC.shape
        return self._resized(image_HWC, (height, width))

    def _resized(self, image_HWC: np.ndarray, size: ImageSize) -> np.ndarray:
        rows, columns = self.grid(size)
        target = columns * self.size, rows * self.size
        return self.normalise(np.asarray(checked(image_HWC).resize(target, self.resample)))

    @override
    def tiles(self, image_HWC: np.ndarray, alone: bool = True) -> np.ndarray:
        return self._tiles(self(image_HWC))

    @override
    def frame(self, image_HWC: np.ndarray, frame: Frame) -> np.ndarray:
        return self._tiles(self._resized(image_HWC, frame))

    @override
    def joined(self, pictures: Sequence[np.ndarray]) -> np.ndarray:
        if self.frames == 1:
            return super().joined(pictures)
        even = [*pictures, *([pictures[-1]] if len(pictures) % FRAMES else [])]
        pairs = [np.stack(even[i : i + FRAMES], axis=1) for i in range(0, len(even), FRAMES)]
        return np.concatenate(pairs).reshape(-1, *self.tile_shape)

    def _tiles(self, picture_HWC: np.ndarray) -> np.ndarray:
        """Cuts a picture into tiles, ordered by windows: [I, size, size, 3]."""
        rows, columns = (x // self.size for x in picture_HWC.shape[:2])
        return cut_tiles(picture_HWC, self.size)[window_order(rows, columns)]

    @override
    def view(self, tiles_IHWC: np.ndarray, size: ImageSize) -> np.ndarray:
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
        self,
        tiles_IHWC: np.ndarray,
        size: ImageSize,
        change: Callable[[int, np.ndarray], np.ndarray],
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
    def layouts(self, sizes: Sequence[ImageSize], features: int) -> tuple[ImageLayout, ...]:
        del features  # one for each tile
        frames = [size for size in sizes if isinstance(size, Frame)]
        if not frames:
            return tuple(grid_layout(*self.grid(size)) for size in sizes)
        grid, pairs = self.grid(frames[0]), -(-len(frames) // FRAMES)
        if self.timestamps:
            return (grid_layout(*grid),) * pairs
        interval = 1.0
        if self.positions_per_second and len(frames) > 1:
            interval = self.positions_per_second * FRAMES * (frames[1].seconds - frames[0].seconds)
        return (grid_layout(*grid, pairs, interval),)

    @override
    def captions(self, frames: Sequence[Frame]) -> tuple[str, ...]:
        if not self.timestamps:
            return super().captions(frames)
        times = [frame.seconds for frame in frames]
        firsts, lasts = times[::FRAMES], [*times[1::FRAMES], *times[-1:]]
        return tuple(
            f"<{(first + last) / FRAMES:.1f} seconds>"
            for first, last in zip(firsts, lasts, strict=False)
        )


def _bounds(fields: Fields) -> tuple[int | None, int | None]:
    """Returns the fewest and the most pixels that a processor file allows.

    Newer files have both in `size`, under the names that other processors have for edges.
    """
    size = fields.config.get("size")
    bounds = dict(size) if isinstance(size, dict) else {}
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
    return given["min_pixels"], given["max_pixels"]
