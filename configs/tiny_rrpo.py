"""RRPO on the procedural world: right and wrong descriptions, phrases found by alignment.

python -m seva_jax.train --config configs/tiny_rrpo.py
"""

import dataclasses

from tiny import WORLD
from tiny import get_config as tiny

from seva_jax.data.marked import MarkedPhrases
from seva_jax.objectives import RRPO
from seva_jax.worlds import WorldPairs


def get_config():
    """Pairs that the world makes; no answers of the model are needed."""
    e = tiny()
    return dataclasses.replace(
        e,
        workdir="runs/tiny_rrpo",
        prompts=MarkedPhrases(WorldPairs(WORLD, kinds=("color", "describe"), num=4000)),
        corrupt=(),
        objective=RRPO(beta=0.5, alpha=0.01),
        train=dataclasses.replace(e.train, reference="in_step"),
    )
