"""Preprocesses uint8 images of any size for the vision tower.

What lives here: `ImageProcessing`, which agrees with the processors of LLaVA-1.5. What does not:
models that cut an image into tiles (`tiled.py`), decoding (`load.py`) and corruptions
(`seva_jax/corrupt`). Read next: `processor_files.py`, `tiled.py`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from PIL import Image

from seva_jax.images.processor_files import CLIP_MEAN, CLIP_STD, Fields, read_fields
from seva_jax.types import DataError, ExampleError, Frame, ImageLayout, ImageSize, Prompt, Size

# A very long image would need an intermediate square or strip far larger than itself. Above this
# many pixels that is never built, at the price of slightly different rounding.
_DIRECT_PIXELS = 36_000_000


@dataclasses.dataclass(frozen=True)
class ImageProcessing:
    """Pads an image to a square, resizes it, crops the centre, and normalises.

    The original LLaVA-1.5 pads. The processor files of `llava-hf` models do not ask for padding,
    and transformers then crops the ends of the long side.

    Attributes:
        size: height and width of the output in pixels.
        pad_to_square: pad the short side at both ends before resizing, as LLaVA does. Otherwise
            the ends of the long side are cropped (or see `keep_aspect`).
        pad_colour: colour of the padding, RGB 0-255; LLaVA uses int(255 * mean).
        mean: mean to subtract from each of RGB, which are scaled to 0-1 before.
        std: standard deviation to divide each of RGB by, on the same scale.
        shortest_edge: length of the short side after resizing and before the crop, in pixels; None
            means `size`.
        keep_aspect: False stretches images to a square, so that nothing is cropped.
        resample: Pillow's filter for resizing.
    """

    size: int = 336
    pad_to_square: bool = True
    pad_colour: tuple[int, int, int] = (122, 116, 104)
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD
    shortest_edge: int | None = None
    keep_aspect: bool = True
    resample: Image.Resampling = Image.Resampling.BICUBIC

    def __post_init__(self):
        if self.size < 1:
            raise DataError(f"ImageProcessing.size is {self.size}; it must be at least 1")
        if self.shortest_edge is not None and self.shortest_edge < self.size:
            raise DataError(
                f"ImageProcessing.shortest_edge ({self.shortest_edge}) is less than size "
                f"({self.size}): there would be nothing to fill the border with; raise it"
            )
        if min(self.std) <= 0:
            raise DataError(f"ImageProcessing.std is {self.std}; every value must be above 0")

    @classmethod
    def from_processor_config(
        cls, directory: str | Path, pad_to_square: bool | None = None
    ) -> Self:
        """Reads the processing from a local model directory, see `read_fields`.

        Args:
            directory: the model directory.
            pad_to_square: overrides the file's `do_pad`. Original LLaVA models pad although their
                file does not say so.

        Raises:
            DataError: a file is missing or unreadable, or the value of a field is not supported.
        """
        fields = read_fields(directory)
        kind = fields.require_kind(
            "LlavaImageProcessor", "CLIPImageProcessor", "CLIPFeatureExtractor"
        )
        fields.require_resizing()
        if pad_to_square is None:
            pad_to_square = fields.flag("do_pad", False)
            if pad_to_square and kind != "LlavaImageProcessor":
                # transformers pads these images after the crop, which has no effect.
                raise fields.unsupported(
                    "do_pad", f"{kind} has no pad-to-square; pass pad_to_square"
                )
        mean, std = fields.normalisation()
        size, edge, keep_aspect = _lengths(fields, pad_to_square)
        return cls(
            size=size,
            pad_to_square=pad_to_square,
            pad_colour=colour(fields.mean()),
            mean=mean,
            std=std,
            shortest_edge=None if edge == size else edge,
            keep_aspect=keep_aspect,
            resample=fields.resample(),
        )

    def to_video_config(self) -> dict[str, Any] | None:
        """Returns the fields of video_preprocessor_config.json; None without such a file."""
        return None

    def to_processor_config(self) -> dict[str, Any]:
        """Returns the fields of a preprocessor_config.json that `from_processor_config` reads.

        Raises:
            DataError: transformers has no processor that pads with this colour.
        """
        edge = self.shortest_edge or self.size
        normalises = (self.mean, self.std) != ((0.0,) * 3, (1.0,) * 3)
        # transformers pads with int(255 * mean), also where it does not subtract the mean.
        mean = self.mean if normalises else tuple((x + 0.5) / 255 for x in self.pad_colour)
        if self.pad_to_square and self.pad_colour != colour(mean):
            raise DataError(
                f"images are padded with the colour {self.pad_colour}, but the processors of "
                f"transformers pad with 255 times the mean, {colour(mean)}; "
                "train with that pad_colour to export the model"
            )
        stretched = {"height": edge, "width": edge}
        return {
            "image_processor_type": "LlavaImageProcessor",
            "do_pad": self.pad_to_square,
            "do_resize": True,
            "size": {"shortest_edge": edge} if self.keep_aspect else stretched,
            "resample": int(self.resample),
            "do_center_crop": True,
            "crop_size": {"height": self.size, "width": self.size},
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": normalises,
            "image_mean": list(mean),
            "image_std": list(self.std),
            "do_convert_rgb": True,
        }

    def __call__(self, image_HWC: np.ndarray) -> np.ndarray:
        """Preprocesses one image.

        Args:
            image_HWC: uint8 RGB of any size, at least one pixel.

        Returns:
            float32 [size, size, 3], normalised.

        Raises:
            DataError: the array is not a uint8 RGB image.
            ExampleError: "image too elongated": padding it to a square would take too much memory.
        """
        image = checked(image_HWC)
        edge = self.shortest_edge or self.size
        if self.pad_to_square:
            image = self._pad_and_resize(image, edge)
        elif not self.keep_aspect:
            image = stretch(image, edge, edge, self.resample)
        return self.normalise(np.asarray(self._resize_and_crop(image, edge)))

    def tiles(self, image_HWC: np.ndarray, alone: bool = True) -> np.ndarray:
        """Preprocesses one image into the inputs of the vision tower.

        Args:
            image_HWC: see `__call__`.
            alone: whether it is the only image of its prompt; some models give each of several
                images one tile.

        Returns:
            float32 [I, size, size, 3]; here I is 1.

        Raises:
            DataError: see `__call__`.
            ExampleError: see `__call__`.
        """
        del alone
        return self(image_HWC)[None]

    def places(self, size: Size, side: int, alone: bool = True) -> np.ndarray:
        """Returns where in an image the features of its tiles are, by their centres.

        Args:
            size: height and width of the image.
            side: features in a row of a tile.
            alone: see `tiles`.

        Returns:
            float64 [I, side, side, 2]: shares of the image's height and width, counted from its
            upper left corner; below 0 or above 1 for padding.
        """
        del alone
        edge = self.shortest_edge or self.size
        centres = (np.arange(side) + 0.5) * self.size / side

        def along(length: int) -> np.ndarray:
            before, full = 0, edge
            if self.pad_to_square:
                scale, before = edge / max(size), (max(size) - length) // 2
            elif self.keep_aspect:
                scale = edge / min(size)
                full = int(length * scale)
            else:
                scale = edge / length
            return ((centres + (full - self.size) // 2) / scale - before) / length

        return crossed(*map(along, size))[None]

    def frame(self, image_HWC: np.ndarray, frame: Frame) -> np.ndarray:
        """Returns the tiles of a frame of a video; the frame may have another size than the video.

        Args:
            image_HWC: the decoded frame.
            frame: which frame it is.
        """
        del frame
        return self(image_HWC)[None]

    def joined(self, pictures: Sequence[np.ndarray]) -> np.ndarray:
        """Returns what the model takes for an image, or for a video.

        Args:
            pictures: the tiles of the image, see `tiles`; or those of each frame of the video.

        Returns:
            float32 [I, *tile_shape].
        """
        return np.concatenate(pictures)

    @property
    def tile_shape(self) -> tuple[int, int, int]:
        """Shape of a tile as the model takes it."""
        return self.size, self.size, 3

    def of_prompts(self, prompts: Iterable[Prompt]) -> Self:
        """Returns the pipeline for a set of prompts: some have larger tiles where there are videos.

        The prompts of one batch must be of one set.
        """
        del prompts
        return self

    def captions(self, frames: Sequence[Frame]) -> tuple[str, ...]:
        """Returns the text in front of each layout of a video; here it is one, without text."""
        del frames
        return ("",)

    def view(self, tiles_IHWC: np.ndarray, size: ImageSize) -> np.ndarray:
        """Returns the whole picture that the tiles of an image show, float32 [H, W, 3].

        Args:
            tiles_IHWC: see `tiles`, or `frame`.
            size: height and width of the decoded image, or which frame of a video it is.
        """
        del size
        return tiles_IHWC[0]

    def changed(
        self,
        tiles_IHWC: np.ndarray,
        size: ImageSize,
        change: Callable[[int, np.ndarray], np.ndarray],
    ) -> np.ndarray:
        """Applies a change to the normalised pixels of an image, and returns its tiles.

        Here it is applied to each tile: a tile is as large as the whole image of a model with one
        tile for each image.

        Args:
            tiles_IHWC: see `view`.
            size: see `view`.
            change: takes a number and pixels [H, W, 3], and returns others.
        """
        del size
        return np.stack([change(number, tile) for number, tile in enumerate(tiles_IHWC)])

    def small(self, image_HWC: np.ndarray) -> np.ndarray:
        """Returns tiles of the whole picture, as many for every image, see `small_layout`."""
        return self(image_HWC)[None]

    def small_layout(self, features: int) -> ImageLayout:
        """Returns the layout of what `small` returns; for `features` see `layouts`."""
        return _one_tile(features)

    @property
    def blended(self) -> int:
        """Features that an image token is a sum of, see `ImageLayout.blend`; 1 for one feature."""
        return 1

    @property
    def one_layout(self) -> bool:
        """Whether all images have the same layout, whatever their sizes."""
        return True

    @property
    def native(self) -> bool:
        """Whether images keep their own size, see `Layouts.native`."""
        return False

    @property
    def videos(self) -> bool:
        """Whether the model takes the frames of a video as one thing."""
        return False

    def layouts(self, sizes: Sequence[ImageSize], features: int) -> tuple[ImageLayout, ...]:
        """Returns the layout of each image of a prompt; with `videos`, also those of a video.

        Args:
            sizes: heights and widths of the decoded images, or the frames of one video; of no
                effect with `one_layout`.
            features: features that the vision tower makes of a tile.

        Raises:
            ExampleError: an image is too large or too elongated for the model.
        """
        return (_one_tile(features),) * len(sizes)

    def normalise(self, image_HWC: np.ndarray) -> np.ndarray:
        """Computes (value / 255 - mean) / std by a lookup table of the 256 values.

        Args:
            image_HWC: uint8 [..., 3].

        Returns:
            float32 of the same shape.
        """
        values = np.arange(256, dtype=np.float32)[:, None] / 255
        table = (values - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)
        pixels_HWC = np.empty(image_HWC.shape, np.float32)
        for channel in range(3):
            pixels_HWC[..., channel] = table[:, channel][image_HWC[..., channel]]
        return pixels_HWC

    def denormalise(self, image_HWC: np.ndarray) -> np.ndarray:
        """Turns normalised pixels back into an image to look at; values out of range are clipped.

        Args:
            image_HWC: float [..., 3], as `__call__` returns it, with or without added noise.

        Returns:
            uint8 [..., 3].
        """
        pixels_HWC = np.asarray(image_HWC, np.float32) * np.array(self.std, np.float32)
        pixels_HWC = (pixels_HWC + np.array(self.mean, np.float32)) * 255
        return np.clip(np.rint(pixels_HWC), 0, 255).astype(np.uint8)

    def _pad_and_resize(self, image: Image.Image, edge: int) -> Image.Image:
        """Pads to a square of the longer side and resizes that to `edge` x `edge`."""
        require_paddable((image.height, image.width), edge)
        square_width = square_height = max(image.size)
        # Filters are separable, so shrink the long side first and pad the strip. Pillow also starts
        # with the width, so the result for wide images is the same, with fewer rows to shrink.
        if image.width > image.height:
            image, square_width = image.resize((edge, image.height), self.resample), edge
        elif square_width * square_height > _DIRECT_PIXELS:
            image, square_height = image.resize((image.width, edge), self.resample), edge
        square = Image.new("RGB", (square_width, square_height), self.pad_colour)
        left, top = (square_width - image.width) // 2, (square_height - image.height) // 2
        square.paste(image, (left, top))
        return square.resize((edge, edge), self.resample)

    def _resize_and_crop(self, image: Image.Image, edge: int) -> Image.Image:
        """Resizes the short side to `edge` and crops the centre `size` x `size`."""
        short, long = sorted(image.size)
        long_edge = int(edge * long / short)  # rounded down, as transformers and torchvision do
        width, height = (long_edge, edge) if image.width > image.height else (edge, long_edge)
        left, top = (width - self.size) // 2, (height - self.size) // 2
        if width * height <= _DIRECT_PIXELS:
            resized = image.resize((width, height), self.resample)
            return resized.crop((left, top, left + self.size, top + self.size))
        # Compute only the part that remains after the crop.
        x_scale, y_scale = image.width / width, image.height / height
        right = min((left + self.size) * x_scale, image.width)
        bottom = min((top + self.size) * y_scale, image.height)
        box = (left * x_scale, top * y_scale, right, bottom)
        return image.resize((self.size, self.size), self.resample, box=box)


@dataclasses.dataclass(frozen=True)
class ImageLayouts:
    """The layouts of images for one model, see `seva_jax.types.Layouts`.

    Attributes:
        processing: the image pipeline.
        tile_features: features that the vision tower makes of a tile.
    """

    processing: ImageProcessing
    tile_features: int

    @property
    def one_layout(self) -> bool:
        return self.processing.one_layout

    @property
    def blended(self) -> int:
        return self.processing.blended

    @property
    def native(self) -> bool:
        return self.processing.native

    @property
    def videos(self) -> bool:
        return self.processing.videos

    def captions(self, frames: Sequence[Frame]) -> tuple[str, ...]:
        return self.processing.captions(frames)

    def __call__(self, sizes: Sequence[ImageSize]) -> tuple[ImageLayout, ...]:
        return self.processing.layouts(sizes, self.tile_features)


def checked(image_HWC: np.ndarray) -> Image.Image:
    """Returns an array as an image of Pillow.

    Raises:
        DataError: it is not uint8 RGB of at least one pixel.
    """
    if image_HWC.dtype != np.uint8 or image_HWC.ndim != 3 or image_HWC.shape[-1] != 3:
        raise DataError(
            f"expected a uint8 image [H, W, 3], got {image_HWC.dtype} {image_HWC.shape}; "
            "decode files with seva_jax.images.load.decode_image"
        )
    if not image_HWC.size:
        raise DataError(f"the image has no pixels: shape {image_HWC.shape}")
    return Image.fromarray(np.ascontiguousarray(image_HWC))


def still(sizes: Sequence[ImageSize]) -> list[Size]:
    """Returns the sizes of images that are not frames of a video."""
    assert not any(isinstance(size, Frame) for size in sizes), "the model takes no videos"
    return [(size[0], size[1]) for size in sizes]


def require_paddable(size: Size, edge: int) -> None:
    """Checks that padding an image to a square, which is resized to `edge`, takes little memory.

    Raises:
        ExampleError: "image too elongated".
    """
    if max(size) * edge > _DIRECT_PIXELS:
        raise ExampleError(
            f"an image with a side of {max(size)} pixels is too long to be padded to a square; "
            "crop it or drop it",
            "image too elongated",
        )


def crossed(y_H: np.ndarray, x_W: np.ndarray) -> np.ndarray:
    """Returns every pair of a row and a column, [H, W, 2]."""
    return np.stack(np.meshgrid(y_H, x_W, indexing="ij"), axis=-1)


def stretch(image: Image.Image, width: int, height: int, resample: Image.Resampling) -> Image.Image:
    """Resizes an image, whatever its shape."""
    if width * image.height > _DIRECT_PIXELS:  # Pillow starts with the width
        image = image.resize((image.width, height), resample)
    return image.resize((width, height), resample)


def colour(mean: Sequence[float]) -> tuple[int, int, int]:
    """Returns the colour 0-255 that transformers pads with, given the mean of each of RGB."""
    red, green, blue = (int(255 * x) for x in mean)
    return red, green, blue


def _lengths(fields: Fields, pad_to_square: bool) -> tuple[int, int, bool]:
    """Returns the size, the edge before the crop, and whether the aspect ratio is kept."""
    edge, keep_aspect = fields.resize_target()
    if fields.flag("do_center_crop", True):
        size = fields.square("crop_size")
        if size > edge:
            raise fields.unsupported("crop_size", f"larger than size ({edge})")
        return size, edge, keep_aspect
    if keep_aspect and not pad_to_square:
        raise fields.unsupported("do_center_crop", "without it images would not be square")
    return edge, edge, keep_aspect


@functools.lru_cache
def _one_tile(features: int) -> ImageLayout:
    return ImageLayout(1, np.arange(features, dtype=np.int32))
