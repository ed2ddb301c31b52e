"""Re-Align (rDPO) on LLaVA-1.5-7B: answers refilled in view of a similar image, and that image.

    python -m seva_jax.train --config configs/realign.py \
        --base.path DIR --prompts.sources.0.path FILE --prompts.sources.0.image-root DIR \
        --prompts.sources.1.path FILE --prompts.sources.1.image-root DIR --mesh.fsdp 8

This is not a published run: its base is LLaVA-1.6, which is not supported here, and its pairs are
a file made of COCO's images, where this recipe makes pairs of the prompts of `llava15_7b_seva.py`.
Similar images are searched for among the images of the prompts. Numbers are those of the release's
script, as configs/README.md lists them; its projector, with a learning rate of 2e-5, is frozen by
its trainer, and `--train.trained lora projector` trains it.

`--objective.form label`, used here, is the paper's formula. The release's formula differs:
`--objective.form top --train.reference in_step` (see `ReAlign`).
"""

import dataclasses

from seva_jax.models import LoraConfig
from seva_jax.objectives import ReAlign
from seva_jax.pairs import RetrievedPairs
from seva_jax.recipes import llava15_7b_seva
from seva_jax.training import Optim


def get_config():
    """Uses the prompts of `llava15_7b_seva.py`."""
    config = llava15_7b_seva.get_config()
    return dataclasses.replace(
        config,
        workdir="runs/realign",
        corrupt=(),
        pairs=RetrievedPairs(),
        objective=ReAlign(beta=0.1, form="label"),
        text=dataclasses.replace(config.text, max_length=1048),
        lora=LoraConfig(rank=128, alpha=256.0, targets=("q_proj", "k_proj", "v_proj", "o_proj")),
        optim=Optim(lr=1e-6, projector_lr=2e-5, schedule="cosine", warmup_ratio=0.03),
        # Re-Align: the trainer adds adapters a second time, which freezes the projector again.
        train=dataclasses.replace(config.train, batch_size=16, repeat=1, trained=("lora",)),
    )
