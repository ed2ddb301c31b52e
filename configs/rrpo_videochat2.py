"""RRPO as released for VideoChat2: other numbers, and phrases found by aligning the answers.

    python -m seva_jax.train --config configs/rrpo_videochat2.py \
        --base.path DIR --prompts.source.source.path FILE \
        --prompts.source.source.image-root DIR --mesh.fsdp 8

The model is LLaVA-Video-7B as in `rrpo.py`, instead of VideoChat2, which is of another family. The
numbers are those that the release's `scripts/videochat2/run.sh` trains with, on four devices like
its other runs. Its `config.py` has others, which the script overrides:
`--objective.alpha 0.1 --objective.beta 0.5 --optim.warmup-ratio 0.05 --train.batch-size 64`.
"""

import dataclasses

from seva_jax.data import MarkedPhrases
from seva_jax.objectives import RRPO
from seva_jax.recipes import rrpo
from seva_jax.training import Optim


def get_config():
    """Varies `rrpo.py`. Where phrases are marked, the marks count."""
    config = rrpo.get_config()
    return dataclasses.replace(
        config,
        workdir="runs/rrpo_videochat2",
        prompts=MarkedPhrases(rrpo.PAIRS, unmarked="align"),
        objective=RRPO(beta=0.9, alpha=0.01),
        optim=Optim(lr=2e-5, schedule="cosine", warmup_ratio=0.0, weight_decay=0.02),
    )
