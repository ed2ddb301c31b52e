"""Pairs of the same answer to an image, and to the image with noise in a region (MMedPO's D_v).

What lives here: masks and heat maps of images, and the pairs. What does not: the noise
(`seva_jax/corrupt/region.py`), weights (`scores.py`), and pairs with hallucinated answers (MMedPO's
D_t), which any file of pairs may hold; `mixed.py` combines both.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import tempfile
from pathlib import Path, PurePath
from typing import Annotated

import numpy as np
from typing_extensions import override

from seva_jax.corrupt import corruption_key
from seva_jax.corrupt.region import RegionNoise
from seva_jax.data.collect import number_of
from seva_jax.data.sources import PreferenceSet, PreferenceSource, PromptSource
from seva_jax.data.wrapped import opened_pairs, require_single_view, rewritten
from seva_jax.images.folder import ImageFiles
from seva_jax.images.load import FollowsLinks, decode_image, require_link_roots
from seva_jax.ranges import FROM_0
from seva_jax.runtime.read_ahead import READERS, read_ahead
from seva_jax.runtime.stores import as_path, is_remote
from seva_jax.types import Comparison, DataError, ExampleError, Prompt, Size, View

_MAX_VALUES = 30_000_000  # of one map: the limit of `decode_image`
_PREFIX = "region:"


@dataclasses.dataclass(frozen=True)
class Maps:
    """Base class of masks or heat maps of images."""

    @property
    def remote(self) -> bool:
        """Whether reading a map takes a request to an object store."""
        return False

    def name(self, prompt: Prompt, image: str) -> str:
        """Returns the name of the map of an image that a prompt is about.

        Raises:
            ExampleError: there is no map.
        """
        raise NotImplementedError(f"{type(self).__name__} must define name")

    def load(self, name: str) -> np.ndarray:
        """Returns a map as float32 [H, W], finite; a mask is 1 inside and 0 outside.

        Raises:
            ExampleError: it cannot be read.
        """
        raise NotImplementedError(f"{type(self).__name__} must define load")


@dataclasses.dataclass(frozen=True)
class MapFolder(FollowsLinks, Maps):
    """Maps in files named like the images, with the extension .npy or that of a grey image.

    Arrays hold numbers [H, W] and are never unpickled. Of a grey image the red channel is used, in
    which 255 means 1. Names cannot lead out of the folder.

    Attributes:
        root: the folder.
    """

    root: str = ""

    @override
    def name(self, prompt: Prompt, image: str) -> str:
        del prompt  # an image has one map
        return self._files.find(self._spelled(image))

    @override
    def load(self, name: str) -> np.ndarray:
        path = self._files.path(self._spelled(name))
        if path.suffix != ".npy":
            return decode_image(path, name=name)[..., 0].astype(np.float32) / 255
        try:
            array = _mapped(path)
        except (OSError, ValueError, EOFError) as error:
            raise _unreadable(name, str(error)) from error
        if not isinstance(array, np.ndarray) or array.ndim != 2 or array.dtype.kind not in "biuf":
            raise _unreadable(name, "not numbers [height, width]")
        if not 0 < array.size <= _MAX_VALUES:
            raise _unreadable(name, f"{array.size:,} values, limit {_MAX_VALUES:,}")
        values_HW = np.asarray(array, np.float32)
        if not np.isfinite(values_HW).all():
            raise _unreadable(name, "not all numbers are finite")
        return values_HW

    @functools.cached_property
    def _files(self) -> ImageFiles:
        """The files in the folder."""
        if not self.root or not as_path(self.root).is_dir():
            raise DataError(f"{self.root or 'MapFolder.root'}: no such folder of masks; give one")
        require_link_roots(self.link_roots)
        return ImageFiles(as_path(self.root), self.link_roots)

    @property
    @override
    def remote(self) -> bool:
        return self._files.remote

    def _spelled(self, name: str) -> str:
        """Returns the name by which the map of an image is found."""
        array = PurePath(name).with_suffix(".npy").as_posix() if PurePath(name).name else name
        for candidate in (array, name):
            try:
                self._files.find(candidate)
                return candidate
            except ExampleError as error:
                if error.reason != "missing image":
                    raise ExampleError(str(error), "unsafe mask path") from error
        message = f"{name!r}: no mask in {self.root}, neither .npy nor an image; make one"
        raise ExampleError(message, "missing mask")


def _mapped(path: Path) -> np.ndarray:
    """Returns a memory-mapped array: a header with a wrong size allocates nothing."""
    if not is_remote(path):
        return np.load(path, mmap_mode="r", allow_pickle=False)
    with tempfile.NamedTemporaryFile() as file:
        file.write(path.read_bytes())
        file.flush()
        return np.load(file.name, mmap_mode="r", allow_pickle=False)


def _unreadable(name: str, why: str) -> ExampleError:
    return ExampleError(f"{name}: not a readable mask ({why}); write it again", "unreadable mask")


@dataclasses.dataclass(frozen=True)
class NoisedRegions(PreferenceSource):
    """The chosen answers of a source, to the image (chosen) and to the noised image (rejected).

    Comparisons have two views, for `DPO` and other objectives that need log-probs only. A pair is
    left out and counted if it has no images or already a second view, or if the map of an image is
    missing or cannot be read. The seed, the name of an image and its map determine its noise.

    Attributes:
        source: the pairs; their rejected answers are not used.
        maps: masks or heat maps of the images.
        noise: the noise in the region.
        confidence: field of a prompt's `meta` with the confidence of the tool that made the map. It
            becomes the score of the rejected side, which `RawScore` uses as weight. Empty: all
            scores are 1.
        seed: seed of the noise.
    """

    source: PromptSource = PreferenceSource()
    maps: Maps = MapFolder()
    noise: RegionNoise = RegionNoise()
    confidence: str = ""
    seed: Annotated[int, FROM_0] = 0

    @override
    def open(self) -> PreferenceSet:
        data = opened_pairs(self.source, "NoisedRegions")
        noised: dict[str, tuple[str, str]] = {}  # name -> names of the image and its map

        def load_image(name: str) -> np.ndarray:
            if name not in noised:
                return data.load_image(name)
            image, map_ = noised[name]
            key = corruption_key(self.seed, name, 0)
            return self.noise(key, data.load_image(image), self.maps.load(map_))

        def read_size(name: str) -> Size:
            return data.image_size(noised[name][0] if name in noised else name)

        def usable(of: tuple[Prompt, str]) -> str | ExampleError:
            try:
                map_ = self.maps.name(*of)
                self.maps.load(map_)
            except ExampleError as error:
                return error
            return map_

        images = ((c.prompt, image) for c in data.comparisons for image in c.prompt.images)
        threads = READERS if self.maps.remote else 1
        usable_maps = read_ahead(usable, images, threads, 2 * threads)

        def pair(comparison: Comparison) -> Comparison:
            prompt, names = comparison.prompt, []
            maps = list(itertools.islice(usable_maps, len(prompt.images)))
            require_single_view(comparison, "noise")
            for image, map_ in zip(prompt.images, maps, strict=True):
                if isinstance(map_, ExampleError):
                    raise map_
                names.append(f"{_PREFIX}{map_}:{image}")
                noised[names[-1]] = image, map_
            again = dataclasses.replace(prompt, images=tuple(names))
            chosen = comparison.answers[:1]
            score = 1.0
            if self.confidence:
                score = number_of(prompt.meta.get(self.confidence), self.confidence)
            return Comparison(
                prompt, chosen, comparison.weight, scores=(0.0, score), more=(View(again, chosen),)
            )

        return dataclasses.replace(
            rewritten(data, pair), load_image=load_image, read_image=None,
            remote=data.remote or self.maps.remote, read_size=read_size,
        )  # fmt: skip
