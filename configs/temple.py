"""TEMPLE: answers to clip captions against those to fewer or reordered captions (AAAI 2026).

    python -m seva_jax.train --config configs/temple.py --base.path DIR --mesh.fsdp 8 \
        --prompts.source.path FILE --prompts.source.image-root DIR \
        --curriculum.stages.4.prompts.source.path FILE \
        --curriculum.stages.4.prompts.source.image-root DIR

Four stages, easy to hard: captions are dropped to n / m of n, or m groups of them shuffled or
reversed, m = 16, 8, 4, 2; the adapters of a stage are merged before the next, which asks the model
as it is then. Supervised training comes last. Adapters, learning rates, batch and sampling are
published, the rest is that of `llava15_7b_seva.py`.

The model is LLaVA-1.5-7B: it is asked with captions only, and trained on the frames, of which three
fit in 2,048 tokens. Lines of the files: `{"id", "question", "images", "captions": [...]}`, and
`{"id", "question", "images", "answer"}` for the supervised stage. For single images, whose analogue
of m is the noise: `temple_image.py`.
"""

import dataclasses
from typing import Literal

from llava15_7b_seva import get_config as seva

from seva_jax.config.options import RolloutOptions
from seva_jax.config.rounds import Round, Rounds
from seva_jax.corrupt import Drop, Reverse, Shuffle
from seva_jax.data.answered import AnsweredPrompts
from seva_jax.data.captions import CaptionedPrompts
from seva_jax.data.files import QuestionsJsonl
from seva_jax.models import LoraConfig
from seva_jax.objectives import DPO, Supervised
from seva_jax.pairs import TemplePairs
from seva_jax.text.sampling import Sampling

GROUPS = (16, 8, 4, 2)
SAMPLING = Sampling(max_new_tokens=512, temperature=0.7, repetition_penalty=1.05)


def corruptions(groups, of: Literal["images", "captions"] = "captions"):
    """In the order of the rules of `TemplePairs`."""
    return Drop(groups, of), Shuffle(groups, of), Reverse(groups, of)


def supervised(optim):
    """The last stage."""
    return Round(
        prompts=AnsweredPrompts(QuestionsJsonl("data/supervised.jsonl", "data/frames")),
        corrupt=(),
        objective=Supervised(),
        optim=dataclasses.replace(optim, lr=1e-4),
    )


def get_config():
    """Files are yours to set."""
    e = seva()
    optim = dataclasses.replace(e.optim, lr=5e-6)
    stages = (*(Round(corrupt=corruptions(m)) for m in GROUPS), supervised(optim))
    return dataclasses.replace(
        e,
        workdir="runs/temple",
        prompts=CaptionedPrompts(QuestionsJsonl("data/clips.jsonl", "data/frames")),
        corrupt=corruptions(GROUPS[0]),
        rollout=RolloutOptions(SAMPLING),
        pairs=TemplePairs(rules=("longer", "ratio", "ratio"), max_ratio=1.5),
        objective=DPO(beta=0.1),
        lora=LoraConfig(rank=32, alpha=64.0),
        optim=optim,
        train=dataclasses.replace(e.train, batch_size=16, repeat=1, trained=("lora",)),
        curriculum=Rounds(stages),
    )
