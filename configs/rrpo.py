"""RRPO for LLaVA-Video: rewards of the phrases in which answers differ (arXiv 2504.12083).

    python -m seva_jax.train --config configs/rrpo.py \
        --base.path DIR --prompts.source.path FILE --prompts.source.image-root DIR --mesh.fsdp 8

The numbers are those of the release's script. The model is LLaVA-1.5-7B instead of
LLaVA-Video-7B-Qwen2, and the frames of a video are the images of a question, so at most three fit
into its 2,048 tokens; the release has 16. The data, in TRL's format, has `<MASK>` and `</MASK>`
around the phrases. Variant: `rrpo_videochat2.py`.
"""

import dataclasses

from seva_jax.data import MarkedPhrases, TrlPairs
from seva_jax.models import LoraConfig
from seva_jax.objectives import RRPO
from seva_jax.recipes import llava15_7b_seva
from seva_jax.training import Optim

PAIRS = TrlPairs("data/rrpo.jsonl", "data/rrpo_frames")


def get_config():
    """Leaves out pairs with an answer without a marked phrase, as the release does."""
    config = llava15_7b_seva.get_config()
    return dataclasses.replace(
        config,
        workdir="runs/rrpo",
        prompts=MarkedPhrases(PAIRS, unmarked="leave out"),
        corrupt=(),
        objective=RRPO(beta=0.1, alpha=0.01),
        lora=LoraConfig(rank=128, alpha=256.0),
        optim=Optim(lr=5e-6, schedule="cosine", warmup_ratio=0.03, clip_norm=1.0),
        train=dataclasses.replace(
            config.train,
            batch_size=32,
            epochs=1,
            repeat=1,
            trained=("lora",),
            reference="in_step",  # the KL is over the whole vocabulary, which no cache holds
        ),
    )
