"""RRPO as published for VideoChat2: alpha 0.1, beta 0.5, phrases found by aligning the answers.

    python -m seva_jax.train --config configs/rrpo_videochat2.py \
        --base.path DIR --prompts.source.path FILE --prompts.source.image-root DIR --mesh.fsdp 8

Adapters, batch size and schedule are those of `rrpo.py`; we know none for VideoChat2.
"""

import dataclasses

from rrpo import PAIRS
from rrpo import get_config as rrpo

from seva_jax.data import MarkedPhrases
from seva_jax.objectives import RRPO


def get_config():
    """Varies `rrpo.py`: the other published numbers; where phrases are marked, the marks count."""
    config = rrpo()
    return dataclasses.replace(
        config,
        workdir="runs/rrpo_videochat2",
        prompts=MarkedPhrases(PAIRS, unmarked="align"),
        objective=RRPO(beta=0.5, alpha=0.1),
        optim=dataclasses.replace(config.optim, lr=2e-5),
    )
