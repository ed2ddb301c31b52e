"""Reads the files that describe the image processors of transformers.

What lives here: finding the file, and checked access to its fields. What does not: what the fields
mean for a kind of processing (`preprocess.py`, `llava_next.py`, `llava_onevision.py`,
`internvl.py`).
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, TypeGuard

from PIL import Image

from seva_jax.runtime.stores import as_path
from seva_jax.types import DataError

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

IMAGES, VIDEOS = "preprocessor_config.json", "video_preprocessor_config.json"
PROCESSOR = "processor_config.json"  # may have what belongs into these in parts of its own
_MAX_EDGE = 2**14  # largest side of a model's input; a larger number means a damaged file
_MAX_LEVEL = 1e6  # likewise for means and deviations

Triple = tuple[float, float, float]


def read_fields(directory: str | Path) -> Fields:
    """Reads the fields of the image processor in a local model directory.

    Reads `processor_config.json` with a nested "image_processor" (transformers 5; preferred where
    both files exist, as there) and `preprocessor_config.json` of any version.

    Raises:
        DataError: the file is missing or unreadable.
    """
    fields = _read_part(as_path(directory), "image_processor", IMAGES)
    if fields is None:
        raise DataError(
            f"{as_path(directory) / IMAGES}: no such file, nor a {PROCESSOR} with an "
            "image_processor; save the model's processor there with save_pretrained"
        )
    return fields


def read_video_fields(directory: str | Path) -> Fields | None:
    """Reads the fields of the video processor in a local model directory; None without a file.

    Raises:
        DataError: the file is unreadable.
    """
    return _read_part(as_path(directory), "video_processor", VIDEOS)


def _read_part(directory: Path, part: str, own_file: str) -> Fields | None:
    for name in (PROCESSOR, own_file):
        path = directory / name
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            raise DataError(f"{path}: not readable as JSON ({error}); save it again") from error
        if name == PROCESSOR and isinstance(config, dict):
            config = config.get(part)
            if config is None:
                continue  # in transformers 4 this file has no such part
        if not isinstance(config, dict):
            raise DataError(
                f"{path}: expected a JSON object describing the {part.replace('_', ' ')}"
            )
        return Fields(path, config)
    return None


@dataclasses.dataclass(frozen=True)
class Fields:
    """The fields of a processor file.

    A missing field has the default of transformers, except that lengths are required.

    Attributes:
        path: the file, for messages.
        config: its fields.
    """

    path: Path
    config: dict[str, Any]

    def require_kind(self, *kinds: str) -> str:
        """Returns the name of the image processor, without the suffix of a backend.

        Raises:
            DataError: it is not one of `kinds`, the first of which a file without a name means.
        """
        kind = str(
            self.config.get("image_processor_type")
            or self.config.get("feature_extractor_type")
            or kinds[0]
        )
        for suffix in ("Fast", "Pil"):
            kind = kind.removesuffix(suffix)
        if kind not in kinds:
            raise self.unsupported("image_processor_type", f"expected {' or '.join(kinds)}")
        return kind

    def require_resizing(self) -> None:
        """Raises `DataError` unless images are resized, and rescaled to between 0 and 1."""
        for field in ("do_resize", "do_rescale"):
            if not self.flag(field, True):
                raise self.unsupported(field, "only true is supported")
        factor = self.config.get("rescale_factor", 1 / 255)
        if not isinstance(factor, int | float) or abs(factor * 255 - 1) > 1e-6:
            raise self.unsupported("rescale_factor", "only 1/255 is supported")

    def unsupported(self, field: str, why: str) -> DataError:
        """Returns the error for the value of a field."""
        value = self.config.get(field, "absent")
        return DataError(f"{self.path}: {field} is {value!r}: {why}")

    def flag(self, field: str, default: bool) -> bool:
        """Returns a field that is true or false."""
        value = self.config.get(field)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.unsupported(field, "must be true or false")
        return value

    def count(self, field: str, default: int, most: int) -> int:
        """Returns a field that is a whole number from 1 to `most`."""
        value = self.config.get(field)
        if value is None:
            return default
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
            raise self.unsupported(field, f"must be a whole number from 1 to {most}")
        return value

    def mean(self) -> Triple:
        """Returns the mean of each of RGB, whether or not images are normalised with it."""
        return self._triple("image_mean", CLIP_MEAN)

    def normalisation(self) -> tuple[Triple, Triple]:
        """Returns the means to subtract from RGB, and the deviations to divide by."""
        mean = self.mean()
        if not self.flag("do_normalize", True):
            return (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
        std = self._triple("image_std", CLIP_STD)
        if min(std) <= 0:
            raise self.unsupported("image_std", "every value must be above 0")
        return mean, std

    def _triple(self, field: str, default: Triple) -> Triple:
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
        """Returns the side of a square."""
        value = self.config.get(field)
        if isinstance(value, dict) and set(value) == {"height", "width"}:
            if value["height"] != value["width"]:
                raise self.unsupported(field, "only squares are supported")
            value = value["height"]
        if not _is_length(value):
            raise self.unsupported(field, "must be a length, or height and width")
        return value

    def resample(self) -> Image.Resampling:
        """Returns Pillow's filter for resizing."""
        value = self.config.get("resample", Image.Resampling.BICUBIC)
        try:
            return Image.Resampling(value)
        except ValueError:
            known = ", ".join(f"{r.value} {r.name.lower()}" for r in Image.Resampling)
            raise self.unsupported("resample", f"must be one of {known}") from None

    def resolutions(self, field: str, tile: int) -> tuple[tuple[int, int], ...]:
        """Returns a list of heights and widths in pixels, each a multiple of `tile`."""
        value = self.config.get(field)
        if not isinstance(value, list | tuple) or not value:
            raise self.unsupported(field, "must be a list of [height, width]")
        for item in value:
            if not isinstance(item, list | tuple) or len(item) != 2:
                raise self.unsupported(field, "must be a list of [height, width]")
            if not all(_is_length(x) and x % tile == 0 for x in item):
                raise self.unsupported(
                    field,
                    f"every height and width must be a multiple of {tile}, the size of a tile",
                )
        return tuple((item[0], item[1]) for item in value)


def _is_length(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= _MAX_EDGE
