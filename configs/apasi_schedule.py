"""APASI with increasing difficulty: each round replaces fewer sentences than the one before.

    python -m seva_jax.train --config configs/apasi_schedule.py \
        --base.path DIR --prompts.path FILE --prompts.image-root DIR --pairs.objects-file FILE \
        --mesh.fsdp 8

The release does not contain the paper's schedule; its rate is always 0.2 (`apasi.py`). The rates
here are ours and end at the released one: a rejected answer that differs in fewer sentences is
harder to tell from the chosen one. For the same description and seed, the sentences replaced at a
lower rate are a subset of those replaced at a higher rate.
"""

import dataclasses

from seva_jax.config import Round, Rounds
from seva_jax.pairs import InjectedPairs
from seva_jax.recipes import apasi

RATES = (0.4, 0.3, 0.2)


def get_config():
    """Varies `apasi.py`: one rate per round."""
    config = apasi.get_config()
    assert isinstance(config.pairs, InjectedPairs)
    pairs = [dataclasses.replace(config.pairs, rate=rate) for rate in RATES]
    return dataclasses.replace(
        config,
        workdir="runs/apasi_schedule",
        curriculum=Rounds(tuple(Round(pairs=p) for p in pairs)),
    )
