"""The published run with the release's oddities: two templates, glued words, raw comparison.

    python -m seva_jax.train --config configs/llava15_7b_seva_faithful.py \
        --base.path DIR --prompts.sources.0.path FILE --prompts.sources.0.image-root DIR \
        --prompts.sources.1.root DIR --mesh.fsdp 8

Everything else as in `llava15_7b_seva.py`.
"""

import dataclasses

from llava15_7b_seva import get_config as base

from seva_jax.pairs import CorruptionPairs
from seva_jax.text.templates import LLAVA_V1, VICUNA_V1


def get_config():
    """`llava15_7b_seva.py` with the oddities that change results."""
    e = base()
    return dataclasses.replace(
        e,
        workdir="runs/llava15_7b_seva_faithful",
        # SeVa: asks as a curious human, trains as a curious user.
        text=dataclasses.replace(e.text, generate=LLAVA_V1, train=VICUNA_V1),
        # SeVa: deletes line breaks, and compares answers before it does.
        pairs=CorruptionPairs(newline="delete", compare="raw"),
    )
