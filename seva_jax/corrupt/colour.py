"""Colour operations and the corruptions made of them, with the meaning they have in PIL.

PIL works on 256 levels. Between operations we keep floats, but whatever PIL derives from levels
(grey images, histograms, masks, thresholds) is derived from levels here too, so the operations
agree with PIL on level images: exactly where PIL only looks levels up, within one level where it
blends (it truncates, we do not).

What lives here: pure functions of an image in [0, 1] and a factor, which may be traced, and the
classes drawing the factors. What does not: neighbourhoods of pixels (`sharpness`), positions
(`geometry`). Read next: `auto.py`, which reuses these functions.
"""

from __future__ import annotations

import dataclasses

import dm_pix
import jax
import jax.numpy as jnp
from typing_extensions import override

from seva_jax.corrupt.base import Corruption, RandomlyApplied, require
from seva_jax.types import Array

Factor = Array | float


def to_levels(image_HWC: Array) -> jax.Array:
    """Float32 whole numbers 0 to 255 from an image in [0, 1]."""
    return jnp.round(jnp.clip(image_HWC, 0, 1) * 255)


def blend(base_HWC: Array, image_HWC: Array, factor: Factor) -> jax.Array:
    """`base` at factor 0, `image` at factor 1, extrapolated beyond, clipped to [0, 1]."""
    return jnp.clip(base_HWC + factor * (image_HWC - base_HWC), 0, 1)


def grayscale(image_HWC: Array) -> jax.Array:
    """PIL's L, `(19595 R + 38470 G + 7471 B) / 2^16` in levels, as three equal channels.

    Not `dm_pix.rgb_to_grayscale`: its weights sum to .9999, and a product of matrices is rounded
    to bfloat16 on TPU. In float32 the sums below are exact.
    """
    levels_HWC = to_levels(image_HWC)
    red, green, blue = (levels_HWC[..., channel : channel + 1] for channel in range(3))
    luma_HW1 = jnp.floor((19595 * red + 38470 * green + 7471 * blue + 32768) / 65536)
    return jnp.broadcast_to(luma_HW1 / 255, image_HWC.shape)


def adjust_brightness(image_HWC: Array, factor: Factor) -> jax.Array:
    """`factor * image`, clipped. (dm-pix adds instead of multiplying.)"""
    return blend(jnp.zeros(()), image_HWC, factor)


def adjust_contrast(image_HWC: Array, factor: Factor) -> jax.Array:
    """Blend with the mean grey level. (dm-pix uses one mean for each channel.)"""
    # A row of levels sums exactly in float32, so the rounded mean does not depend on the order.
    mean = jnp.floor(to_levels(grayscale(image_HWC)[..., 0]).mean(1).mean() + 0.5) / 255
    return blend(mean, image_HWC, factor)


def adjust_saturation(image_HWC: Array, factor: Factor) -> jax.Array:
    """Blend with the grey image. (dm-pix scales the saturation of HSV.)"""
    return blend(grayscale(image_HWC), image_HWC, factor)


def adjust_hue(image_HWC: Array, shift: Factor) -> jax.Array:
    """Turns the hue by `shift` of a full circle, in [-.5, .5].

    PIL stores hue, saturation and value in 256 levels each; dm-pix keeps floats. Otherwise equal.
    """
    return jnp.clip(dm_pix.adjust_hue(jnp.asarray(image_HWC), shift), 0, 1)


def invert(image_HWC: Array) -> jax.Array:
    """The negative (dm-pix has none)."""
    return 1 - jnp.clip(image_HWC, 0, 1)


def posterize(image_HWC: Array, bits: Factor) -> jax.Array:
    """Keeps the `bits` highest bits of every level (dm-pix has none)."""
    step = jnp.exp2(8 - jnp.asarray(bits, jnp.float32))
    return jnp.floor(to_levels(image_HWC) / step) * step / 255


