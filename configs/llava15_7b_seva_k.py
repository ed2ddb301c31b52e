"""SeVa with several rejected answers: noise t = 500 and t = 800, and MoCo's augmentations.

    python -m seva_jax.train --config configs/llava15_7b_seva_k.py \
        --base.path DIR --prompts.sources.0.path FILE --prompts.sources.0.image-root DIR \
        --prompts.sources.1.path FILE --prompts.sources.1.image-root DIR --mesh.fsdp 8

The paper mentions this form as InfoNCE over K negatives; with one negative it is exactly DPO. Which
corruptions to combine is not published.
"""

import dataclasses

from seva_jax.corrupt import DiffusionNoise, moco
from seva_jax.recipes import llava15_7b_seva


def get_config():
    """Varies `llava15_7b_seva.py`: three corruptions; equal rejected answers count once."""
    return dataclasses.replace(
        llava15_7b_seva.get_config(),
        workdir="runs/llava15_7b_seva_k",
        corrupt=(DiffusionNoise(step=500), DiffusionNoise(step=800), moco()),
    )
