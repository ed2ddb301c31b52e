"""The contract of a corruption, its composition and keys, and its application on the host.

What lives here: `Corruption`, `Compose`, `corruption_key`, `apply_pixels`. What does not:
operations on pixels (`geometry.py`, `colour.py`, `sharpness.py`, `auto.py`), the noise of the
published method (`diffusion.py`), the published chains (`recipes.py`). Read next: `diffusion.py`,
the shortest one.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
from typing_extensions import override

from seva_jax.types import Array, DataError, Size

Space = Literal["pixels", "normalised", "sequence"]
Number = Array | float  # a parameter of an operation, which may be traced

_PRNG = "threefry2x32"  # whatever the default of the process is
SNAP = 32
MAX_SIDE = 1024


def require(condition: bool, message: str) -> None:
    """Raises `DataError(message)` unless `condition` holds."""
    if not condition:
        raise DataError(message)


def require_range(name: str, low_high: tuple[float, float], low: float, high: float) -> None:
    """Raises `DataError` unless `low_high` is an increasing pair within [low, high]."""
    require(
        len(low_high) == 2 and low <= low_high[0] <= low_high[1] <= high,
        f"{name}={low_high!r}: give two increasing numbers between {low} and {high}.",
    )


def require_field(corruption: Corruption, name: str, low: float, high: float) -> None:
    """Raises `DataError` unless a field of a corruption is within [low, high]."""
    value = getattr(corruption, name)
    require(
        low <= value <= high, f"{type(corruption).__name__}.{name}={value!r}: give {low} to {high}."
    )


@dataclasses.dataclass(frozen=True)
class Corruption:
    """A random change to one image: a pure function of a key, usable under `jit` and `vmap`.

    A subclass is a frozen dataclass with hashable fields (it is a static argument of `jit`). The
    output shape may differ from the input shape but depends on nothing else.

    Attributes:
        space: where it applies. "pixels": float32 RGB in [0, 1] before pad and resize; the result
            is in [0, 1], too. "normalised": float32 after mean and std, at the model's size,
            unbounded. "sequence": not to an image but to the images or captions of a prompt, see
            `sequence.py`.
    """

    space: ClassVar[Space] = "pixels"

    def __call__(self, key: jax.Array, image_HWC: Array) -> jax.Array:
        """Corrupts one image.

        Args:
            key: a typed PRNG key, the only source of randomness.
            image_HWC: float32, in the space named by `space`.

        Returns:
            The corrupted image, float32.
        """
        raise NotImplementedError


@functools.partial(jax.jit, static_argnums=0)
def apply_jitted(corruption: Corruption, key: jax.Array, image_HWC: Array) -> jax.Array:
    """Calls `corruption(key, image_HWC)`, compiled once for equal corruptions and shapes."""
    return corruption(key, image_HWC)


def numpy_generator(key: jax.Array) -> np.random.Generator:
    """Returns NumPy's generator seeded by a typed PRNG key, for changes made on the host."""
    return np.random.default_rng(np.asarray(jax.random.key_data(key)).tolist())


@dataclasses.dataclass(frozen=True)
class RandomlyApplied(Corruption):
    """A deterministic, shape-preserving operation applied with probability `p`.

    Attributes:
        p: probability of applying it.
    """

    p: float = dataclasses.field(default=0.5, kw_only=True)

    def __post_init__(self) -> None:
        require_field(self, "p", 0, 1)

    def apply(self, image_HWC: Array) -> jax.Array:
        """Applies the operation, without chance."""
        raise NotImplementedError

    @override
    def __call__(self, key: jax.Array, image_HWC: Array) -> jax.Array:
        return jnp.where(jax.random.bernoulli(key, self.p), self.apply(image_HWC), image_HWC)


@dataclasses.dataclass(frozen=True)
class Compose(Corruption):
    """Corruptions applied in the given order, each with its own key.

    Attributes:
        steps: at least one corruption, all of one space, which is that of the composition.
    """

    steps: tuple[Corruption, ...]

    def __post_init__(self) -> None:
        require(
            isinstance(self.steps, tuple)
            and bool(self.steps)
            and all(isinstance(step, Corruption) for step in self.steps),
            f"Compose.steps={self.steps!r}: give a non-empty tuple of corruptions.",
        )
        spaces = [step.space for step in self.steps]
        require(
            len(set(spaces)) == 1,
            f"Compose.steps mixes spaces {spaces}: compose corruptions of one space only.",
        )
        # The space belongs to the steps, not to the class; the dataclass is frozen.
        object.__setattr__(self, "space", spaces[0])

    @override
    def __call__(self, key: jax.Array, image_HWC: Array) -> jax.Array:
        corrupted_HWC = jnp.asarray(image_HWC)
        for step_key, step in zip(jax.random.split(key, len(self.steps)), self.steps, strict=True):
            # Each step is compiled on its own: after a crop all images have one size, so (outside
            # another `jit`) the later steps compile once, not for every size of photograph.
            corrupted_HWC = apply_jitted(step, step_key, corrupted_HWC)
        return corrupted_HWC


