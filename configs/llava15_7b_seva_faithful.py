"""The published run with the release's oddities: two templates, glued words, raw comparison.

    python -m seva_jax.train --config configs/llava15_7b_seva_faithful.py \
        --base.path DIR --prompts.sources.0.path FILE --prompts.sources.0.image-root DIR \
        --prompts.sources.1.path FILE --prompts.sources.1.image-root DIR --mesh.fsdp 8

Everything else is as in `llava15_7b_seva.py`.
"""

import dataclasses

from seva_jax.pairs import CorruptionPairs
from seva_jax.recipes import llava15_7b_seva
from seva_jax.text import LLAVA_V1, VICUNA_V1


def get_config():
    """Varies `llava15_7b_seva.py`: adds the oddities that change results."""
    config = llava15_7b_seva.get_config()
    return dataclasses.replace(
        config,
        workdir="runs/llava15_7b_seva_faithful",
        # SeVa: generates with the "curious human" template, trains with the "curious user" one.
        text=dataclasses.replace(config.text, generate=LLAVA_V1, train=VICUNA_V1),
        # SeVa: deletes line breaks, and compares answers before it deletes them. Only white space
        # at the beginning does not count.
        pairs=CorruptionPairs(newline="delete", compare="raw"),
    )
