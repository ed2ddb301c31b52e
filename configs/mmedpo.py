"""MMedPO: weighted pairs with hallucinated answers and with noised regions (arXiv 2412.06141).

    python -m seva_jax.train --config configs/mmedpo.py --base.path DIR --mesh.fsdp 8 \
        --prompts.sources.0.source.path FILE --prompts.sources.0.source.image-root DIR \
        --prompts.sources.1.source.path FILE --prompts.sources.1.source.image-root DIR \
        --prompts.sources.1.maps.root DIR

Adapters, learning rate, epochs and the noise of the release are published; batch size and schedule
are those of `llava15_7b_seva.py`. We do not know whether the projector was trained; here only the
adapters are. The published base is LLaVA-Med v1.5, which is built on Mistral and does not have
LLaVA-1.5's architecture: unless you convert its checkpoint to that layout, use LLaVA-1.5-7B.

Two kinds of pairs follow each other. D_t is in TRL's format, with the weight of every pair in the
field "score". D_v has the same chosen answers, their images, heat maps of these under
`data/medical_heat`, and the field "confidence"; its rejected answers are not used. This file
follows the release: raw weights, and noise that leaves nearly black pixels. `mmedpo_paper.py` has
the paper's formulas.
"""

import dataclasses

from llava15_7b_seva import get_config as seva

from seva_jax.corrupt.region import RegionNoise
from seva_jax.data import Concatenated, MapFolder, NoisedRegions, ScoredPairs, TrlPairs
from seva_jax.models import LoraConfig
from seva_jax.objectives import DPO, RawScore

HALLUCINATED = TrlPairs("data/medical_text.jsonl", "data/medical_images")
LOCALISED = TrlPairs("data/medical_visual.jsonl", "data/medical_images")


def pairs(noise):
    """Returns D_t followed by D_v, whose regions get the given noise."""
    regions = NoisedRegions(
        LOCALISED, MapFolder("data/medical_heat"), noise, confidence="confidence"
    )
    return Concatenated((ScoredPairs(HALLUCINATED, "score"), regions))


def get_config():
    """Follows the release; set the paths here or on the command line."""
    config = seva()
    return dataclasses.replace(
        config,
        workdir="runs/mmedpo",
        prompts=pairs(RegionNoise(region="heat", noise="pixels", std=10.0)),
        corrupt=(),
        objective=DPO(beta=0.1, weighting=RawScore()),
        lora=LoraConfig(rank=128, alpha=256.0),
        optim=dataclasses.replace(config.optim, lr=1e-7),
        train=dataclasses.replace(config.train, epochs=3, repeat=1, trained=("lora",)),
    )
