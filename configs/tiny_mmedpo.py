"""MMedPO on the procedural world: wrong descriptions, and the object asked about noised.

python -m seva_jax.train --config configs/tiny_mmedpo.py
"""

import dataclasses

from tiny import WORLD
from tiny import get_config as tiny

from seva_jax.corrupt.region import RegionNoise
from seva_jax.data.mixed import Mixture
from seva_jax.data.regions import NoisedRegions
from seva_jax.data.scores import ClippedZScores
from seva_jax.objectives import DPO, RawScore
from seva_jax.worlds import WorldPairs
from seva_jax.worlds.regions import AskedObject

# Their score is the share that is true: the more plausible an error, the more it counts.
HALLUCINATED = WorldPairs(WORLD, kinds=("describe",), num=3000)
REGIONS = NoisedRegions(
    WorldPairs(WORLD, "visual", num=1000),
    AskedObject(WORLD),
    RegionNoise(region="mask", noise="pixels"),  # confidence 1
)


def get_config():
    """Three pairs of text to one of images, weighted by normalised scores."""
    e = tiny()
    return dataclasses.replace(
        e,
        workdir="runs/tiny_mmedpo",
        prompts=ClippedZScores(Mixture((HALLUCINATED, REGIONS), (3, 1)), low=0.1, high=2.0),
        corrupt=(),
        objective=DPO(beta=0.5, weighting=RawScore()),
    )
