"""Images as the model gets them: pixels, or cached features of its frozen vision tower.

What lives here: what a row of a batch holds for an image, and where it comes from. What does not:
computing features (`seva_jax/inference/features.py`), decoding (`seva_jax/images/`).
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import os
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, cast

import numpy as np

from seva_jax.images import ImageProcessing
from seva_jax.runtime.read_ahead import READERS, read_ahead
from seva_jax.runtime.stores import StorePath, is_remote
from seva_jax.types import DataError, ExampleError, Frame, ImageSize, Prompt, Size, frames_of


class ImageUse(NamedTuple):
    """An image or a video, and what its layout depends on besides its size.

    Attributes:
        names: the name of the image, or those of the frames of the video.
        alone: whether it is the only image of its prompt.
        seconds: of a video, how far apart its frames are; 0 for an image.
    """

    names: tuple[str, ...]
    alone: bool = True
    seconds: float = 0.0


def image_uses(prompt: Prompt) -> list[ImageUse]:
    """Returns the uses of the images of one prompt, or of its video.

    Raises:
        ExampleError: see `Prompt.seconds_per_frame`.
    """
    if prompt.about_video:
        return [ImageUse(prompt.images, alone=False, seconds=prompt.seconds_per_frame)]
    return [ImageUse((name,), len(prompt.images) == 1) for name in prompt.images]


class Picture(NamedTuple):
    """An image or a frame of a video, preprocessed.

    Attributes:
        tiles_IHWC: float32, its tiles before `ImageProcessing.joined`.
        size: its height and width before it was preprocessed; or which frame it is.
    """

    tiles_IHWC: np.ndarray
    size: ImageSize


class ImageInput(Protocol):
    """Gives the tiles of an image, [I, X]; raises `ExampleError` for one that cannot be read."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape X of one tile."""
        ...

    @property
    def dtype(self) -> Any:
        """The dtype of the array."""
        ...

    @property
    def remote(self) -> bool:
        """Whether an image takes a request to an object store."""
        ...

    def __call__(self, use: ImageUse) -> np.ndarray:
        """Returns the tiles of one image."""
        ...


def load_images(images: ImageInput, prompt: Prompt) -> np.ndarray:
    """Returns the tiles of the images of one prompt, [I, X]; I may be 0."""
    loaded = [images(use) for use in image_uses(prompt)]
    return np.concatenate(loaded) if loaded else np.zeros((0, *images.shape), images.dtype)


@dataclasses.dataclass(frozen=True)
class ReadImages:
    """Some images that have been read already.

    Attributes:
        images: where they are from.
        read: their tiles, or why they could not be read.
    """

    images: ImageInput
    read: Mapping[ImageUse, np.ndarray | ExampleError]
    remote: bool = dataclasses.field(default=False, init=False)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.images.shape

    @property
    def dtype(self) -> Any:
        return self.images.dtype

    def __call__(self, use: ImageUse) -> np.ndarray:
        image = self.read[use]
        if isinstance(image, ExampleError):
            raise image
        return image


def read_together(images: ImageInput, uses: Iterable[ImageUse], threads: int) -> ReadImages:
    """Reads several images at a time.

    Args:
        images: gives the tiles of an image.
        uses: the images.
        threads: how many are read at a time.

    Raises:
        StoreError: the store does not answer.
    """

    def read(use: ImageUse) -> np.ndarray | ExampleError:
        try:
            return images(use)
        except ExampleError as error:
            return error

    uses = list(dict.fromkeys(uses))
    read_images = read_ahead(read, uses, threads, max(len(uses), 1))
    return ReadImages(images, dict(zip(uses, read_images, strict=True)))


