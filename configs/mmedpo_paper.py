"""MMedPO with its paper's formulas: clipped z-scores as weights, diffusion noise in the region.

    python -m seva_jax.train --config configs/mmedpo_paper.py \
        --base.path DIR --mesh.fsdp 4 --mesh.tensor 2 \
        --prompts.source.sources.0.source.path FILE \
        --prompts.source.sources.0.source.image-root DIR \
        --prompts.source.sources.1.source.path FILE \
        --prompts.source.sources.1.source.image-root DIR \
        --prompts.source.sources.1.maps.root DIR

Everything else is as in `mmedpo.py`. The bounds of the clipping are ours.
"""

import dataclasses

from seva_jax.corrupt.region import RegionNoise
from seva_jax.data import ClippedZScores
from seva_jax.recipes import mmedpo


def get_config():
    """Varies `mmedpo.py`: mean and standard deviation are over both kinds of pairs together."""
    noise = RegionNoise(region="heat", noise="diffusion", step=500)
    return dataclasses.replace(
        mmedpo.get_config(),
        workdir="runs/mmedpo_paper",
        prompts=ClippedZScores(mmedpo.pairs(noise), low=0.1, high=2.0),
    )
