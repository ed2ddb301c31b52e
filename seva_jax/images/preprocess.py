"""Preprocesses uint8 images of any size for the vision tower.

What lives here: `ImageProcessing`, which agrees with the processors of LLaVA and transformers, and
reading it from their config files. What does not: decoding (`load.py`) and corruptions
(`seva_jax/corrupt`). Read next: `load.py`.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
from PIL import Image

from seva_jax.runtime.stores import as_path
from seva_jax.types import DataError, ExampleError, ImageLayout, Size

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

# A very long image would need an intermediate square or strip far larger than itself. Above this
# many pixels that is never built, at the price of slightly different rounding.
_DIRECT_PIXELS = 36_000_000
_MAX_EDGE = 2**14  # largest side of a model's input; a larger number means a damaged file
_MAX_LEVEL = 1e6  # likewise for means and deviations


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
    ) -> ImageProcessing:
        """Reads the processing from a local model directory.

        Reads `processor_config.json` with a nested "image_processor" (transformers 5; preferred
        where both files exist, as there) and `preprocessor_config.json` of any version.

        Args:
            directory: the model directory.
            pad_to_square: overrides the file's `do_pad`. Original LLaVA models pad although their
                file does not say so.

        Raises:
            DataError: a file is missing or unreadable, or the value of a field is not supported.
        """
        path, config = _read_config(as_path(directory))
        return _Fields(path, config).processing(pad_to_square)

    def to_processor_config(self) -> dict[str, Any]:
        """Returns the fields of a preprocessor_config.json that `from_processor_config` reads.

        Raises:
            DataError: transformers has no processor that pads with this colour.
        """
        edge = self.shortest_edge or self.size
        normalises = (self.mean, self.std) != ((0.0,) * 3, (1.0,) * 3)
        # transformers pads with int(255 * mean), also where it does not subtract the mean.
        mean = self.mean if normalises else tuple((x + 0.5) / 255 for x in self.pad_colour)
        if self.pad_to_square and self.pad_colour != tuple(int(255 * x) for x in mean):
            raise DataError(
                f"images are padded with the colour {self.pad_colour}, but the processors of "
                f"transformers pad with 255 times the mean, {tuple(int(255 * x) for x in mean)}; "
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
        if image_HWC.dtype != np.uint8 or image_HWC.ndim != 3 or image_HWC.shape[-1] != 3:
            raise DataError(
                f"expected a uint8 image [H, W, 3], got {image_HWC.dtype} {image_HWC.shape}; "
                "decode files with seva_jax.images.load.decode_image"
            )
        if not image_HWC.size:
            raise DataError(f"the image has no pixels: shape {image_HWC.shape}")
        image = Image.fromarray(np.ascontiguousarray(image_HWC))
        edge = self.shortest_edge or self.size
        if self.pad_to_square:
            image = self._pad_and_resize(image, edge)
        elif not self.keep_aspect:
            image = image.resize((edge, edge), self.resample)
        return self._normalise(np.asarray(self._resize_and_crop(image, edge)))

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

    @property
    def whole_tile(self) -> int:
        """Which of an image's tiles shows the whole picture: its index, 0 or -1."""
        return 0

    @property
    def one_layout(self) -> bool:
        """Whether all images have the same layout, so that nobody has to know their sizes."""
        return True

    @property
    def blended(self) -> int:
        """Features that an image token is a sum of, see `ImageLayout.blend`; 1 for one feature."""
        return 1

    def layouts(self, sizes: Sequence[Size], features: int) -> tuple[ImageLayout, ...]:
        """Returns the layout of each image of a prompt.

        Args:
            sizes: heights and widths of the decoded images; of no effect with `one_layout`.
            features: features that the vision tower makes of a tile.

        Raises:
            ExampleError: an image is too large or too elongated for the model.
        """
        return (_one_tile(features),) * len(sizes)

    def _normalise(self, image_HWC: np.ndarray) -> np.ndarray:
        """Computes (value / 255 - mean) / std by a lookup table of the 256 values."""
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
        square_width = square_height = max(image.size)
        # Filters are separable, so shrink the long side first and pad the strip. Pillow also starts
        # with the width, so the result for wide images is the same, with fewer rows to shrink.
        if image.width > image.height:
            image, square_width = image.resize((edge, image.height), self.resample), edge
        elif square_width * square_height > _DIRECT_PIXELS:
            image, square_height = image.resize((image.width, edge), self.resample), edge
        if square_width * square_height > _DIRECT_PIXELS:
            raise ExampleError(
                f"an image with a side of {max(square_width, square_height)} pixels is too "
                "long to be padded to a square; crop it or drop it",
                "image too elongated",
            )
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
    def blended(self) -> int:
        return self.processing.blended

    def __call__(self, sizes: Sequence[Size]) -> tuple[ImageLayout, ...]:
        return self.processing.layouts(sizes, self.tile_features)


@functools.lru_cache
def _one_tile(features: int) -> ImageLayout:
    return ImageLayout(1, np.arange(features, dtype=np.int32))


