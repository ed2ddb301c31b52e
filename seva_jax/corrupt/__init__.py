"""Corruptions: random changes to an image, or to a sequence, that make the model answer worse.

What lives here: the public names. What does not: reading, padding, resizing and normalising images
(`seva_jax.images`). Read next: `base.py`, the contract, then `diffusion.py`.
"""

from seva_jax.corrupt.auto import AutoAugment, RandAugment
from seva_jax.corrupt.base import Compose, Corruption, RandomlyApplied, apply_pixels, corruption_key
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
from seva_jax.corrupt.recipes import byol, moco, simclr
from seva_jax.corrupt.region import RegionNoise
from seva_jax.corrupt.sequence import Drop, Reverse, SequenceCorruption, Shuffle
from seva_jax.corrupt.sharpness import GaussianBlur, RandomAdjustSharpness
