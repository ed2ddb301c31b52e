"""Colour operations, and corruptions that draw their factors, with the same meaning as in PIL.

PIL works on 256 levels. Between operations we keep floats, but everything that PIL derives from
levels (grey images, histograms, masks, thresholds) is derived from levels here too. So on images
of whole levels the operations agree with PIL: exactly where PIL looks levels up, within one level
where it blends (PIL truncates, we do not).

What lives here: pure functions of an image in [0, 1] and a factor, which may be traced, and the
classes that draw the factors. What does not: neighbourhoods of pixels (`sharpness.py`), positions
(`geometry.py`). Read next: `auto.py`, which reuses these functions.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from typing_extensions import override

from seva_jax.corrupt.base import Corruption, Number, RandomlyApplied, require, require_field
from seva_jax.types import Array


def to_levels(image_HWC: Array) -> jax.Array:
    """Returns an image in [0, 1] as whole numbers from 0 to 255, in float32."""
    return jnp.round(jnp.clip(image_HWC, 0, 1) * 255)


def blend(base_HWC: Array, image_HWC: Array, factor: Number) -> jax.Array:
    """Interpolates from `base` (factor 0) to `image` (1), or beyond it, and clips to [0, 1]."""
    return jnp.clip(base_HWC + factor * (image_HWC - base_HWC), 0, 1)


def grayscale(image_HWC: Array) -> jax.Array:
    """Returns PIL's L, `(19595 R + 38470 G + 7471 B) / 2^16` in levels, as three equal channels."""
    # Not dm_pix.rgb_to_grayscale: its weights sum to .9999, and it multiplies matrices, which a TPU
    # rounds to bfloat16. In float32 the sums below are exact.
    levels_HWC = to_levels(image_HWC)
    red, green, blue = (levels_HWC[..., channel : channel + 1] for channel in range(3))
    luma_HW1 = jnp.floor((19595 * red + 38470 * green + 7471 * blue + 32768) / 65536)
    return jnp.broadcast_to(luma_HW1 / 255, image_HWC.shape)


def adjust_brightness(image_HWC: Array, factor: Number) -> jax.Array:
    """Returns `factor * image`, clipped. (dm-pix adds instead of multiplying.)"""
    return blend(jnp.zeros(()), image_HWC, factor)


def adjust_contrast(image_HWC: Array, factor: Number) -> jax.Array:
    """Blends with the mean grey level. (dm-pix uses one mean for each channel.)"""
    # A row of levels sums exactly in float32, so the rounded mean does not depend on the order.
    mean = jnp.floor(to_levels(grayscale(image_HWC)[..., 0]).mean(1).mean() + 0.5) / 255
    return blend(mean, image_HWC, factor)


def adjust_saturation(image_HWC: Array, factor: Number) -> jax.Array:
    """Blends with the grey image. (dm-pix scales the saturation of HSV.)"""
    return blend(grayscale(image_HWC), image_HWC, factor)


def adjust_hue(image_HWC: Array, shift: Number) -> jax.Array:
    """Rotates the hue by `shift` of a full circle, in [-.5, .5].

    PIL stores hue, saturation and value in 256 levels each, dm-pix keeps floats; otherwise they
    are equal.
    """
    import dm_pix

    return jnp.clip(dm_pix.adjust_hue(jnp.asarray(image_HWC), shift), 0, 1)


def invert(image_HWC: Array) -> jax.Array:
    """Returns the negative (dm-pix has none)."""
    return 1 - jnp.clip(image_HWC, 0, 1)


def posterize(image_HWC: Array, bits: Number) -> jax.Array:
    """Keeps the `bits` highest bits of every level (dm-pix has none)."""
    step = jnp.exp2(8 - jnp.asarray(bits, jnp.float32))
    return jnp.floor(to_levels(image_HWC) / step) * step / 255


def solarize(image_HWC: Array, threshold: Number) -> jax.Array:
    """Inverts the levels at or above `threshold`, 0 to 256."""
    import dm_pix

    # Half a level below the first inverted level, so that the rounding of i / 255 cannot matter.
    cut = (jnp.ceil(jnp.asarray(threshold, jnp.float32)) - 0.5) / 255
    return jnp.asarray(dm_pix.solarize(jnp.clip(image_HWC, 0, 1), cut))


def autocontrast(image_HWC: Array) -> jax.Array:
    """Stretches each channel to 0..255; a constant channel stays (dm-pix has none).

    PIL truncates `x * scale + offset` in float64, and so loses a level where rounding errors make
    a whole number slightly smaller. Here the quotient is that of integers, and exact.
    """
    levels_HWC = to_levels(image_HWC).astype(jnp.int32)
    low_C, high_C = levels_HWC.min((0, 1)), levels_HWC.max((0, 1))
    stretched_HWC = (levels_HWC - low_C) * 255 // jnp.maximum(high_C - low_C, 1)
    return jnp.where(high_C > low_C, stretched_HWC, levels_HWC) / 255


