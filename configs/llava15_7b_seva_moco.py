"""The published run with MoCo's augmentations in place of noise.

    python -m seva_jax.train --config configs/llava15_7b_seva_moco.py \
        --base.path DIR --prompts.sources.0.path FILE --prompts.sources.0.image-root DIR \
        --prompts.sources.1.root DIR --mesh.fsdp 8

Everything else as in `llava15_7b_seva.py`.
"""

import dataclasses

from llava15_7b_seva import get_config as base

from seva_jax.corrupt import moco


def get_config():
    """`llava15_7b_seva.py` with another corruption."""
    return dataclasses.replace(base(), workdir="runs/llava15_7b_seva_moco", corrupt=(moco(),))
