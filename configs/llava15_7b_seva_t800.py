"""The published run with stronger noise, t = 800, and at most 4,300 + 6,500 pairs.

    python -m seva_jax.train --config configs/llava15_7b_seva_t800.py \
        --base.path DIR --prompts.sources.0.path FILE --prompts.sources.0.image-root DIR \
        --prompts.sources.1.path FILE --prompts.sources.1.image-root DIR --mesh.fsdp 8

Everything else is as in `llava15_7b_seva.py`.
"""

import dataclasses

from seva_jax.corrupt import DiffusionNoise
from seva_jax.recipes import llava15_7b_seva


def get_config():
    """Varies `llava15_7b_seva.py`: changes the corruption and limits the pairs."""
    config = llava15_7b_seva.get_config()
    return dataclasses.replace(
        config,
        workdir="runs/llava15_7b_seva_t800",
        corrupt=(DiffusionNoise(step=800),),
        # SeVa: about as many pairs of OCR-VQA and of TextVQA as t = 500 leaves.
        pairs=dataclasses.replace(config.pairs, most_per_source=(4300, 6500)),
    )
