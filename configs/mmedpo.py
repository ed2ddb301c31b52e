"""MMedPO: weighted pairs with hallucinated answers and with noised regions (arXiv 2412.06141).

    python -m seva_jax.train --config configs/mmedpo.py --base.path DIR --mesh.fsdp 8 \
        --prompts.sources.0.source.path FILE --prompts.sources.0.source.image-root DIR \
        --prompts.sources.1.source.path FILE --prompts.sources.1.source.image-root DIR \
        --prompts.sources.1.maps.root DIR

Adapters, learning rate, epochs and the noise of the release are published; batch and schedule are
those of `llava15_7b_seva.py`. Whether the projector was trained is not known to us; adapters only
are. The base is LLaVA-Med v1.5, LLaVA-Med's successor on Mistral: it is not LLaVA-1.5's
architecture, so unless its checkpoint is converted to that layout, LLaVA-1.5-7B takes its place.

Two kinds of pairs, one after the other. D_t is TRL's format with the weight of every pair in the
field "score". D_v has the same chosen answers, their images, heat maps of these under
`data/medical_heat`, and the field "confidence"; its rejected answers are not used. This is the
release: raw weights, and nearly black pixels as noise. The paper's formulas: `mmedpo_paper.py`.
"""

import dataclasses

from llava15_7b_seva import get_config as seva

from seva_jax.corrupt.region import RegionNoise
from seva_jax.data.messages import TrlPairs
from seva_jax.data.mixed import Concatenated
from seva_jax.data.regions import MapFolder, NoisedRegions
from seva_jax.data.scores import ScoredPairs
from seva_jax.models import LoraConfig
from seva_jax.objectives import DPO, RawScore

HALLUCINATED = TrlPairs("data/medical_text.jsonl", "data/medical_images")
LOCALISED = TrlPairs("data/medical_visual.jsonl", "data/medical_images")


def pairs(noise):
    """D_t and D_v."""
    regions = NoisedRegions(
        LOCALISED, MapFolder("data/medical_heat"), noise, confidence="confidence"
    )
    return Concatenated((ScoredPairs(HALLUCINATED, "score"), regions))


def get_config():
    """As released."""
    e = seva()
    return dataclasses.replace(
        e,
        workdir="runs/mmedpo",
        prompts=pairs(RegionNoise(region="heat", noise="pixels", std=10.0)),
        corrupt=(),
        objective=DPO(beta=0.1, weighting=RawScore()),
        lora=LoraConfig(rank=128, alpha=256.0),
        optim=dataclasses.replace(e.optim, lr=1e-7),
        train=dataclasses.replace(e.train, epochs=3, repeat=1, trained=("lora",)),
    )
