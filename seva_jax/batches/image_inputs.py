"""Images as the model gets them: pixels, or cached features of its frozen vision tower.

What lives here: what a row of a batch holds for an image, and where it comes from. What does not:
computing features (`seva_jax/inference/features.py`), decoding (`seva_jax/images/`).
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from seva_jax.images import ImageProcessing
from seva_jax.types import DataError, ExampleError


class ImageInput(Protocol):
    """Gives an image by name, [X]; raises `ExampleError` for an image that cannot be read."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape X of one image."""
        ...

    @property
    def dtype(self) -> Any:
        """The dtype of the array."""
        ...

    def __call__(self, name: str) -> np.ndarray:
        """Returns one image."""
        ...


def load_images(images: ImageInput, names: Sequence[str]) -> np.ndarray:
    """Returns several images, [I, X]; I may be 0."""
    loaded = [images(name) for name in names]
    return np.stack(loaded) if loaded else np.zeros((0, *images.shape), images.dtype)


@dataclasses.dataclass(frozen=True)
class Pixels:
    """Images decoded and preprocessed when they are asked for: [H, W, 3], float32.

    Attributes:
        load_image: image name -> uint8 [H, W, 3].
        processing: image pipeline.
    """

    load_image: Callable[[str], np.ndarray]
    processing: ImageProcessing
    dtype: Any = dataclasses.field(default=np.float32, init=False)

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.processing.size, self.processing.size, 3)

    def __call__(self, name: str) -> np.ndarray:
        return self.processing(self.load_image(name))

    def key(self, name: str) -> str:
        """Returns a hash of the image's content, before preprocessing, and of the preprocessing."""
        image = self.load_image(name)
        hashed = hashlib.sha256(repr((image.shape, self.processing)).encode())
        hashed.update(np.ascontiguousarray(image).data)
        return hashed.hexdigest()


@dataclasses.dataclass(frozen=True)
class FeatureCache:
    """Features of images under one vision tower on disk, one file per image.

    Files are zip archives of one NumPy array, so reading them verifies a checksum.

    Attributes:
        directory: a directory of this tower alone.
        shape: [P, E], shape of the features of an image.
        dtype: dtype of the features, which are stored bit for bit.
    """

    directory: Path
    shape: tuple[int, int]
    dtype: Any

    def path(self, key: str) -> Path:
        """Returns the file of an image, see `Pixels.key`."""
        return self.directory / key[:2] / f"{key[2:]}.npz"

    def write(self, key: str, features_PE: np.ndarray) -> None:
        """Stores the features of an image; readers see nothing or all of them."""
        path = self.path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_suffix(f".{os.getpid()}.tmp")
        bits = np.ascontiguousarray(features_PE, self.dtype).view(np.uint8)
        with aside.open("wb") as file:
            np.savez(file, bits=bits)
        aside.replace(path)

    def read(self, key: str) -> np.ndarray:
        """Returns the features [P, E] of an image.

        Raises:
            DataError: the file is missing, damaged or of another shape.
        """
        path = self.path(key)
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
                return stored["bits"].view(self.dtype).reshape(self.shape)
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise DataError(
                f"{path}: not the features of an image ({error}); delete it and run again"
            ) from error


@dataclasses.dataclass(frozen=True)
class Features:
    """Images as features from a cache: [P, E].

    Attributes:
        cache: where they are stored.
        keys: the key of every image that could be read, by name.
    """

    cache: FeatureCache
    keys: Mapping[str, str]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.cache.shape

    @property
    def dtype(self) -> Any:
        return self.cache.dtype

    def __call__(self, name: str) -> np.ndarray:
        if name not in self.keys:
            raise ExampleError(f"{name}: could not be read before", "unreadable image")
        return self.cache.read(self.keys[name])
