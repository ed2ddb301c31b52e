"""The published chains of augmentations.

What lives here: `moco`, `byol`, `simclr`, with the parameters of arXiv 2404.10501. What does not:
the augmentations they consist of. Read next: `geometry.py`.
"""

from __future__ import annotations

from seva_jax.corrupt.base import Compose
from seva_jax.corrupt.colour import ColorJitter, RandomGrayscale
from seva_jax.corrupt.geometry import RandomHorizontalFlip, RandomResizedCrop
from seva_jax.corrupt.sharpness import GaussianBlur


def _contrastive(min_scale: float, hue: float) -> tuple:
    return (
        RandomResizedCrop(224, scale=(min_scale, 1.0)),
        RandomHorizontalFlip(p=0.5),
        ColorJitter(0.4, 0.4, 0.4, hue),
        RandomGrayscale(p=0.2),
    )


def moco() -> Compose:
    """Returns MoCo's chain: crop of 20 to 100 % of the area, flip, jitter, grey (20 %), blur.

    The result, as that of the other two, is [224, 224, 3].
    """
    return Compose((*_contrastive(0.2, 0.1), GaussianBlur((0.1, 2.0))))


def byol() -> Compose:
    """Returns BYOL's chain: `moco` with crops of 8 to 100 % of the area."""
    return Compose((*_contrastive(0.08, 0.1), GaussianBlur((0.1, 2.0))))


def simclr() -> Compose:
    """Returns SimCLR's chain: `moco` with a hue of 0.4 and without blur."""
    return Compose(_contrastive(0.2, 0.4))
