"""Pairs of an answer with the image and with a region of the image made useless (MMedPO's D_v).

What lives here: masks and heat maps beside images, and the pairs. What does not: the noise
(`seva_jax/corrupt/region.py`), weights (`scores.py`), pairs with hallucinated answers (MMedPO's
D_t), which are those of any file; `mixed.py` puts both together.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path, PurePath
from typing import Annotated

import numpy as np

from seva_jax.corrupt import corruption_key
from seva_jax.corrupt.region import RegionNoise
from seva_jax.data.sources import PreferenceSet, PreferenceSource, PromptSource
from seva_jax.data.wrapped import opened_pairs, rewritten
from seva_jax.images.load import decode_image, resolve_image
from seva_jax.ranges import FROM_0
from seva_jax.types import Comparison, DataError, ExampleError, Prompt, View

_MAX_VALUES = 30_000_000  # as of images
_PREFIX = "region:"


@dataclasses.dataclass(frozen=True)
class Maps:
    """Base class: masks or heat maps of images."""

    def name(self, prompt: Prompt, image: str) -> str:
        """Name of the map of an image that a prompt is about.

        Raises:
            ExampleError: there is none.
        """
        raise NotImplementedError(f"{type(self).__name__} must define name")

    def load(self, name: str) -> np.ndarray:
        """A map by its name, float32 [H, W], finite; a mask is 1 inside and 0 outside.

        Raises:
            ExampleError: it cannot be read.
        """
        raise NotImplementedError(f"{type(self).__name__} must define load")


@dataclasses.dataclass(frozen=True)
class MapFolder(Maps):
    """Files with the paths of the images, but for the extension: NumPy's .npy, or grey images.

    Of images the red channel counts, 255 as 1. Arrays are numbers [H, W]; they are never unpickled.
    No path leads out of the folder.

    Attributes:
        root: the folder.
    """

    root: str = ""

    def name(self, prompt: Prompt, image: str) -> str:
        """See `Maps.name`."""
        del prompt  # an image has one map
        if not self.root or not Path(self.root).is_dir():
            raise DataError(f"{self.root or 'MapFolder.root'}: no such folder of masks; give one")
        return self._path(image).relative_to(Path(self.root).resolve()).as_posix()

    def load(self, name: str) -> np.ndarray:
        """See `Maps.load`."""
        path = self._path(name)
        if path.suffix != ".npy":
            return decode_image(path, name=name)[..., 0].astype(np.float32) / 255
        try:  # mapped: a header that lies about the size takes no memory
            found = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise _unreadable(name, str(error)) from error
        if not isinstance(found, np.ndarray) or found.ndim != 2 or found.dtype.kind not in "biuf":
            raise _unreadable(name, "not numbers [height, width]")
        if not 0 < found.size <= _MAX_VALUES:
            raise _unreadable(name, f"{found.size:,} values, limit {_MAX_VALUES:,}")
        values_HW = np.asarray(found, np.float32)
        if not np.isfinite(values_HW).all():
            raise _unreadable(name, "not all numbers are finite")
        return values_HW

    def _path(self, name: str) -> Path:
        array = PurePath(name).with_suffix(".npy").as_posix() if PurePath(name).name else name
        for candidate in (array, name):
            try:
                return resolve_image(Path(self.root), candidate)
            except ExampleError as error:
                if error.reason != "missing image":
                    raise ExampleError(str(error), "unsafe mask path") from error
        raise ExampleError(
            f"{name!r}: no mask in {self.root}, neither .npy nor an image; make one",
            "missing mask",
        )


def _unreadable(name: str, why: str) -> ExampleError:
    return ExampleError(f"{name}: not a readable mask ({why}); write it again", "unreadable mask")


@dataclasses.dataclass(frozen=True)
class NoisedRegions(PreferenceSource):
    """The chosen answers of a source, to the image (chosen) and to the noised image (rejected).

    Comparisons have two trees, for `DPO` and others that need log-probs only. Pairs whose images
    lack a map, whose map cannot be read, or that have a second view already are left out and
    counted. The noise of an image follows from the seed, its name and its map.

    Attributes:
        source: the pairs; their rejected answers are not used.
        maps: masks or heat maps of the images.
        noise: what becomes of the region.
        confidence: field of the prompt's `meta` that says how sure the tool is of its map; it
            becomes the score of the rejected side, which `RawScore` takes as weight. Empty: all
            are 1.
        seed: of the noise.
    """

    source: PromptSource = PreferenceSource()
    maps: Maps = MapFolder()
    noise: RegionNoise = RegionNoise()
    confidence: str = ""
    seed: Annotated[int, FROM_0] = 0

    def open(self) -> PreferenceSet:
        """See `PromptSource.open`."""
        data = opened_pairs(self.source, "NoisedRegions")
        noised: dict[str, tuple[str, str]] = {}  # name -> those of image and map

        def load_image(name: str) -> np.ndarray:
            if name not in noised:
                return data.load_image(name)
            image, map_ = noised[name]
            key = corruption_key(self.seed, name, 0)
            return self.noise(key, data.load_image(image), self.maps.load(map_))

        def pair(comparison: Comparison) -> Comparison:
            prompt, names = comparison.prompt, []
            if not prompt.images:
                raise ExampleError("there is no image to noise", "no image")
            if comparison.more:
                raise ExampleError("the pair has a second view already", "several views")
            for image in prompt.images:
                map_ = self.maps.name(prompt, image)
                self.maps.load(map_)
                names.append(f"{_PREFIX}{map_}:{image}")
                noised[names[-1]] = image, map_
            again = dataclasses.replace(prompt, images=tuple(names))
            chosen = comparison.answers[:1]
            sure = score_of(prompt, self.confidence) if self.confidence else 1.0
            return Comparison(
                prompt, chosen, comparison.weight, scores=(0.0, sure), more=(View(again, chosen),)
            )

        return dataclasses.replace(rewritten(data, pair), load_image=load_image, read_image=None)


def score_of(prompt: Prompt, field: str) -> float:
    """A number in a prompt's `meta`.

    Raises:
        ExampleError: there is none.
    """
    value = prompt.meta.get(field)
    if isinstance(value, bool) or not isinstance(value, int | float) or not np.isfinite(value):
        raise ExampleError(f"{field} must be a finite number, not {value!r}", "no score")
    return float(value)
