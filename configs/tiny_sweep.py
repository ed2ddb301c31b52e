"""A scaling study: one run for every combination of batch size and learning rate.

    python -m seva_jax.train --config configs/tiny_sweep.py            # all, one after another
    python -m seva_jax.train --config configs/tiny_sweep.py --only 2   # one, for an array of jobs
    python -m seva_jax.report --runs runs/sweep/* --out runs/sweep.html

Base model, rollouts, pairs and reference log-probs are computed once and shared by the runs that
need the same ones. Every run sees the same number of pairs.
"""

import dataclasses
import itertools

from seva_jax.recipes import tiny

BATCH_SIZES = (16, 64, 256)
LEARNING_RATES = (1e-4, 4e-4)
PAIRS = 6400


def get_configs():
    """Varies the default run: six runs that differ in batch size and learning rate."""
    config = tiny.get_config()
    for batch_size, lr in itertools.product(BATCH_SIZES, LEARNING_RATES):
        yield dataclasses.replace(
            config,
            workdir=f"runs/sweep/batch{batch_size}-lr{lr:g}",
            train=dataclasses.replace(
                config.train,
                batch_size=batch_size,
                max_steps=PAIRS // batch_size,
                log_every=max(640 // batch_size, 1),
            ),
            optim=dataclasses.replace(config.optim, lr=lr),
        )
