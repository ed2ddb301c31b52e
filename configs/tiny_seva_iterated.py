"""SeVa in rounds on the procedural world: each round asks the model that the last one trained.

python -m seva_jax.train --config configs/tiny_seva_iterated.py
"""

import dataclasses

from seva_jax.config import Iterations
from seva_jax.recipes import tiny
from seva_jax.worlds import WorldPrompts


def get_config():
    """Runs three rounds, each with its own prompts and a third of the default run's steps."""
    config = tiny.get_config()
    prompts = tuple(
        WorldPrompts(tiny.WORLD, f"unlabelled-{number}", False, ("color",), 1500)
        for number in (1, 2, 3)
    )
    return dataclasses.replace(
        config,
        workdir="runs/tiny_seva_iterated",
        train=dataclasses.replace(config.train, max_steps=33),
        curriculum=Iterations(3, prompts=prompts),
    )
