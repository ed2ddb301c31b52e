"""SeVa with InternVL3-8B, whose language model is Qwen2.5-7B. SeVa's authors did not train it.

    python -m seva_jax.train --config configs/internvl3_8b_seva.py \
        --base.path DIR --prompts.sources.0.path FILE --prompts.sources.0.image-root DIR \
        --prompts.sources.1.path FILE --prompts.sources.1.image-root DIR --mesh.fsdp 8

DIR is a download of OpenGVLab/InternVL3-8B-hf; data, corruption and all hyper-parameters are SeVa's
for LLaVA-1.5-7B, from `llava15_7b_seva.py`. SeVa published nothing for this model, so watch
held-out pairs: `--train.eval-fraction 0.1`. Adapters of rank 1024 on keys and values, which have
512 outputs, express no more than with rank 512.

Ours are the template, that of this checkpoint (`INTERNVL3` of `seva_jax.text` also has the system
prompt of the original), and two numbers. `text.max_length` gives texts the room that they have in
SeVa, 2,048 - 576 = 1,472 tokens, beside the largest image: 13 tiles of 256 tokens. An image of
480 x 640 pixels already has all of these. `train.micro_batches` lets the longer rows fit;
`seva-jax plan --size internvl3-8b` computes what fits.

SeVa's noise is added to every tile of a picture, also to the tile of the whole picture, after
normalisation. Pixels are divided by about 0.226 and in LLaVA-1.5 by about 0.27, so the same t hides
a little less: t = 536 is as strong, relative to the picture, as t = 500 there.
"""

import dataclasses

from seva_jax.config import Checkpoint, TextOptions
from seva_jax.recipes import llava15_7b_seva
from seva_jax.text import CHATML


def get_config():
    """Set the paths of the checkpoint and of the data here or on the command line."""
    config = llava15_7b_seva.get_config()
    return dataclasses.replace(
        config,
        workdir="runs/internvl3_8b_seva",
        base=Checkpoint(path="checkpoints/InternVL3-8B-hf"),
        text=TextOptions(generate=CHATML, train=CHATML, max_length=13 * 256 + 1472),
        train=dataclasses.replace(config.train, micro_batches=8),
    )
