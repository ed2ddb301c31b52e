"""SeVa again and again on the procedural world: each round asks the model that the last one made.

python -m seva_jax.train --config configs/tiny_seva_iterated.py
"""

import dataclasses

from tiny import WORLD
from tiny import get_config as base

from seva_jax.config.rounds import Iterations
from seva_jax.worlds import WorldPrompts


def get_config():
    """Three rounds of a third of the default run's steps each, on prompts of their own."""
    e = base()
    prompts = tuple(
        WorldPrompts(WORLD, f"unlabelled-{number}", False, ("color",), 1500) for number in (1, 2, 3)
    )
    return dataclasses.replace(
        e,
        workdir="runs/tiny_seva_iterated",
        train=dataclasses.replace(e.train, max_steps=33),
        curriculum=Iterations(3, prompts=prompts),
    )
