"""TEMPLE's easy to hard for single images: SeVa with noise t = 999, 800, 500, 300, stage by stage.

    python -m seva_jax.train --config configs/temple_image.py \
        --base.path DIR --prompts.sources.0.path FILE --prompts.sources.0.image-root DIR \
        --prompts.sources.1.root DIR --mesh.fsdp 8 \
        --curriculum.stages.4.prompts.source.path FILE \
        --curriculum.stages.4.prompts.source.image-root DIR

An analogue, not a published run: adapters, learning rates, batch and sampling as in `temple.py`,
prompts as in `llava15_7b_seva.py`.
"""

import dataclasses

from llava15_7b_seva import get_config as seva
from temple import get_config as temple
from temple import supervised

from seva_jax.config.rounds import Round, Rounds
from seva_jax.corrupt import DiffusionNoise

STEPS = (999, 800, 500, 300)


def get_config():
    """Four stages of preferences; the supervised one is `temple.py`'s."""
    e = seva()
    t = temple()
    noises = tuple(Round(corrupt=(DiffusionNoise(step=step),)) for step in STEPS)
    return dataclasses.replace(
        e,
        workdir="runs/temple_image",
        corrupt=(DiffusionNoise(step=STEPS[0]),),
        rollout=t.rollout,
        lora=t.lora,
        optim=t.optim,
        train=t.train,
        curriculum=Rounds((*noises, supervised(t.optim))),
    )
