"""Corruptions: random changes to an image, or to a sequence, that make the model answer worse.

What lives here: the public names. What does not: reading, padding, resizing and normalising images
(`seva_jax.images`). Read next: `README.md` shows them all; `base.py`, the contract.
"""

from seva_jax.corrupt.auto import AutoAugment, RandAugment
from seva_jax.corrupt.base import (
    Compose,
    Corruption,
    RandomlyApplied,
    apply_pixels,
    changed_size,
    corruption_key,
)
from seva_jax.corrupt.colour import (
    ColorJitter,
    Grayscale,
    RandomAutocontrast,
    RandomEqualize,
    RandomGrayscale,
    RandomInvert,
    RandomPosterize,
    RandomSolarize,
)
from seva_jax.corrupt.diffusion import DiffusionNoise, PixelNoise, diffusion_schedule
from seva_jax.corrupt.geometry import (
    CenterCrop,
    Pad,
    RandomAffine,
    RandomCrop,
    RandomHorizontalFlip,
    RandomPerspective,
    RandomResizedCrop,
    RandomRotation,
)
from seva_jax.corrupt.previews import Preview, preview
from seva_jax.corrupt.recipes import byol, moco, simclr
from seva_jax.corrupt.region import RegionNoise
from seva_jax.corrupt.sequence import Drop, Reverse, SequenceCorruption, Shuffle
from seva_jax.corrupt.sharpness import GaussianBlur, RandomAdjustSharpness
