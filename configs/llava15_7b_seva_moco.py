"""The run of `llava15_7b_seva.py` with MoCo's augmentations in place of noise.

    python -m seva_jax.train --config configs/llava15_7b_seva_moco.py \
        --base.path DIR --prompts.sources.0.path FILE --prompts.sources.0.image-root DIR \
        --prompts.sources.1.path FILE --prompts.sources.1.image-root DIR --mesh.fsdp 8

Everything else is as there. The augmentations are the paper's; the release has no script of this
run and does not say how many pairs it had.
"""

import dataclasses

from seva_jax.corrupt import moco
from seva_jax.recipes import llava15_7b_seva


def get_config():
    """Varies `llava15_7b_seva.py`: changes the corruption."""
    return dataclasses.replace(
        llava15_7b_seva.get_config(), workdir="runs/llava15_7b_seva_moco", corrupt=(moco(),)
    )
