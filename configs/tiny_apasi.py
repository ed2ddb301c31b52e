"""APASI on the procedural world: "a circle in red" against a shape that is not in the image.

python -m seva_jax.train --config configs/tiny_apasi.py

A description is up to three objects with " and " between them, which stand for sentences: the
separator is an option, the rate is higher because there are so few, and the template is "a SHAPE",
whose colour the language model adds without the image, so it is the one it expects. Two rounds: all
objects but the first are made up, then half of the objects.
"""

import dataclasses

from tiny import WORLD
from tiny import get_config as base

from seva_jax.config.rounds import Round, Rounds
from seva_jax.pairs import InjectedPairs
from seva_jax.text.sampling import Sampling
from seva_jax.worlds import WorldPrompts
from seva_jax.worlds.shapes import SHAPES


def get_config():
    """The default run with other pairs, of descriptions."""
    e = base()
    made_up = InjectedPairs(
        rate=1.0,
        objects=SHAPES,
        templates=("{object}",),
        separator=" and ",
        sampling=Sampling(max_new_tokens=2),  # "in COLOR"; no penalty, every object has an "in"
    )
    fewer = dataclasses.replace(made_up, rate=0.5)
    return dataclasses.replace(
        e,
        workdir="runs/tiny_apasi",
        prompts=WorldPrompts(WORLD, "unlabelled", False, ("describe",), 4000),
        corrupt=(),
        rollout=dataclasses.replace(e.rollout, sampling=Sampling(max_new_tokens=16)),
        pairs=made_up,
        train=dataclasses.replace(e.train, max_steps=50),
        curriculum=Rounds((Round(), Round(pairs=fewer))),
    )