def solarize(image_HWC: Array, threshold: Factor) -> jax.Array:
    """Inverts the levels at or above `threshold`, 0 to 256."""
    # Half a level below the first inverted level, so that rounding of i / 255 cannot matter.
    cut = (jnp.ceil(jnp.asarray(threshold, jnp.float32)) - 0.5) / 255
    return jnp.asarray(dm_pix.solarize(jnp.clip(image_HWC, 0, 1), cut))


def autocontrast(image_HWC: Array) -> jax.Array:
    """Stretches each channel to 0..255; a constant channel stays (dm-pix has none).

    PIL truncates `x * scale + offset` in float64 and so loses a level where rounding errors push
    a whole number below itself; here the quotient is of whole numbers and exact.
    """
    levels_HWC = to_levels(image_HWC).astype(jnp.int32)
    low_C, high_C = levels_HWC.min((0, 1)), levels_HWC.max((0, 1))
    stretched_HWC = (levels_HWC - low_C) * 255 // jnp.maximum(high_C - low_C, 1)
    return jnp.where(high_C > low_C, stretched_HWC, levels_HWC) / 255


def equalize(image_HWC: Array) -> jax.Array:
    """Flattens each channel's histogram as `PIL.ImageOps.equalize` does (dm-pix has none)."""

    def equalize_channel(levels_HW: jax.Array) -> jax.Array:
        counts = jnp.bincount(levels_HW.ravel(), length=256)
        # PIL leaves the highest occurring level out of the step, and does nothing when the
        # remaining pixels are fewer than 255.
        step = (levels_HW.size - counts[levels_HW.max()]) // 255
        below = jnp.cumsum(counts) - counts
        table = jnp.clip((step // 2 + below) // jnp.maximum(step, 1), 0, 255)
        return jnp.where(step > 0, table[levels_HW], levels_HW)

    levels_HWC = to_levels(image_HWC).astype(jnp.int32)
    return jax.vmap(equalize_channel, in_axes=-1, out_axes=-1)(levels_HWC) / 255


@dataclasses.dataclass(frozen=True)
class Grayscale(Corruption):
    """Every image to grey, with three equal channels. No randomness."""

    def __call__(self, key: jax.Array, image_HWC: Array) -> jax.Array:
        """Returns the grey image; `key` is not used."""
        del key
        return grayscale(image_HWC)


@dataclasses.dataclass(frozen=True)
class RandomGrayscale(RandomlyApplied):
    """To grey with probability `p`; the published recipes use 0.2."""

    p: float = dataclasses.field(default=0.2, kw_only=True)

    @override
    def apply(self, image_HWC: Array) -> jax.Array:
        return grayscale(image_HWC)


@dataclasses.dataclass(frozen=True)
class ColorJitter(Corruption):
    """Brightness, contrast, saturation and hue by random factors, in random order.

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
        require(0 <= self.hue <= 0.5, f"ColorJitter.hue={self.hue!r}: give 0 to 0.5.")

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

    def __call__(self, key: jax.Array, image_HWC: Array) -> jax.Array:
        """Applies what `draw` draws; see `Corruption.__call__`."""
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
        bits: bits kept of each level, 0 to 8.
    """

    bits: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.bits <= 8, f"RandomPosterize.bits={self.bits!r}: give 0 to 8.")

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
        require(
            0 <= self.threshold <= 256,
            f"RandomSolarize.threshold={self.threshold!r}: give 0 to 256.",
        )

    @override
    def apply(self, image_HWC: Array) -> jax.Array:
        return solarize(image_HWC, self.threshold)


@dataclasses.dataclass(frozen=True)
class RandomEqualize(RandomlyApplied):
    """A flat histogram with probability `p`."""

    @override
    def apply(self, image_HWC: Array) -> jax.Array:
        return equalize(image_HWC)


@dataclasses.dataclass(frozen=True)
class RandomAutocontrast(RandomlyApplied):
    """The full range of levels with probability `p`."""

    @override
    def apply(self, image_HWC: Array) -> jax.Array:
        return autocontrast(image_HWC)