def corruption_key(seed: int, example_id: str, corruption_index: int) -> jax.Array:
    """Returns the key of one corruption of one example.

    It depends on the three arguments only: not on the process, the Python version, the order of
    the examples or the default PRNG of the process.

    Args:
        seed: the experiment's seed.
        example_id: the id of the prompt.
        corruption_index: position of the corruption among those of each prompt, from 0.

    Returns:
        A typed threefry key.
    """
    return corruption_keys(seed, key_words(example_id, corruption_index))


def key_words(example_id: str, corruption_index: int) -> np.ndarray:
    """Returns the words, uint32 [3], from which `corruption_keys` makes one `corruption_key`."""
    require(corruption_index >= 0, f"corruption_index={corruption_index}: give an integer from 0.")
    # 64 bits of the digest: with 32, two of 16,000 ids would share a key in 3 % of runs.
    words = np.frombuffer(hashlib.sha256(example_id.encode("utf-8")).digest()[:8], dtype="<u4")
    return np.array([*words, corruption_index], np.uint32)


def corruption_keys(seed: int, words: Array) -> jax.Array:
    """Returns many keys with one call of the device.

    Args:
        seed: the experiment's seed.
        words: uint32 [..., 3], see `key_words`.

    Returns:
        Typed threefry keys [...].
    """
    return _folded(_seed_data(seed), words)


@functools.lru_cache
def _seed_data(seed: int) -> np.ndarray:
    return np.asarray(jax.random.key_data(jax.random.key(seed, impl=_PRNG)))


@jax.jit
def _folded(seed_data: Array, words: Array) -> jax.Array:
    def one(words: jax.Array) -> jax.Array:
        key = jax.random.wrap_key_data(jnp.asarray(seed_data), impl=_PRNG)
        for word in words:
            key = jax.random.fold_in(key, word)
        return key

    return jnp.vectorize(one, signature="(n)->()")(words)


def snapped_size(height: int, width: int) -> tuple[int, int]:
    """Returns the (height, width) at which `apply_pixels` corrupts an image.

    Both sides shrink by one factor until the longer is at most 1024. Then each is rounded to a
    multiple of 32 (at least 32), so at most 32 x 32 shapes exist.

    >>> snapped_size(480, 640), snapped_size(333, 500), snapped_size(3000, 4000)
    ((480, 640), (320, 512), (768, 1024))
    """
    scale = min(1.0, MAX_SIDE / max(height, width))
    snapped_height, snapped_width = (
        max(SNAP, int(side * scale / SNAP + 0.5) * SNAP) for side in (height, width)
    )
    return snapped_height, snapped_width


def changed_size(corruption: Corruption, size: Size) -> Size:
    """Returns the height and width of what `apply_pixels` makes of an image of some size."""
    return _changed_size(corruption, snapped_size(*size))


@functools.lru_cache
def _changed_size(corruption: Corruption, size: Size) -> Size:
    key, image_HWC = jax.random.key(0), jax.ShapeDtypeStruct((*size, 3), jnp.float32)
    height, width, _ = jax.eval_shape(corruption, key, image_HWC).shape
    return height, width


def apply_pixels(corruption: Corruption, key: jax.Array, image_HWC: np.ndarray) -> np.ndarray:
    """Corrupts one host image of any size, with a bounded number of compilations.

    Photographs have thousands of sizes, and every new shape compiles again. So the image is first
    resized (PIL, bicubic) to `snapped_size`; a size that is on the grid already stays. Sizes in
    pixels (a crop of 224, a pad of 50) are pixels of the resized image. The result is not resized
    back: pad and resize to the model's size follow anyway.

    Args:
        corruption: of space "pixels"; equal corruptions share compilations.
        key: see `corruption_key`.
        image_HWC: uint8 RGB, any height and width.

    Returns:
        The corrupted image, uint8 RGB, rounded to the nearest level.

    Raises:
        DataError: the corruption is not of space "pixels", or the array is not a uint8 RGB image.
    """
    require(
        corruption.space == "pixels",
        f"{type(corruption).__name__} works on normalised images: apply it after mean and std.",
    )
    require(
        image_HWC.dtype == np.uint8 and image_HWC.shape[2:] == (3,) and image_HWC.size > 0,
        f"image of dtype {image_HWC.dtype} and shape {image_HWC.shape}: give uint8 RGB "
        "[height, width, 3].",
    )
    height, width = snapped_size(*image_HWC.shape[:2])
    if image_HWC.shape[:2] != (height, width):
        resized = Image.fromarray(image_HWC).resize((width, height), Image.Resampling.BICUBIC)
        image_HWC = np.asarray(resized)
    pixels_HWC = np.asarray(image_HWC, np.float32) / 255
    if isinstance(corruption, Compose):  # compiles its own steps
        corrupted_HWC = corruption(key, pixels_HWC)
    else:
        corrupted_HWC = apply_jitted(corruption, key, pixels_HWC)
    return np.round(np.clip(corrupted_HWC, 0, 1) * 255).astype(np.uint8)
