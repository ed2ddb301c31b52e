"""Cuts an image into a grid of square tiles, for models that see more than one tile of it.

What lives here: what the families share. What does not: how a family chooses the grid and orders
its tokens (`any_resolution.py`, `internvl.py`). Read next: `any_resolution.py`.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from PIL import Image
from typing_extensions import override

from seva_jax.images.preprocess import ImageProcessing, colour, crossed
from seva_jax.images.processor_files import Fields, read_fields
from seva_jax.runtime.stores import as_path
from seva_jax.types import DataError, ImageLayout, ImageSize, Size

Grid = tuple[int, int]  # rows and columns of tiles


@dataclasses.dataclass(frozen=True)
class TiledProcessing(ImageProcessing, abc.ABC):
    """Cuts an image into tiles, besides one tile that shows the whole picture, stretched.

    Calling it gives the tile of the whole picture, which reports show.

    Attributes:
        size: height and width of a tile in pixels.
        pad_to_square: must be False.
        shortest_edge: must be None.
        keep_aspect: must be False.
    """

    pad_to_square: bool = False
    keep_aspect: bool = False

    def __post_init__(self):
        super().__post_init__()
        if self.pad_to_square or self.keep_aspect or self.shortest_edge is not None:
            raise DataError(
                f"{type(self).__name__} stretches the whole picture to one tile; leave "
                "pad_to_square, keep_aspect and shortest_edge at their defaults"
            )

    @classmethod
    @override
    def from_processor_config(
        cls, directory: str | Path, pad_to_square: bool | None = None
    ) -> Self:
        if pad_to_square is not None:
            raise DataError(
                f"pad_to_square is {pad_to_square}, but only LLaVA-1.5 has this choice; leave it "
                f"unset for {directory}"
            )
        fields = read_fields(directory)
        fields.require_resizing()
        if not fields.flag("do_normalize", True):
            raise fields.unsupported("do_normalize", "only true is supported")
        mean, std = fields.normalisation()
        return cls(
            mean=mean,
            std=std,
            pad_colour=colour(mean),
            resample=fields.resample(),
            **cls._own_fields(fields, as_path(directory)),
        )

    @classmethod
    @abc.abstractmethod
    def _own_fields(cls, fields: Fields, directory: Path) -> dict[str, Any]:
        """Reads `size`, and the fields that only this family has.

        Args:
            fields: the fields of the processor file.
            directory: the model directory.

        Raises:
            DataError: the value of a field is not supported.
        """

    @override
    def to_processor_config(self) -> dict[str, Any]:
        return {
            "do_convert_rgb": True,
            "do_resize": True,
            "resample": int(self.resample),
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": list(self.mean),
            "image_std": list(self.std),
        }

    @override
    @abc.abstractmethod
    def tiles(self, image_HWC: np.ndarray, alone: bool = True) -> np.ndarray: ...

    @property
    @override
    def one_layout(self) -> bool:
        return False

    @override
    @abc.abstractmethod
    def layouts(self, sizes: Sequence[ImageSize], features: int) -> tuple[ImageLayout, ...]: ...

    @override
    @abc.abstractmethod
    def places(self, size: Size, side: int, alone: bool = True) -> np.ndarray: ...

    def _cut_places(self, side: int, grid: Grid, picture: Size) -> np.ndarray:
        """Returns `places` of the tile of the whole picture, and of those of a grid.

        Args:
            side: features in a row of a tile.
            grid: rows and columns of tiles.
            picture: height and width of the picture in the middle of the grid, in pixels.

        Returns:
            [1 + I, side, side, 2], the whole picture first.
        """
        axes = []
        for num, length in zip(grid, picture, strict=True):
            centres = (np.arange(num * side) + 0.5) * self.size / side
            axes.append((centres - (num * self.size - length) // 2) / length)
        rows, columns = (np.split(axis, num) for axis, num in zip(axes, grid, strict=True))
        whole = (np.arange(side) + 0.5) / side
        return np.stack([crossed(whole, whole), *(crossed(y, x) for y in rows for x in columns)])

    def _cut(self, canvas: Image.Image) -> np.ndarray:
        """Cuts a canvas into tiles, row by row, and normalises them: [I, size, size, 3]."""
        return self.normalise(cut_tiles(np.asarray(canvas), self.size))


def cut_tiles(picture_HWC: np.ndarray, size: int) -> np.ndarray:
    """Cuts a picture into square tiles, row by row: [I, size, size, 3]."""
    rows, columns = (length // size for length in picture_HWC.shape[:2])
    tiles_IHWC = picture_HWC.reshape(rows, size, columns, size, 3).swapaxes(1, 2)
    return tiles_IHWC.reshape(-1, size, size, 3)


def read_only(layout: ImageLayout) -> ImageLayout:
    """Returns a layout whose arrays cannot be changed, because images of a layout share it."""
    native = layout.native
    places = () if native is None else (native.place_I5, native.position_N3)
    for array in (layout.patch_N, *(layout.blend or ()), *places):
        array.setflags(write=False)
    return layout
