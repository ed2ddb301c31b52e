"""Re-Align (rDPO) on LLaVA-1.5-7B: answers refilled in view of a similar image, and that image.

    python -m seva_jax.train --config configs/realign.py \
        --base.path DIR --prompts.sources.0.path FILE --prompts.sources.0.image-root DIR \
        --prompts.sources.1.root DIR --mesh.fsdp 8

`--objective.form label`, used here, is the paper's formula. The release's formula differs:
`--objective.form top --train.reference in_step` (see `ReAlign`). Similar images are searched for
among the images of the prompts.
"""

import dataclasses

from llava15_7b_seva import get_config as seva

from seva_jax.models import LoraConfig
from seva_jax.objectives import ReAlign
from seva_jax.pairs import RetrievedPairs
from seva_jax.training import Optim


def get_config():
    """Uses the prompts of `llava15_7b_seva.py`."""
    config = seva()
    return dataclasses.replace(
        config,
        workdir="runs/realign",
        corrupt=(),
        pairs=RetrievedPairs(),
        objective=ReAlign(beta=0.1, form="label"),
        lora=LoraConfig(rank=128, alpha=256.0),
        optim=Optim(lr=1e-6, schedule="cosine", warmup_ratio=0.03, weight_decay=0.0, clip_norm=0.0),
        train=dataclasses.replace(config.train, repeat=1, trained=("lora",)),
    )
