"""SeVa with LLaVA-NeXT (LLaVA-1.6) on Vicuna-7B. SeVa's authors did not train this model.

    python -m seva_jax.train --config configs/llava_next_7b_seva.py \
        --base.path DIR --prompts.sources.0.path FILE --prompts.sources.0.image-root DIR \
        --prompts.sources.1.path FILE --prompts.sources.1.image-root DIR --mesh.fsdp 8

DIR is a download of llava-hf/llava-v1.6-vicuna-7b-hf; data, corruption, template and all
hyper-parameters are SeVa's for LLaVA-1.5-7B, from `llava15_7b_seva.py`. SeVa published nothing for
this model, so watch held-out pairs: `--train.eval-fraction 0.1`.

Ours are two numbers. `text.max_length` is the context of Vicuna, 4,096 tokens: an image has up to
2,928 of them, so 1,168 are left for question and answer. `train.micro_batches` lets the longer rows
fit; `seva-jax plan --size llava-v1.6-vicuna-7b` computes what fits.

SeVa's noise is added to every tile of a picture, also to the tile of the whole picture, after
normalisation, which is that of LLaVA-1.5, so t = 500 is as strong there as here. But tiles show a
part of the picture enlarged, so details may survive it. For t = 800: `--corrupt.0.step 800`.

For Mistral-7B or Llama-3-8B, `text.generate` and `text.train` are `MISTRAL` or `LLAMA_3` of
`seva_jax.text`.
"""

import dataclasses

from seva_jax.config import Checkpoint
from seva_jax.recipes import llava15_7b_seva


def get_config():
    """Set the paths of the checkpoint and of the data here or on the command line."""
    config = llava15_7b_seva.get_config()
    return dataclasses.replace(
        config,
        workdir="runs/llava_next_7b_seva",
        base=Checkpoint(path="checkpoints/llava-v1.6-vicuna-7b-hf"),
        text=dataclasses.replace(config.text, max_length=4096),
        train=dataclasses.replace(config.train, micro_batches=8),
    )
