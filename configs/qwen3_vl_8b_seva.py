"""SeVa with Qwen3-VL-8B. SeVa's authors did not train this model.

    python -m seva_jax.train --config configs/qwen3_vl_8b_seva.py \
        --base.path DIR --prompts.sources.0.path FILE --prompts.sources.0.image-root DIR \
        --prompts.sources.1.path FILE --prompts.sources.1.image-root DIR --mesh.fsdp 8

DIR is a download of Qwen/Qwen3-VL-8B-Instruct. Data, corruption, batches and passes over the pairs
are SeVa's for LLaVA-1.5-7B. Learning rate, warm-up, rank, largest image and longest row are those
that LLaMA-Factory publishes for DPO with Qwen3-VL-4B, in examples/train_lora/qwen3vl_lora_dpo.yaml
(commit 95ac3f2); they are equal to those for Qwen2.5-VL, see `qwen2_5_vl_7b_seva.py`. Nobody has
published SeVa's effect on this model, so watch held-out pairs: `--train.eval-fraction 0.1`.

An image takes a token for every 32 x 32 pixels, up to 256 here; `base.max_pixels` is the main lever
on memory and time. `seva-jax plan --size qwen3-vl-8b` computes what fits.

SeVa's noise is added after normalisation. Pixels are divided by 0.5 and in LLaVA-1.5 by about 0.27,
so the same t hides more: t = 384 is as strong, for each pixel, as t = 500 there. The config keeps
SeVa's number; `--corrupt.0.step 384` keeps its strength.
"""

from seva_jax.recipes import qwen2_5_vl_7b_seva
from seva_jax.text import QWEN3_VL


def get_config():
    """Set the paths of the checkpoint and of the data here or on the command line."""
    return qwen2_5_vl_7b_seva.with_recipe(
        "runs/qwen3_vl_8b_seva", "checkpoints/Qwen3-VL-8B-Instruct", QWEN3_VL
    )
