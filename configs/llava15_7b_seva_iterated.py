"""SeVa in rounds on LLaVA-1.5-7B: each asks the model that the last one made. Not in the paper.

    python -m seva_jax.train --config configs/llava15_7b_seva_iterated.py \
        --base.path DIR --prompts.sources.0.path FILE --prompts.sources.0.image-root DIR \
        --prompts.sources.1.root DIR --mesh.fsdp 8

Every round is the published run: rollouts, pairs, reference and adapters are made anew, from the
model with the adapters of the round before merged. `--curriculum.no-refresh` keeps the first model
as the reference, and one set of adapters that goes on. The rounds ask the same prompts with the
same noise; `prompts=(..., ..., ...)` of `Iterations` gives each its own.
"""

import dataclasses

from llava15_7b_seva import get_config as published

from seva_jax.config.rounds import Iterations


def get_config():
    """Three rounds."""
    return dataclasses.replace(
        published(), workdir="runs/llava15_7b_seva_iterated", curriculum=Iterations(3)
    )
