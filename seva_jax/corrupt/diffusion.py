"""The noise of the published method: one step of the forward diffusion process.

What lives here: `DiffusionNoise`, POVID's `PixelNoise`, and their schedule. Read next:
`recipes.py`, the other corruptions that the paper studies.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from typing_extensions import override

from seva_jax.corrupt.base import Corruption, Space, require
from seva_jax.types import Array

NUM_STEPS = 1000


@functools.cache
def diffusion_schedule() -> tuple[np.ndarray, np.ndarray]:
    """Returns the published noise schedule.

    b_i = sigmoid(linspace(-6, 6, 1000)_i) (0.5e-2 - 1e-5) + 1e-5 and
    abar_t = prod_{i <= t} (1 - b_i). Source: arXiv 2404.10501, whose noise is that of visual
    contrastive decoding (arXiv 2311.16922).

    Returns:
        `sqrt(abar)` and `sigma = sqrt(1 - abar)`, each float64 [1000] and read-only.

    >>> root_abar, sigma = diffusion_schedule()
    >>> round(float(root_abar[500]), 5), round(float(sigma[500]), 5)
    (0.86302, 0.50517)
    """
    betas = 1 / (1 + np.exp(-np.linspace(-6, 6, NUM_STEPS))) * (0.5e-2 - 1e-5) + 1e-5
    abar = np.cumprod(1 - betas)
    root_abar, sigma = np.sqrt(abar), np.sqrt(1 - abar)
    root_abar.flags.writeable = sigma.flags.writeable = False
    return root_abar, sigma


@dataclasses.dataclass(frozen=True)
class DiffusionNoise(Corruption):
    """`x_t = sqrt(abar_t) x + sigma_t eps`, on the normalised image in float32, not clipped.

    Attributes:
        step: t, from 0 (hardly any noise) to 999; the paper uses 500 and 800.
    """

    space: ClassVar[Space] = "normalised"

    step: int = 500

    def __post_init__(self) -> None:
        require(
            isinstance(self.step, int) and 0 <= self.step < NUM_STEPS,
            f"DiffusionNoise.step={self.step!r}: give an integer from 0 to {NUM_STEPS - 1}.",
        )

    @override
    def __call__(self, key: jax.Array, image_HWC: Array) -> jax.Array:
        """Adds the noise; any shape works."""
        root_abar, sigma = diffusion_schedule()
        image_HWC = jnp.asarray(image_HWC, jnp.float32)
        noise_HWC = jax.random.normal(key, image_HWC.shape, jnp.float32)
        return float(root_abar[self.step]) * image_HWC + float(sigma[self.step]) * noise_HWC


@dataclasses.dataclass(frozen=True)
class PixelNoise(DiffusionNoise):
    """The same noise on pixels in [0, 1], before pad, resize and mean (POVID, arXiv 2402.11411).

    At the same step this noise is stronger than that of `DiffusionNoise`, because pixels vary less
    than normalised ones. Published: 500.

    Attributes:
        overflow: what becomes of values outside of [0, 1], where an image has none: "clip" takes
            the nearer bound. "wrap" converts to levels of 255, drops the fraction and keeps the
            lowest 8 bits, so that slightly below black is white.
            # POVID: wraps, because the conversion of a tensor to an image does.
    """

    space: ClassVar[Space] = "pixels"

    overflow: Literal["clip", "wrap"] = "clip"

    @override
    def __call__(self, key: jax.Array, image_HWC: Array) -> jax.Array:
        noised_HWC = super().__call__(key, image_HWC)
        if self.overflow == "wrap":
            return jnp.trunc(255 * noised_HWC) % 256 / 255
        return noised_HWC.clip(0, 1)