def _read_config(directory: Path) -> tuple[Path, dict[str, Any]]:
    for name in ("processor_config.json", "preprocessor_config.json"):
        path = directory / name
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            raise DataError(f"{path}: not readable as JSON ({error}); save it again") from error
        if name == "processor_config.json" and isinstance(config, dict):
            config = config.get("image_processor")
            if config is None:
                continue  # in transformers 4 this file has no image processor
        if not isinstance(config, dict):
            raise DataError(f"{path}: expected a JSON object describing the image processor")
        return path, config
    raise DataError(
        f"{directory / 'preprocessor_config.json'}: no such file, nor a processor_config.json with "
        "an image_processor; save the model's processor there with save_pretrained"
    )


@dataclasses.dataclass(frozen=True)
class _Fields:
    """The fields of a processor file.

    A missing field has the default of transformers, except that `size` and `crop_size` are
    required.
    """

    path: Path
    config: dict[str, Any]

    def processing(self, pad_to_square: bool | None) -> ImageProcessing:
        kind = str(
            self.config.get("image_processor_type")
            or self.config.get("feature_extractor_type")
            or "LlavaImageProcessor"
        )
        for suffix in ("Fast", "Pil"):
            kind = kind.removesuffix(suffix)
        if kind not in ("CLIPImageProcessor", "CLIPFeatureExtractor", "LlavaImageProcessor"):
            raise self.unsupported("image_processor_type", "use a CLIP or LLaVA processor")
        for field in ("do_resize", "do_rescale"):
            if not self.flag(field, True):
                raise self.unsupported(field, "only true is supported")
        factor = self.config.get("rescale_factor", 1 / 255)
        if not isinstance(factor, int | float) or abs(factor * 255 - 1) > 1e-6:
            raise self.unsupported("rescale_factor", "only 1/255 is supported")

        if pad_to_square is None:
            pad_to_square = self.flag("do_pad", False)
            if pad_to_square and kind != "LlavaImageProcessor":
                # transformers pads these images after the crop, which has no effect.
                raise self.unsupported("do_pad", f"{kind} has no pad-to-square; pass pad_to_square")
        mean = self.triple("image_mean", CLIP_MEAN)
        colour = tuple(int(255 * value) for value in mean)
        if not self.flag("do_normalize", True):
            mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
        else:
            std = self.triple("image_std", CLIP_STD)
            if min(std) <= 0:
                raise self.unsupported("image_std", "every value must be above 0")

        edge, keep_aspect = self.resize_target()
        size = edge
        if self.flag("do_center_crop", True):
            size = self.square("crop_size")
            if size > edge:
                raise self.unsupported("crop_size", f"larger than size ({edge})")
        elif keep_aspect and not pad_to_square:
            raise self.unsupported("do_center_crop", "without it images would not be square")
        return ImageProcessing(
            size=size,
            pad_to_square=pad_to_square,
            pad_colour=(colour[0], colour[1], colour[2]),
            mean=mean,
            std=std,
            shortest_edge=None if edge == size else edge,
            keep_aspect=keep_aspect,
            resample=self.resample(),
        )

    def unsupported(self, field: str, why: str) -> DataError:
        value = self.config.get(field, "absent")
        return DataError(f"{self.path}: {field} is {value!r}: {why}")

    def flag(self, field: str, default: bool) -> bool:
        value = self.config.get(field)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.unsupported(field, "must be true or false")
        return value

    def triple(self, field: str, default: tuple[float, float, float]) -> tuple[float, float, float]:
        value = self.config.get(field, default)
        if not isinstance(value, list | tuple) or len(value) != 3:
            raise self.unsupported(field, "must be three numbers")
        numbers = (isinstance(v, int | float) and not isinstance(v, bool) for v in value)
        if not all(numbers) or not all(abs(v) < _MAX_LEVEL for v in value):  # false for NaN
            raise self.unsupported(field, "must be three numbers")
        return (float(value[0]), float(value[1]), float(value[2]))

    def resize_target(self) -> tuple[int, bool]:
        """Returns the edge to resize to, and whether the aspect ratio is kept."""
        value = self.config.get("size")
        if isinstance(value, dict) and set(value) == {"shortest_edge"}:
            value = value["shortest_edge"]
        elif isinstance(value, dict):
            return self.square("size"), False
        if not _is_length(value):
            raise self.unsupported("size", "must be a length, shortest_edge, or height and width")
        return value, True

    def square(self, field: str) -> int:
        value = self.config.get(field)
        if isinstance(value, dict) and set(value) == {"height", "width"}:
            if value["height"] != value["width"]:
                raise self.unsupported(field, "only squares are supported")
            value = value["height"]
        if not _is_length(value):
            raise self.unsupported(field, "must be a length, or height and width")
        return value

    def resample(self) -> Image.Resampling:
        value = self.config.get("resample", Image.Resampling.BICUBIC)
        try:
            return Image.Resampling(value)
        except ValueError:
            known = ", ".join(f"{r.value} {r.name.lower()}" for r in Image.Resampling)
            raise self.unsupported("resample", f"must be one of {known}") from None


def _is_length(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= _MAX_EDGE
