"""RRPO for LLaVA-Video: rewards of the phrases in which answers differ (arXiv 2504.12083).

    python -m seva_jax.train --config configs/rrpo.py \
        --base.path DIR --prompts.source.source.path FILE \
        --prompts.source.source.image-root DIR --mesh.fsdp 8

The numbers are those of the release's script, with 16 frames of each video. DIR is a download of
lmms-lab/LLaVA-Video-7B-Qwen2, in the layout of LLaVA's own code, in which `seva-jax convert
to-llava` exports the result. The data, in TRL's format, names a video file as the image, and has
`<MASK>` and `</MASK>` around the phrases. Files need the extra `video`; records that list frames as
images need `<video>` in the prompt. The release puts a sentence about the video's length and the
times of its frames in front of every question, this config does not. Variant:
`rrpo_videochat2.py`.
"""

import dataclasses

from seva_jax.config import Checkpoint, TextOptions
from seva_jax.data import MarkedPhrases, TrlPairs, Videos
from seva_jax.models import LoraConfig
from seva_jax.objectives import RRPO
from seva_jax.recipes import llava15_7b_seva
from seva_jax.text import QWEN_1_5
from seva_jax.training import Optim

FRAMES = 16
PAIRS = Videos(TrlPairs("data/rrpo.jsonl", "data/rrpo_videos"), fps=0.0, max_frames=FRAMES)


def get_config():
    """Leaves out pairs with an answer without a marked phrase, as the release does."""
    config = llava15_7b_seva.get_config()
    return dataclasses.replace(
        config,
        workdir="runs/rrpo",
        base=Checkpoint(path="checkpoints/LLaVA-Video-7B-Qwen2"),
        text=TextOptions(  # a frame takes 14 rows of 14 tokens and a newline
            generate=QWEN_1_5, train=QWEN_1_5, max_length=14 * 15 * FRAMES + 1472
        ),
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
