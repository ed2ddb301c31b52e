"""TEMPLE: answers to clip captions against those to fewer or reordered captions (AAAI 2026).

    python -m seva_jax.train --config configs/temple.py --base.path DIR --mesh.fsdp 8 \
        --prompts.source.source.path FILE --prompts.source.source.image-root DIR \
        --curriculum.rounds.4.prompts.source.source.path FILE \
        --curriculum.rounds.4.prompts.source.source.image-root DIR

The model is Qwen2.5-VL-7B. Four rounds go from easy to hard, with m = 16, 8, 4, 2: of n captions
only n // m are kept, or groups of n // m are shuffled or reversed. The adapters of a round are
merged before the next one. A round of supervised training comes last. The numbers are those of the
release's scripts and of ms-swift 3.7.0, whose defaults they leave: its DPO adds the mean negative
log-likelihood of the chosen answers, weight decay is 0.1, and gradients are clipped at 1.

The model is asked with captions only, and trained on the video, of which it sees a frame a second
and 9 M pixels in all. Each round asks the model that the last one trained; in the release, all
answers are those of the base model. Lines of the files: `{"id", "question", "image": "CLIP.mp4",
"captions": [...]}`, and `{"id", "question", "image", "answer"}` for the supervised round; decoding
needs the extra `video`. `temple_image.py` is an analogue for single images, where the noise takes
the place of m.
"""

import dataclasses
from typing import Literal

from seva_jax.config import Checkpoint, RolloutOptions, Round, Rounds, TextOptions
from seva_jax.corrupt import Drop, Reverse, Shuffle
from seva_jax.data import AnsweredPrompts, CaptionedPrompts, QuestionsJsonl, Videos
from seva_jax.models import LoraConfig
from seva_jax.objectives import DPO, Supervised
from seva_jax.pairs import TemplePairs
from seva_jax.recipes import llava15_7b_seva
from seva_jax.text import QWEN2_VL, Sampling
from seva_jax.training import Optim

GROUPS = (16, 8, 4, 2)
SAMPLING = Sampling(max_new_tokens=8192, temperature=0.7, repetition_penalty=1.05)


def corruptions(groups, of: Literal["images", "captions"] = "captions"):
    """Returns the corruptions in the order of the rules of `TemplePairs`."""
    return Drop(groups, of), Shuffle(groups, of), Reverse(groups, of)


def videos(path):
    """Returns the videos of a file of questions: a frame a second, and no more than 600."""
    return Videos(QuestionsJsonl(path, "data/videos"), fps=1.0, max_frames=600)


def supervised(optim, source):
    """Returns the last round, whose adapters have half the scale, and are on the tower too."""
    return Round(
        prompts=AnsweredPrompts(source),
        corrupt=(),
        objective=Supervised(),
        lora=LoraConfig(rank=32, alpha=32.0, dropout=0.05, vision=True),
        optim=dataclasses.replace(optim, lr=1e-4),
    )


def get_config():
    """Set the paths of the checkpoint and of the data here or on the command line."""
    config = llava15_7b_seva.get_config()
    optim = Optim(
        lr=5e-6, schedule="cosine", warmup_ratio=0.05, weight_decay=0.1, b2=0.95, clip_norm=1.0
    )
    rounds = (
        *(Round(corrupt=corruptions(m)) for m in GROUPS),
        supervised(optim, videos("data/supervised.jsonl")),
    )
    return dataclasses.replace(
        config,
        workdir="runs/temple",
        base=Checkpoint("checkpoints/Qwen2.5-VL-7B-Instruct", max_video_pixels=9_000_000),
        text=TextOptions(generate=QWEN2_VL, train=QWEN2_VL, max_length=16384),
        prompts=CaptionedPrompts(videos("data/clips.jsonl")),
        corrupt=corruptions(GROUPS[0]),
        rollout=RolloutOptions(SAMPLING),
        pairs=TemplePairs(rules=("longer", "ratio", "ratio"), max_ratio=1.5),
        objective=DPO(beta=0.1, sft_weight=1.0),
        lora=LoraConfig(rank=32, alpha=64.0),
        optim=optim,
        train=dataclasses.replace(config.train, batch_size=16, repeat=1, trained=("lora",)),
        curriculum=Rounds(rounds),
    )
