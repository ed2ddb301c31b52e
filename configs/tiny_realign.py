"""Re-Align on the procedural world: "a circle in" whichever colour a similar image suggests.

python -m seva_jax.train --config configs/tiny_realign.py

Descriptions, whose objects with " and " between them stand for sentences: half of them keep their
first half, "a circle", and the rest is said in view of the most similar other image.
"""

import dataclasses

from tiny import WORLD
from tiny import get_config as base

from seva_jax.objectives import ReAlign
from seva_jax.pairs import RetrievedPairs
from seva_jax.text.sampling import Sampling
from seva_jax.worlds import WorldPrompts


def get_config():
    """The default run with other pairs, of descriptions, and two images in each."""
    e = base()
    return dataclasses.replace(
        e,
        workdir="runs/tiny_realign",
        prompts=WorldPrompts(WORLD, "unlabelled", False, ("describe",), 4000),
        corrupt=(),
        rollout=dataclasses.replace(e.rollout, sampling=Sampling(max_new_tokens=16)),
        pairs=RetrievedPairs(separator=" and ", sampling=Sampling(max_new_tokens=4)),
        objective=ReAlign(beta=0.5),
    )