@dataclasses.dataclass(frozen=True)
class Pixels:
    """Images decoded and preprocessed when they are asked for: tiles [H, W, 3], float32.

    Attributes:
        load_image: image name -> uint8 [H, W, 3].
        processing: image pipeline.
        remote: whether an image takes a request to an object store.
    """

    load_image: Callable[[str], np.ndarray]
    processing: ImageProcessing
    remote: bool = False
    dtype: Any = dataclasses.field(default=np.float32, init=False)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.processing.tile_shape

    def __call__(self, use: ImageUse) -> np.ndarray:
        return self.processing.joined([tiles for tiles, _ in self.pictures(use)])

    def pictures(self, use: ImageUse) -> list[Picture]:
        """Returns an image, or each frame of a video, before `ImageProcessing.joined`."""
        images = self._loaded(use)
        sizes: Sequence[ImageSize] = [_size(image) for image in images]
        if use.seconds:
            sizes = frames_of(_size(images[0]), len(images), use.seconds)
        return [self.picture(x, use, size) for x, size in zip(images, sizes, strict=True)]

    def picture(self, image_HWC: np.ndarray, use: ImageUse, size: ImageSize) -> Picture:
        """Returns an image before `ImageProcessing.joined`.

        Args:
            image_HWC: the image, which may have been changed since it was decoded.
            use: see `pictures`.
            size: what it is called in `Picture`; an image that is no frame has its own size.
        """
        if isinstance(size, Frame):
            return Picture(self.processing.frame(image_HWC, size), size)
        return Picture(self.processing.tiles(image_HWC, use.alone), _size(image_HWC))

    def small(self, name: str) -> np.ndarray:
        """Returns tiles of the whole image, see `ImageProcessing.small`."""
        return self.processing.joined([self.processing.small(self.load_image(name))])

    def key(self, use: ImageUse) -> tuple[str, Size]:
        """Returns a hash of the images and how they are preprocessed, and the first one's size."""
        images = self._loaded(use)
        how = ([image.shape for image in images], self.processing)
        if not self.processing.one_layout:
            how = (*how, use.alone, use.seconds)
        hashed = hashlib.sha256(repr(how).encode())
        for image in images:
            hashed.update(np.ascontiguousarray(image).data)
        return hashed.hexdigest(), _size(images[0])

    def _loaded(self, use: ImageUse) -> list[np.ndarray]:
        if not self.remote or len(use.names) == 1:
            return [self.load_image(name) for name in use.names]
        return list(read_ahead(self.load_image, use.names, READERS, READERS))


def _size(image_HWC: np.ndarray) -> Size:
    height, width, _ = image_HWC.shape
    return height, width


@dataclasses.dataclass(frozen=True)
class FeatureCache:
    """Features of images under one vision tower, one file per image, on a disk or in a store.

    Files are zip archives of one NumPy array, so reading them verifies a checksum.

    Attributes:
        directory: a directory of this tower alone.
        shape: [P, E], shape of the features of a tile.
        dtype: dtype of the features, which are stored bit for bit.
    """

    directory: Path
    shape: tuple[int, int]
    dtype: Any

    def path(self, key: str) -> Path:
        """Returns the file of an image, see `Pixels.key`."""
        return self.directory / key[:2] / f"{key[2:]}.npz"

    def lacking(self, keys: Iterable[str]) -> list[str]:
        """Returns the keys of the images that it has no features of, in order."""
        if not is_remote(self.directory):
            return [key for key in keys if not self.path(key).exists()]
        there = cast(StorePath, self.directory).below()
        return [key for key in keys if f"{key[:2]}/{key[2:]}.npz" not in there]

    def write(self, key: str, features_IPE: np.ndarray) -> None:
        """Stores the features of an image; readers see nothing or all of them."""
        path = self.path(key)
        bits = np.ascontiguousarray(features_IPE, self.dtype).view(np.uint8)
        if is_remote(path):
            archive = io.BytesIO()
            np.savez(archive, bits=bits)
            path.write_bytes(archive.getvalue())
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_suffix(f".{os.getpid()}.tmp")
        with aside.open("wb") as file:
            np.savez(file, bits=bits)
        aside.replace(path)

    def read(self, key: str) -> np.ndarray:
        """Returns the features of the tiles of an image, [I, P, E].

        Raises:
            DataError: the file is missing, damaged or of another shape.
        """
        path = self.path(key)
        try:
            opened = io.BytesIO(path.read_bytes()) if is_remote(path) else path.open("rb")
            with opened as file, np.load(file, allow_pickle=False) as stored:
                return stored["bits"].view(self.dtype).reshape(-1, *self.shape)
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise DataError(
                f"{path}: not the features of an image ({error}); delete it and run again"
            ) from error


@dataclasses.dataclass(frozen=True)
class Features:
    """Images as features from a cache: tiles [P, E].

    Attributes:
        cache: where they are stored.
        keys: the key of every image that could be read.
    """

    cache: FeatureCache
    keys: Mapping[ImageUse, str]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.cache.shape

    @property
    def dtype(self) -> Any:
        return self.cache.dtype

    @property
    def remote(self) -> bool:
        return is_remote(self.cache.directory)

    def __call__(self, use: ImageUse) -> np.ndarray:
        if use not in self.keys:
            raise ExampleError(f"{use.names[0]}: could not be read before", "unreadable image")
        return self.cache.read(self.keys[use])
