"""SeVa with LLaVA-OneVision on Qwen2-7B. SeVa's authors did not train this model.

    python -m seva_jax.train --config configs/llava_onevision_7b_seva.py \
        --base.path DIR --prompts.sources.0.path FILE --prompts.sources.0.image-root DIR \
        --prompts.sources.1.path FILE --prompts.sources.1.image-root DIR --mesh.fsdp 8

DIR is a download of llava-hf/llava-onevision-qwen2-7b-ov-hf; data, corruption and all
hyper-parameters are SeVa's for LLaVA-1.5-7B, from `llava15_7b_seva.py`. SeVa published nothing for
this model, so watch held-out pairs: `--train.eval-fraction 0.1`. Adapters of rank 1024 on keys and
values, which have 512 outputs, express no more than with rank 512.

Ours are the template, that of the checkpoint, and two numbers. `text.max_length` gives texts the
room that they have in SeVa, 2,048 - 576 = 1,472 tokens, beside the largest image, which has 8,765;
an image of 768 x 1024 pixels has 4,725. With a lower limit, large images are left out and counted.
`train.micro_batches` lets the longer rows fit; `seva-jax plan --size llava-onevision-qwen2-7b`
computes what fits.

SeVa's noise is added to every tile of a picture, also to the tile of the whole picture, after
normalisation. SigLIP's pixels are divided by 0.5 and CLIP's by about 0.27, so the same t hides
more here: t = 382 is as strong, relative to the picture, as t = 500 in LLaVA-1.5, and t = 623 as
t = 800. The config keeps SeVa's number; `--corrupt.0.step 382` keeps its strength.
"""

import dataclasses

from seva_jax.config import Checkpoint, TextOptions
from seva_jax.recipes import llava15_7b_seva
from seva_jax.text import ONEVISION


def get_config():
    """Set the paths of the checkpoint and of the data here or on the command line."""
    config = llava15_7b_seva.get_config()
    return dataclasses.replace(
        config,
        workdir="runs/llava_onevision_7b_seva",
        base=Checkpoint(path="checkpoints/llava-onevision-qwen2-7b-ov-hf"),
        text=TextOptions(generate=ONEVISION, train=ONEVISION, max_length=8765 + 1472),
        train=dataclasses.replace(config.train, micro_batches=8),
    )
