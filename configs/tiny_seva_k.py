"""The default run with up to three rejected answers, from noise of three strengths.

python -m seva_jax.train --config configs/tiny_seva_k.py
"""

import dataclasses

from tiny import get_config as tiny

from seva_jax.corrupt import DiffusionNoise


def get_config():
    """Trains on one chosen answer against all answers that differ from it."""
    return dataclasses.replace(
        tiny(),
        workdir="runs/tiny_seva_k",
        corrupt=tuple(DiffusionNoise(step=step) for step in (500, 700, 900)),
    )
