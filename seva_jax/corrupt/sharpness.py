"""Blur and sharpness.

What lives here: operations that mix a pixel with its neighbours. What does not: colours
(`colour.py`), positions (`geometry.py`). Read next: `recipes.py`.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
from typing_extensions import override

from seva_jax.corrupt.base import Corruption, Number, RandomlyApplied, require, require_range
from seva_jax.corrupt.colour import blend, to_levels
from seva_jax.types import Array


def smooth(image_HWC: Array) -> jax.Array:
    """Smooths as `PIL.ImageFilter.SMOOTH`: 3 x 3 weights 1, centre 5, over 13; keeps the border."""
    levels_HWC = to_levels(image_HWC)
    height, width = levels_HWC.shape[:2]
    if min(height, width) < 3:
        return levels_HWC / 255
    inner_HWC = levels_HWC[1:-1, 1:-1]
    total_HWC = 4 * inner_HWC + sum(
        levels_HWC[dy : height - 2 + dy, dx : width - 2 + dx] for dy in range(3) for dx in range(3)
    )
    return levels_HWC.at[1:-1, 1:-1].set(jnp.round(total_HWC / 13)) / 255


def adjust_sharpness(image_HWC: Array, factor: Number) -> jax.Array:
    """Blends with the smoothed image: factor 0 smooths, 1 changes nothing, 2 sharpens."""
    return blend(smooth(image_HWC), image_HWC, factor)


def gaussian_blur(image_HWC: Array, sigma: Number, max_sigma: float) -> jax.Array:
    """Blurs with a Gaussian; edges are replicated.

    PIL does the same (its `radius` is the standard deviation), but approximates the Gaussian by
    three box filters.

    Args:
        image_HWC: values in [0, 1].
        sigma: standard deviation in pixels, above 0; may be traced.
        max_sigma: the largest `sigma`; the kernel reaches four times as far to each side.
    """
    # Not dm_pix.gaussian_blur: it pads with zeros, which darkens the border. With edges padded
    # first it gives the same numbers, but by a convolution: 40 times slower on CPU, and rounded to
    # bfloat16 on TPU.
    height, width = image_HWC.shape[:2]
    radius = math.ceil(4 * max_sigma)
    offsets = jnp.arange(-radius, radius + 1)
    weights = jnp.exp(-((offsets / sigma) ** 2) / 2)
    weights = weights / weights.sum()
    edges = (radius, radius)
    padded_HWC = jnp.pad(jnp.asarray(image_HWC), (edges, edges, (0, 0)), mode="edge")
    shifts = range(2 * radius + 1)
    rows_HWC = jnp.asarray(sum(weights[i] * padded_HWC[i : i + height] for i in shifts))
    blurred_HWC = jnp.asarray(sum(weights[i] * rows_HWC[:, i : i + width] for i in shifts))
    return jnp.clip(blurred_HWC, 0, 1)


@dataclasses.dataclass(frozen=True)
class GaussianBlur(Corruption):
    """Gaussian blur of random strength, always applied.

    Attributes:
        sigma: range of the standard deviation in pixels (PIL's `radius`), drawn uniformly.
    """

    sigma: tuple[float, float] = (0.1, 2.0)

    def __post_init__(self) -> None:
        require_range("GaussianBlur.sigma", self.sigma, 0.01, 100.0)

    @override
    def __call__(self, key: jax.Array, image_HWC: Array) -> jax.Array:
        sigma = jax.random.uniform(key, minval=self.sigma[0], maxval=self.sigma[1])
        return gaussian_blur(image_HWC, sigma, self.sigma[1])


@dataclasses.dataclass(frozen=True)
class RandomAdjustSharpness(RandomlyApplied):
    """A smoothed or sharpened image with probability `p`.

    Attributes:
        factor: 0 smooths (the published value), 1 changes nothing, above 1 sharpens.
    """

    factor: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.factor >= 0, f"RandomAdjustSharpness.factor={self.factor!r}: give a number from 0."
        )

    @override
    def apply(self, image_HWC: Array) -> jax.Array:
        return adjust_sharpness(image_HWC, self.factor)
