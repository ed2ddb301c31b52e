"""Pages of photographs for the tests of the report."""

from __future__ import annotations

import numpy as np
from PIL import Image

from seva_jax.report import PairCard


def photo_HWC(rng: np.random.Generator) -> np.ndarray:
    """A 336 px stand-in for a photograph: soft shapes with fine texture."""
    coarse = Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8))
    smooth_HWC = np.asarray(coarse.resize((336, 336), Image.Resampling.BICUBIC), np.float32)
    return np.clip(smooth_HWC + rng.normal(0, 8, smooth_HWC.shape), 0, 255).astype(np.uint8)


def photo_pairs(num: int) -> tuple[PairCard, ...]:
    """Pairs of photographs with answers of about 110 words; a quarter is blurred, not noised.

    A blurred pair's answers have three words and differ in one.
    """
    rng = np.random.default_rng(0)
    answer = "The picture shows a person who stands beside a table with two red cups. " * 8
    cleans = [photo_HWC(rng) for _ in range(20)]
    noises = [np.clip(clean * 0.5 + rng.normal(64, 60, clean.shape), 0, 255) for clean in cleans]
    pairs = []
    for index in range(num):
        rejected = answer.replace("red", "blue").replace("person", f"dog {index}")
        blurred = index % 4 == 3
        pairs.append(
            PairCard(
                f"textvqa/{index:06d}",
                "Describe this image in detail.",
                cleans[index % 20],
                (noises[index % 20].astype(np.uint8),),
                "a red cup" if blurred else answer,
                ("a blue cup" if blurred else rejected,),
                0.0,
                1.0 if index % 3 else -1.0,
                corruptions=("GaussianBlur(p=0.5)" if blurred else "DiffusionNoise(step=500)",),
            )
        )
    return tuple(pairs)
