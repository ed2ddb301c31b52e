"""RRPO as published for VideoChat2: alpha 0.1, beta 0.5, phrases found by aligning the answers.

    python -m seva_jax.train --config configs/rrpo_videochat2.py \
        --base.path DIR --prompts.source.path FILE --prompts.source.image-root DIR --mesh.fsdp 8

Adapters, batch and schedule are those of `rrpo.py`: none are known to us for VideoChat2.
"""

import dataclasses

from rrpo import PAIRS
from rrpo import get_config as base

from seva_jax.data.marked import MarkedPhrases
from seva_jax.objectives import RRPO


def get_config():
    """`rrpo.py` with the other published numbers; marked phrases count where there are some."""
    e = base()
    return dataclasses.replace(
        e,
        workdir="runs/rrpo_videochat2",
        prompts=MarkedPhrases(PAIRS, unmarked="align"),
        objective=RRPO(beta=0.5, alpha=0.1),
        optim=dataclasses.replace(e.optim, lr=2e-5),
    )
