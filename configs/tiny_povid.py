"""POVID on the procedural world: descriptions, and copies with invented objects, in two rounds.

python -m seva_jax.train --config configs/tiny_povid.py
"""

import dataclasses

from seva_jax.config import Round, Rounds
from seva_jax.corrupt import PixelNoise
from seva_jax.data import ChangedImages
from seva_jax.objectives import DPO, Inherent
from seva_jax.recipes import tiny
from seva_jax.worlds import WorldPairs

PAIRS = WorldPairs(tiny.WORLD, "preferences", kinds=("describe", "color"), num=2000)


def get_config():
    """DPO, merge, then DPO with the model's own answer under noise as a second rejected answer."""
    config = tiny.get_config()
    second = Round(
        prompts=ChangedImages(PAIRS, PixelNoise(step=500)),
        objective=Inherent(beta=0.5),
        train=dataclasses.replace(config.train, max_steps=30, reference="in_step"),
    )
    return dataclasses.replace(
        config,
        workdir="runs/tiny_povid",
        prompts=PAIRS,
        corrupt=(),
        objective=DPO(beta=0.5),
        train=dataclasses.replace(config.train, max_steps=60),
        curriculum=Rounds((Round(), second)),
    )
