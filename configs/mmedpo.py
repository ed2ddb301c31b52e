"""MMedPO: weighted pairs with hallucinated answers and with noised regions (arXiv 2412.06141).

    python -m seva_jax.train --config configs/mmedpo.py \
        --base.path DIR --mesh.fsdp 4 --mesh.tensor 2 \
        --prompts.sources.0.source.path FILE --prompts.sources.0.source.image-root DIR \
        --prompts.sources.1.source.path FILE --prompts.sources.1.source.image-root DIR \
        --prompts.sources.1.maps.root DIR

The numbers are those of the release's script, as configs/README.md lists them. It also asks for
training the projector at 2e-5, but its trainer freezes it; `--train.trained lora projector` trains
it. The published base is LLaVA-Med v1.5, which is built on Mistral and does not have LLaVA-1.5's
architecture: unless you convert its checkpoint to that layout, use LLaVA-1.5-7B.

Two kinds of pairs follow each other. D_t is one of the released files, such as
slake_dpo_weighted.json, with the weight of every pair in the field "weighted_score". D_v, which is
not released, is in TRL's format: the same chosen answers, their images, heat maps of these under
`data/medical_heat`, and the field "confidence"; its rejected answers are not used. This file
follows the release: raw weights, and noise that leaves pixels nearly black or nearly white.
`mmedpo_paper.py` has the paper's formulas.
"""

import dataclasses

from seva_jax.corrupt.region import RegionNoise
from seva_jax.data import Concatenated, MapFolder, NoisedRegions, PovidPairs, ScoredPairs, TrlPairs
from seva_jax.models import LoraConfig
from seva_jax.objectives import DPO, RawScore
from seva_jax.recipes import llava15_7b_seva

HALLUCINATED = PovidPairs("data/slake_dpo_weighted.json", "data/medical_images")
LOCALISED = TrlPairs("data/medical_visual.jsonl", "data/medical_images")


def pairs(noise):
    """Returns D_t followed by D_v, whose regions get the given noise."""
    regions = NoisedRegions(
        LOCALISED, MapFolder("data/medical_heat"), noise, confidence="confidence"
    )
    return Concatenated((ScoredPairs(HALLUCINATED, "weighted_score"), regions))


def get_config():
    """Follows the release; set the paths here or on the command line."""
    config = llava15_7b_seva.get_config()
    return dataclasses.replace(
        config,
        workdir="runs/mmedpo",
        # MMedPO: negative levels wrap around, to nearly white.
        prompts=pairs(RegionNoise(region="heat", noise="pixels", std=10.0, overflow="wrap")),
        corrupt=(),
        objective=DPO(beta=0.1, weighting=RawScore()),
        lora=LoraConfig(rank=128, alpha=256.0),
        text=dataclasses.replace(config.text, max_length=1024),
        optim=dataclasses.replace(config.optim, lr=1e-7, projector_lr=2e-5),
        # MMedPO: the trainer adds adapters a second time, which freezes the projector again.
        train=dataclasses.replace(
            config.train, batch_size=4, epochs=3, repeat=1, trained=("lora",)
        ),
    )
