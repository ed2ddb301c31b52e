"""RRPO for LLaVA-Video: rewards of the phrases in which answers differ (arXiv 2504.12083).

    python -m seva_jax.train --config configs/rrpo.py \
        --base.path DIR --prompts.source.path FILE --prompts.source.image-root DIR --mesh.fsdp 8

alpha, beta, the learning rate and the adapters are published; batch size and schedule are those of
`llava15_7b_seva.py`, which this run is based on. The model is LLaVA-1.5-7B and the frames of a
video are the images of a question, so at most three fit into its 2,048 tokens. The data, in TRL's
format, has `<MASK>` and `</MASK>` around the phrases. Variant: `rrpo_videochat2.py`.
"""

import dataclasses

from llava15_7b_seva import get_config as seva

from seva_jax.data import MarkedPhrases, TrlPairs
from seva_jax.models import LoraConfig
from seva_jax.objectives import RRPO

PAIRS = TrlPairs("data/rrpo.jsonl", "data/rrpo_frames")


def get_config():
    """Leaves out pairs without a marked phrase and counts them, as the release does."""
    config = seva()
    return dataclasses.replace(
        config,
        workdir="runs/rrpo",
        prompts=MarkedPhrases(PAIRS, unmarked="leave out"),
        corrupt=(),
        objective=RRPO(beta=0.1, alpha=0.01),
        lora=LoraConfig(rank=128, alpha=256.0),
        optim=dataclasses.replace(config.optim, lr=5e-6),
        # The KL to the reference is over the whole vocabulary, which no cache holds.
        train=dataclasses.replace(config.train, repeat=1, trained=("lora",), reference="in_step"),
    )
