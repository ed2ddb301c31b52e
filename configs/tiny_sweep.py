"""A scaling study: batch size and learning rate of the default run, every combination a run.

    python -m seva_jax.train --config configs/tiny_sweep.py            # all, one after another
    python -m seva_jax.train --config configs/tiny_sweep.py --only 2   # one, for an array of jobs
    python -m seva_jax.report --runs runs/sweep/* --out runs/sweep.html

Runs that need the same base model, rollouts, pairs or reference take them from the one that has
them. Every run sees the same number of pairs.
"""

import dataclasses
import itertools

from tiny import get_config as base

BATCH_SIZES = (16, 64, 256)
LEARNING_RATES = (1e-4, 4e-4)
PAIRS = 6400


def get_configs():
    """Six runs that differ in batch size and learning rate."""
    e = base()
    for batch_size, lr in itertools.product(BATCH_SIZES, LEARNING_RATES):
        train = dataclasses.replace(e.train, batch_size=batch_size, max_steps=PAIRS // batch_size)
        yield dataclasses.replace(
            e,
            workdir=f"runs/sweep/batch{batch_size}-lr{lr:g}",
            train=dataclasses.replace(train, log_every=max(640 // batch_size, 1)),
            optim=dataclasses.replace(e.optim, lr=lr),
        )
