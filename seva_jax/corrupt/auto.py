"""RandAugment and AutoAugment: random draws from one list of operations.

What lives here: the list of operations, the magnitude of each in each bin, and the two ways to
draw from it, with torchvision's defaults. What does not: the operations themselves (`colour.py`,
`sharpness.py`, `geometry.py`). Read next: `recipes.py`.

Sources: RandAugment, arXiv 1909.13719; AutoAugment, arXiv 1805.09501, appendix A, ImageNet.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from typing_extensions import override

from seva_jax.corrupt import colour, geometry, sharpness
from seva_jax.corrupt.base import Corruption, require, require_field
from seva_jax.types import Array

# Each takes an image and a magnitude; those without a strength ignore it. The order is part of the
# result: RandAugment draws an index, and never the last (Invert).
OPERATIONS: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "Identity": lambda image, m: image,
    "ShearX": lambda image, m: geometry.shear(image, m, 0.0),
    "ShearY": lambda image, m: geometry.shear(image, 0.0, m),
    "TranslateX": lambda image, m: geometry.affine(image, translate=(jnp.trunc(m), 0.0)),
    "TranslateY": lambda image, m: geometry.affine(image, translate=(0.0, jnp.trunc(m))),
    "Rotate": lambda image, m: geometry.rotate(image, m),
    "Brightness": lambda image, m: colour.adjust_brightness(image, 1 + m),
    "Color": lambda image, m: colour.adjust_saturation(image, 1 + m),
    "Contrast": lambda image, m: colour.adjust_contrast(image, 1 + m),
    "Sharpness": lambda image, m: sharpness.adjust_sharpness(image, 1 + m),
    "Posterize": lambda image, m: colour.posterize(image, m),
    "Solarize": lambda image, m: colour.solarize(image, m),
    "AutoContrast": lambda image, m: colour.autocontrast(image),
    "Equalize": lambda image, m: colour.equalize(image),
    "Invert": lambda image, m: colour.invert(image),
}
_NAMES = tuple(OPERATIONS)
_SIGNED = np.array([1 <= index <= 9 for index in range(len(_NAMES))])

# Each policy is two operations: name, probability, bin (of 10; None where there is no strength).
IMAGENET_POLICY: tuple[tuple[tuple[str, float, int | None], ...], ...] = (
    (("Posterize", 0.4, 8), ("Rotate", 0.6, 9)),
    (("Solarize", 0.6, 5), ("AutoContrast", 0.6, None)),
    (("Equalize", 0.8, None), ("Equalize", 0.6, None)),
    (("Posterize", 0.6, 7), ("Posterize", 0.6, 6)),
    (("Equalize", 0.4, None), ("Solarize", 0.2, 4)),
    (("Equalize", 0.4, None), ("Rotate", 0.8, 8)),
    (("Solarize", 0.6, 3), ("Equalize", 0.6, None)),
    (("Posterize", 0.8, 5), ("Equalize", 1.0, None)),
    (("Rotate", 0.2, 3), ("Solarize", 0.6, 8)),
    (("Equalize", 0.6, None), ("Posterize", 0.4, 6)),
    (("Rotate", 0.8, 8), ("Color", 0.4, 0)),
    (("Rotate", 0.4, 9), ("Equalize", 0.6, None)),
    (("Equalize", 0.0, None), ("Equalize", 0.8, None)),
    (("Invert", 0.6, None), ("Equalize", 1.0, None)),
    (("Color", 0.6, 4), ("Contrast", 1.0, 8)),
    (("Rotate", 0.8, 8), ("Color", 1.0, 2)),
    (("Color", 0.8, 8), ("Solarize", 0.8, 7)),
    (("Sharpness", 0.4, 7), ("Invert", 0.6, None)),
    (("ShearX", 0.6, 5), ("Equalize", 1.0, None)),
    (("Color", 0.4, 0), ("Equalize", 0.6, None)),
    (("Equalize", 0.4, None), ("Solarize", 0.2, 4)),
    (("Solarize", 0.6, 5), ("AutoContrast", 0.6, None)),
    (("Invert", 0.6, None), ("Equalize", 1.0, None)),
    (("Color", 0.6, 4), ("Contrast", 1.0, 8)),
    (("Equalize", 0.8, None), ("Equalize", 0.6, None)),
)


def magnitudes(num_bins: int, height: int, width: int) -> np.ndarray:
    """Returns the strength of every operation in every bin, for an image of the given size.

    Returns:
        float32 [operations, num_bins]: shear in pixels per pixel, translation in pixels, rotation
        in degrees, factor minus one, bits, threshold; 0 where there is no strength.
    """
    share = np.linspace(0.0, 1.0, num_bins)
    table = dict.fromkeys(_NAMES, np.zeros(num_bins))
    table |= dict.fromkeys(("ShearX", "ShearY"), 0.3 * share)
    table |= dict.fromkeys(("Brightness", "Color", "Contrast", "Sharpness"), 0.9 * share)
    table["TranslateX"] = 150 / 331 * width * share
    table["TranslateY"] = 150 / 331 * height * share
    table["Rotate"] = 30.0 * share
    table["Posterize"] = 8 - np.round(4 * share)
    table["Solarize"] = 255 - 255 * share
    return np.stack([table[name] for name in _NAMES]).astype(np.float32)


def _random_signs(key: jax.Array, index_N: jax.Array, magnitude_N: jax.Array) -> jax.Array:
    negative_N = jax.random.bernoulli(key, 0.5, index_N.shape) & jnp.asarray(_SIGNED)[index_N]
    return jnp.where(negative_N, -magnitude_N, magnitude_N)


def apply_operations(image_HWC: Array, index_N: jax.Array, magnitude_N: jax.Array) -> jax.Array:
    """Applies operations one after another.

    Args:
        image_HWC: values in [0, 1].
        index_N: int32 positions in `OPERATIONS`.
        magnitude_N: float32 strengths, with their signs.
    """
    operations = tuple(OPERATIONS.values())
    return jax.lax.fori_loop(
        0,
        index_N.shape[0],
        lambda i, image: jax.lax.switch(index_N[i], operations, image, magnitude_N[i]),
        jnp.asarray(image_HWC, jnp.float32),
    )


@dataclasses.dataclass(frozen=True)
class RandAugment(Corruption):
    """`num_ops` operations drawn uniformly, all of one magnitude, each with a random sign.

    Attributes:
        num_ops: how many operations are applied one after another.
        magnitude: the bin of their strength, from 0 (none) to `num_bins` - 1 (full).
        num_bins: number of bins between no strength and full strength.
    """

    num_ops: int = 2
    magnitude: int = 9
    num_bins: int = 31

    def __post_init__(self) -> None:
        require(self.num_ops >= 1, f"RandAugment.num_ops={self.num_ops!r}: give 1 or more.")
        require(self.num_bins >= 2, f"RandAugment.num_bins={self.num_bins!r}: give 2 or more.")
        require_field(self, "magnitude", 0, self.num_bins - 1)

    def draw(self, key: jax.Array, height: int, width: int) -> tuple[jax.Array, jax.Array]:
        """Draws `index_N, magnitude_N` for `apply_operations`, N = num_ops."""
        index_key, sign_key = jax.random.split(key)
        index_N = jax.random.randint(index_key, (self.num_ops,), 0, len(_NAMES) - 1)
        strengths = jnp.asarray(magnitudes(self.num_bins, height, width)[:, self.magnitude])
        return index_N, _random_signs(sign_key, index_N, strengths[index_N])

    @override
    def __call__(self, key: jax.Array, image_HWC: Array) -> jax.Array:
        return apply_operations(image_HWC, *self.draw(key, image_HWC.shape[0], image_HWC.shape[1]))


@dataclasses.dataclass(frozen=True)
class AutoAugment(Corruption):
    """One of the 25 policies learned on ImageNet: two operations, each with its probability."""

    def draw(self, key: jax.Array, height: int, width: int) -> tuple[jax.Array, jax.Array]:
        """Draws `index_2, magnitude_2` for `apply_operations`; Identity where the coin says no."""
        policy_key, coin_key, sign_key = jax.random.split(key, 3)
        chosen = jax.random.randint(policy_key, (), 0, len(IMAGENET_POLICY))

        index_P2 = np.array([[_NAMES.index(name) for name, _, _ in row] for row in IMAGENET_POLICY])
        bin_P2 = np.array([[number or 0 for _, _, number in row] for row in IMAGENET_POLICY])
        chance_P2 = np.array([[chance for _, chance, _ in row] for row in IMAGENET_POLICY])
        magnitude_P2 = magnitudes(10, height, width)[index_P2, bin_P2]

        happens_2 = jax.random.uniform(coin_key, (2,)) < jnp.asarray(chance_P2)[chosen]
        index_2 = jnp.where(happens_2, jnp.asarray(index_P2)[chosen], _NAMES.index("Identity"))
        return index_2, _random_signs(sign_key, index_2, jnp.asarray(magnitude_P2)[chosen])

    @override
    def __call__(self, key: jax.Array, image_HWC: Array) -> jax.Array:
        return apply_operations(image_HWC, *self.draw(key, image_HWC.shape[0], image_HWC.shape[1]))
