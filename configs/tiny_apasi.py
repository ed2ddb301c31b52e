"""APASI on the procedural world: "a circle in red" against a shape that is not in the image.

python -m seva_jax.train --config configs/tiny_apasi.py

A description is up to three objects joined by " and ". The objects take the place of sentences, so
the separator is " and ", and the rate is higher because there are so few of them. The template is
"a SHAPE": the language model adds the colour without seeing the image, so it is the colour it
expects. There are two rounds: the first makes up all objects but the first one of a description,
the second makes up half of the objects.
"""

import dataclasses

from seva_jax.config import Round, Rounds
from seva_jax.pairs import InjectedPairs
from seva_jax.recipes import tiny
from seva_jax.text import Sampling
from seva_jax.worlds import WorldPrompts
from seva_jax.worlds.shapes import SHAPES


def get_config():
    """Varies the default run: the pairs are of descriptions."""
    config = tiny.get_config()
    made_up = InjectedPairs(
        rate=1.0,
        objects=SHAPES,
        templates=("{object}",),
        separator=" and ",
        # "in COLOR". No repetition penalty: every object has an "in".
        sampling=Sampling(max_new_tokens=2),
    )
    fewer = dataclasses.replace(made_up, rate=0.5)
    return dataclasses.replace(
        config,
        workdir="runs/tiny_apasi",
        prompts=WorldPrompts(tiny.WORLD, "unlabelled", False, ("describe",), 4000),
        corrupt=(),
        rollout=dataclasses.replace(config.rollout, sampling=Sampling(max_new_tokens=16)),
        pairs=made_up,
        train=dataclasses.replace(config.train, max_steps=50),
        curriculum=Rounds((Round(), Round(pairs=fewer))),
    )
