"""TEMPLE's order from easy to hard for single images: SeVa with noise t = 999, 800, 500, 300.

    python -m seva_jax.train --config configs/temple_image.py \
        --base.path DIR --prompts.sources.0.path FILE --prompts.sources.0.image-root DIR \
        --prompts.sources.1.path FILE --prompts.sources.1.image-root DIR --mesh.fsdp 8 \
        --curriculum.rounds.4.prompts.source.path FILE \
        --curriculum.rounds.4.prompts.source.image-root DIR

This is an analogue, not a published run: adapters, optimiser, loss, batch size, temperature and
repetition penalty are as in `temple.py`, prompts and length of answers as in `llava15_7b_seva.py`.
"""

import dataclasses

from seva_jax.config import Round, Rounds
from seva_jax.corrupt import DiffusionNoise
from seva_jax.data import QuestionsJsonl
from seva_jax.recipes import llava15_7b_seva, temple

STEPS = (999, 800, 500, 300)


def get_config():
    """Runs four rounds of preferences, then the supervised round of `temple.py`."""
    clips = temple.get_config()
    answered = QuestionsJsonl("data/supervised.jsonl", "data/images")
    preferences = (Round(corrupt=(DiffusionNoise(step=step),)) for step in STEPS)
    return dataclasses.replace(
        llava15_7b_seva.get_config(),
        workdir="runs/temple_image",
        corrupt=(DiffusionNoise(step=STEPS[0]),),
        rollout=dataclasses.replace(
            clips.rollout,
            sampling=dataclasses.replace(temple.SAMPLING, max_new_tokens=512),
        ),
        objective=clips.objective,
        lora=clips.lora,
        optim=clips.optim,
        train=clips.train,
        curriculum=Rounds((*preferences, temple.supervised(clips.optim, answered))),
    )
