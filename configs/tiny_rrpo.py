"""RRPO on the procedural world: right and wrong descriptions, phrases found by alignment.

python -m seva_jax.train --config configs/tiny_rrpo.py
"""

import dataclasses

from seva_jax.data import MarkedPhrases
from seva_jax.objectives import RRPO
from seva_jax.recipes import tiny
from seva_jax.worlds import WorldPairs


def get_config():
    """Takes the world's own pairs, so the model answers nothing before training."""
    config = tiny.get_config()
    return dataclasses.replace(
        config,
        workdir="runs/tiny_rrpo",
        prompts=MarkedPhrases(WorldPairs(tiny.WORLD, kinds=("color", "describe"), num=4000)),
        corrupt=(),
        objective=RRPO(beta=0.5, alpha=0.01),
        train=dataclasses.replace(config.train, reference="in_step"),
    )
