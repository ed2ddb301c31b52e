"""TEMPLE on the procedural world: four images in a row, dropped, shuffled and reversed.

python -m seva_jax.train --config configs/tiny_temple.py
"""

import dataclasses

from temple import corruptions
from tiny import KINDS, WORLD
from tiny import get_config as tiny

from seva_jax.config.rounds import Round, Rounds
from seva_jax.data.answered import AnsweredPrompts
from seva_jax.data.mixed import Mixture
from seva_jax.objectives import Supervised
from seva_jax.pairs import TemplePairs
from seva_jax.text.sampling import Sampling
from seva_jax.worlds import WorldPrompts
from seva_jax.worlds.sequences import WorldSequences

ONE = dataclasses.replace(WORLD, max_objects=1)  # in an image, so that answers stay short
GROUPS = (4, 2)  # of four images


def get_config():
    """The base model learns single images and sequences; two stages, then supervised training."""
    e = tiny()
    learnt = (
        WorldPrompts(WORLD, "train", True, KINDS, 24000),
        WorldSequences(ONE, "train-sequences", True, num=8000),
    )
    supervised = Round(
        prompts=AnsweredPrompts(WorldSequences(ONE, "supervised", num=1000)),
        corrupt=(),
        objective=Supervised(),
        optim=dataclasses.replace(e.optim, lr=4e-4),
        train=dataclasses.replace(e.train, max_steps=30),
    )
    return dataclasses.replace(
        e,
        workdir="runs/tiny_temple",
        base=dataclasses.replace(e.base, prompts=Mixture(learnt, (3, 1), num=24000)),
        prompts=WorldSequences(ONE, num=1500),
        corrupt=corruptions(GROUPS[0], "images"),
        rollout=dataclasses.replace(
            e.rollout,
            sampling=Sampling(max_new_tokens=24, temperature=0.7, repetition_penalty=1.05),
        ),
        pairs=TemplePairs(rules=("longer", "ratio", "ratio")),
        text=dataclasses.replace(e.text, max_length=128),
        train=dataclasses.replace(e.train, max_steps=50),
        curriculum=Rounds((*(Round(corrupt=corruptions(m, "images")) for m in GROUPS), supervised)),
    )
