"""APASI with increasing difficulty: fewer made-up sentences in each round.

    python -m seva_jax.train --config configs/apasi_schedule.py \
        --base.path DIR --prompts.root DIR --pairs.objects-file FILE --mesh.fsdp 8

The paper's schedule is not in its release, whose rate is always 0.2 (`apasi.py`). These rates are
ours: they end at the released one, and a rejected answer that differs in fewer sentences is harder
to tell. With one seed, a lower rate replaces some of the places of a higher one.
"""

import dataclasses

from apasi import get_config as base

from seva_jax.config.rounds import Round, Rounds
from seva_jax.pairs import InjectedPairs

RATES = (0.4, 0.3, 0.2)


def get_config():
    """`apasi.py` with a rate for each round."""
    e = base()
    assert isinstance(e.pairs, InjectedPairs)
    pairs = [dataclasses.replace(e.pairs, rate=rate) for rate in RATES]
    return dataclasses.replace(
        e,
        workdir="runs/apasi_schedule",
        curriculum=Rounds(tuple(Round(pairs=p) for p in pairs)),
    )
