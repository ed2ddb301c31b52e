"""GAPO's weights on the procedural world: a wrong answer that is partly true counts less.

python -m seva_jax.train --config configs/tiny_gapo.py
"""

import dataclasses

from seva_jax.objectives import DPO, ScoreGap
from seva_jax.recipes import tiny
from seva_jax.worlds import WorldPairs


def get_config():
    """The world's scores are in [0, 1]; `gapo.py` lists the other forms of the weight."""
    return dataclasses.replace(
        tiny.get_config(),
        workdir="runs/tiny_gapo",
        prompts=WorldPairs(tiny.WORLD, kinds=("color", "describe"), num=4000),
        corrupt=(),
        objective=DPO(beta=0.5, weighting=ScoreGap(scale=1.0)),
    )
