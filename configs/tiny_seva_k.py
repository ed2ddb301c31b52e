"""The default run with up to three rejected answers, from noise of three strengths.

python -m seva_jax.train --config configs/tiny_seva_k.py
"""

import dataclasses

from seva_jax.corrupt import DiffusionNoise
from seva_jax.recipes import tiny


def get_config():
    """Trains on one chosen answer against all answers that differ from it."""
    return dataclasses.replace(
        tiny.get_config(),
        workdir="runs/tiny_seva_k",
        corrupt=tuple(DiffusionNoise(step=step) for step in (500, 700, 900)),
    )