def equalize(image_HWC: Array) -> jax.Array:
    """Flattens each channel's histogram as `PIL.ImageOps.equalize` does (dm-pix has none)."""

    def equalize_channel(levels_HW: jax.Array) -> jax.Array:
        counts = jnp.bincount(levels_HW.ravel(), length=256)
        # PIL does not count the highest level that occurs, and does nothing if fewer than 255
        # pixels remain.
        step = (levels_HW.size - counts[levels_HW.max()]) // 255
        below = jnp.cumsum(counts) - counts
        table = jnp.clip((step // 2 + below) // jnp.maximum(step, 1), 0, 255)
        return jnp.where(step > 0, table[levels_HW], levels_HW)

    levels_HWC = to_levels(image_HWC).astype(jnp.int32)
    return jax.vmap(equalize_channel, in_axes=-1, out_axes=-1)(levels_HWC) / 255


@dataclasses.dataclass(frozen=True)
class Grayscale(Corruption):
    """A grey image with three equal channels. No randomness."""

    @override
    def __call__(self, key: jax.Array, image_HWC: Array) -> jax.Array:
        del key
        return grayscale(image_HWC)


@dataclasses.dataclass(frozen=True)
class RandomGrayscale(RandomlyApplied):
    """A grey image with probability `p`; the published recipes use 0.2."""

    p: float = dataclasses.field(default=0.2, kw_only=True)

    @override
    def apply(self, image_HWC: Array) -> jax.Array:
        return grayscale(image_HWC)


@dataclasses.dataclass(frozen=True)
class ColorJitter(Corruption):
    """Brightness, contrast, saturation and hue changed by random factors, in random order.

    Attributes:
        brightness: the factor is uniform in [max(0, 1 - brightness), 1 + brightness].
        contrast: as brightness.
        saturation: as brightness.
        hue: the shift is uniform in [-hue, hue], at most 0.5.
    """

    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.1

    def __post_init__(self) -> None:
        for name in ("brightness", "contrast", "saturation"):
            value = getattr(self, name)
            require(value >= 0, f"ColorJitter.{name}={value!r}: give a number from 0.")
        require_field(self, "hue", 0, 0.5)

    def draw(self, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Draws the factors [4] of brightness, contrast, saturation, hue, and their order [4]."""
        factor_key, order_key = jax.random.split(key)
        strengths = (self.brightness, self.contrast, self.saturation)
        factors = jax.random.uniform(
            factor_key,
            (4,),
            minval=jnp.array([*(max(0.0, 1 - s) for s in strengths), -self.hue]),
            maxval=jnp.array([*(1 + s for s in strengths), self.hue]),
        )
        return factors, jax.random.permutation(order_key, 4)

    @override
    def __call__(self, key: jax.Array, image_HWC: Array) -> jax.Array:
        factors, order = self.draw(key)
        adjust = (adjust_brightness, adjust_contrast, adjust_saturation, adjust_hue)
        return jax.lax.fori_loop(
            0,
            4,
            lambda i, image: jax.lax.switch(order[i], adjust, image, factors[order[i]]),
            jnp.asarray(image_HWC, jnp.float32),
        )


@dataclasses.dataclass(frozen=True)
class RandomInvert(RandomlyApplied):
    """The negative with probability `p`."""

    @override
    def apply(self, image_HWC: Array) -> jax.Array:
        return invert(image_HWC)


@dataclasses.dataclass(frozen=True)
class RandomPosterize(RandomlyApplied):
    """Fewer levels with probability `p`.

    Attributes:
        bits: how many of the 8 bits of each level are kept, 0 to 8.
    """

    bits: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        require_field(self, "bits", 0, 8)

    @override
    def apply(self, image_HWC: Array) -> jax.Array:
        return posterize(image_HWC, self.bits)


@dataclasses.dataclass(frozen=True)
class RandomSolarize(RandomlyApplied):
    """Bright levels inverted with probability `p`.

    Attributes:
        threshold: the lowest level inverted, 0 to 256.
    """

    threshold: float = 128

    def __post_init__(self) -> None:
        super().__post_init__()
        require_field(self, "threshold", 0, 256)

    @override
    def apply(self, image_HWC: Array) -> jax.Array:
        return solarize(image_HWC, self.threshold)


@dataclasses.dataclass(frozen=True)
class RandomEqualize(RandomlyApplied):
    """An equalised histogram with probability `p`."""

    @override
    def apply(self, image_HWC: Array) -> jax.Array:
        return equalize(image_HWC)


@dataclasses.dataclass(frozen=True)
class RandomAutocontrast(RandomlyApplied):
    """The full range of levels with probability `p`."""

    @override
    def apply(self, image_HWC: Array) -> jax.Array:
        return autocontrast(image_HWC)
