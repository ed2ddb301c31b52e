"""Re-Align on the procedural world: "a circle in" whichever colour a similar image suggests.

python -m seva_jax.train --config configs/tiny_realign.py

The answers are descriptions, in which objects joined by " and " take the place of sentences. Half
of the objects keep their first half, "a circle", and the model completes them while it sees the
most similar other image.
"""

import dataclasses

from seva_jax.objectives import ReAlign
from seva_jax.pairs import RetrievedPairs
from seva_jax.recipes import tiny
from seva_jax.text import Sampling
from seva_jax.worlds import WorldPrompts


def get_config():
    """Varies the default run: the pairs are of descriptions, with two images in each."""
    config = tiny.get_config()
    return dataclasses.replace(
        config,
        workdir="runs/tiny_realign",
        prompts=WorldPrompts(tiny.WORLD, "unlabelled", False, ("describe",), 4000),
        corrupt=(),
        rollout=dataclasses.replace(config.rollout, sampling=Sampling(max_new_tokens=16)),
        pairs=RetrievedPairs(separator=" and ", sampling=Sampling(max_new_tokens=4)),
        objective=ReAlign(beta=0.5),
    )
