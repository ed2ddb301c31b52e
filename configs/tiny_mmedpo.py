"""MMedPO on the procedural world: wrong descriptions, and noise on the object asked about.

python -m seva_jax.train --config configs/tiny_mmedpo.py
"""

import dataclasses

from seva_jax.corrupt.region import RegionNoise
from seva_jax.data import ClippedZScores, Mixture, NoisedRegions
from seva_jax.objectives import DPO, RawScore
from seva_jax.recipes import tiny
from seva_jax.worlds import AskedObject, WorldPairs

# The score of a wrong description is the share that is true: a plausible error counts more.
HALLUCINATED = WorldPairs(tiny.WORLD, kinds=("describe",), num=3000)
REGIONS = NoisedRegions(
    WorldPairs(tiny.WORLD, "visual", num=1000),
    AskedObject(tiny.WORLD),
    RegionNoise(region="mask", noise="pixels"),  # confidence 1
)


def get_config():
    """Mixes three pairs of text with one of images, weighted by normalised scores."""
    return dataclasses.replace(
        tiny.get_config(),
        workdir="runs/tiny_mmedpo",
        prompts=ClippedZScores(Mixture((HALLUCINATED, REGIONS), (3, 1)), low=0.1, high=2.0),
        corrupt=(),
        objective=DPO(beta=0.5, weighting=RawScore()),
    )
