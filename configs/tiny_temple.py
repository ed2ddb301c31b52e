"""TEMPLE on the procedural world: four images in a row, dropped, shuffled and reversed.

python -m seva_jax.train --config configs/tiny_temple.py
"""

import dataclasses

from seva_jax.config import Round, Rounds
from seva_jax.data import AnsweredPrompts, Mixture
from seva_jax.objectives import Supervised
from seva_jax.pairs import TemplePairs
from seva_jax.recipes import temple, tiny
from seva_jax.text import Sampling
from seva_jax.worlds import WorldPrompts, WorldSequences

# One object in an image, so answers stay short.
ONE = dataclasses.replace(tiny.WORLD, max_objects=1)
GROUPS = (4, 2)  # the four images are cut into this many groups


def get_config():
    """The base model learns single images and sequences; two rounds of preferences follow.

    A round of supervised training comes last.
    """
    config = tiny.get_config()
    learnt = (
        WorldPrompts(tiny.WORLD, "train", True, tiny.KINDS, 24000),
        WorldSequences(ONE, "train-sequences", True, num=8000),
    )
    supervised = Round(
        prompts=AnsweredPrompts(WorldSequences(ONE, "supervised", num=1000)),
        corrupt=(),
        objective=Supervised(),
        optim=dataclasses.replace(config.optim, lr=4e-4),
        train=dataclasses.replace(config.train, max_steps=30),
    )
    return dataclasses.replace(
        config,
        workdir="runs/tiny_temple",
        base=dataclasses.replace(
            config.base, prompts=Mixture(learnt, (3, 1), num=24000), steps=1300
        ),
        prompts=WorldSequences(ONE, num=1500),
        corrupt=temple.corruptions(GROUPS[0], "images"),
        rollout=dataclasses.replace(
            config.rollout,
            sampling=Sampling(max_new_tokens=24, temperature=0.7, repetition_penalty=1.05),
        ),
        pairs=TemplePairs(rules=("longer", "ratio", "ratio")),
        text=dataclasses.replace(config.text, max_length=128),
        train=dataclasses.replace(config.train, max_steps=50),
        curriculum=Rounds(
            (*(Round(corrupt=temple.corruptions(m, "images")) for m in GROUPS), supervised)
        ),
    )
