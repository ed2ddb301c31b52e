"""TEMPLE: answers to clip captions against those to fewer or reordered captions (AAAI 2026).

    python -m seva_jax.train --config configs/temple.py --base.path DIR --mesh.fsdp 8 \
        --prompts.source.path FILE --prompts.source.image-root DIR \
        --curriculum.rounds.4.prompts.source.path FILE \
        --curriculum.rounds.4.prompts.source.image-root DIR

Four rounds go from easy to hard, with m = 16, 8, 4, 2: of n captions only n / m are kept, or m
groups of them are shuffled or reversed. The adapters of a round are merged before the next one,
which asks the merged model. A round of supervised training comes last. Adapters, learning rates,
batch size and sampling are published, the rest is that of `llava15_7b_seva.py`.

The model is LLaVA-1.5-7B: it is asked with captions only, and trained on the frames, of which three
fit into 2,048 tokens. Lines of the files: `{"id", "question", "images", "captions": [...]}`, and
`{"id", "question", "images", "answer"}` for the supervised round. `temple_image.py` is an analogue
for single images, where the noise takes the place of m.
"""

import dataclasses
from typing import Literal

from llava15_7b_seva import get_config as seva

from seva_jax.config import RolloutOptions, Round, Rounds
from seva_jax.corrupt import Drop, Reverse, Shuffle
from seva_jax.data import AnsweredPrompts, CaptionedPrompts, QuestionsJsonl
from seva_jax.models import LoraConfig
from seva_jax.objectives import DPO, Supervised
from seva_jax.pairs import TemplePairs
from seva_jax.text import Sampling

GROUPS = (16, 8, 4, 2)
SAMPLING = Sampling(max_new_tokens=512, temperature=0.7, repetition_penalty=1.05)


def corruptions(groups, of: Literal["images", "captions"] = "captions"):
    """Returns the corruptions in the order of the rules of `TemplePairs`."""
    return Drop(groups, of), Shuffle(groups, of), Reverse(groups, of)


def supervised(optim):
    """Returns the last round."""
    return Round(
        prompts=AnsweredPrompts(QuestionsJsonl("data/supervised.jsonl", "data/frames")),
        corrupt=(),
        objective=Supervised(),
        optim=dataclasses.replace(optim, lr=1e-4),
    )


def get_config():
    """Set the paths of the checkpoint and of the data here or on the command line."""
    config = seva()
    optim = dataclasses.replace(config.optim, lr=5e-6)
    rounds = (*(Round(corrupt=corruptions(m)) for m in GROUPS), supervised(optim))
    return dataclasses.replace(
        config,
        workdir="runs/temple",
        prompts=CaptionedPrompts(QuestionsJsonl("data/clips.jsonl", "data/frames")),
        corrupt=corruptions(GROUPS[0]),
        rollout=RolloutOptions(SAMPLING),
        pairs=TemplePairs(rules=("longer", "ratio", "ratio"), max_ratio=1.5),
        objective=DPO(beta=0.1),
        lora=LoraConfig(rank=32, alpha=64.0),
        optim=optim,
        train=dataclasses.replace(config.train, batch_size=16, repeat=1, trained=("lora",)),
        curriculum=Rounds(rounds),
    )
