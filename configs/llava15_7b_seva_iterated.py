"""SeVa in rounds on LLaVA-1.5-7B: each round asks the model that the last one trained.

    python -m seva_jax.train --config configs/llava15_7b_seva_iterated.py \
        --base.path DIR --prompts.sources.0.path FILE --prompts.sources.0.image-root DIR \
        --prompts.sources.1.path FILE --prompts.sources.1.image-root DIR --mesh.fsdp 8

This is not in the paper. Every round is the published run: it merges the adapters of the round
before into the model, and makes new rollouts, pairs, reference log-probs and adapters from there.
`--curriculum.no-refresh` keeps the first model as the reference and trains one set of adapters
through all rounds. The rounds ask the same prompts with the same noise; the field
`prompts=(..., ..., ...)` of `Iterations` gives each round its own.
"""

import dataclasses

from seva_jax.config import Iterations
from seva_jax.recipes import llava15_7b_seva


def get_config():
    """Varies `llava15_7b_seva.py`: runs three rounds."""
    return dataclasses.replace(
        llava15_7b_seva.get_config(),
        workdir="runs/llava15_7b_seva_iterated",
        curriculum=Iterations(3),
    )
