"""GRAPE on the procedural world: images described in turn, the best attempt against the worst.

python -m seva_jax.train --config configs/tiny_grape.py
"""

import dataclasses

from seva_jax.objectives import DPO, Trajectory
from seva_jax.recipes import tiny
from seva_jax.worlds import WorldTrajectories


def get_config():
    """Uses windows of 4 steps, so that rows stay short."""
    config = tiny.get_config()
    return dataclasses.replace(
        config,
        workdir="runs/tiny_grape",
        prompts=WorldTrajectories(tiny.WORLD, num=1000, steps=4, window=4),
        corrupt=(),
        objective=Trajectory(window=4, objective=DPO(beta=0.5)),
        train=dataclasses.replace(config.train, batch_size=16),
    )
