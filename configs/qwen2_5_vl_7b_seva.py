"""SeVa with Qwen2.5-VL-7B. SeVa's authors did not train this model.

    python -m seva_jax.train --config configs/qwen2_5_vl_7b_seva.py \
        --base.path DIR --prompts.sources.0.path FILE --prompts.sources.0.image-root DIR \
        --prompts.sources.1.path FILE --prompts.sources.1.image-root DIR --mesh.fsdp 8

DIR is a download of Qwen/Qwen2.5-VL-7B-Instruct. Data, corruption, batches and the passes over the
pairs are SeVa's for LLaVA-1.5-7B, from `llava15_7b_seva.py`. The other numbers are those that
LLaMA-Factory publishes for DPO with this model, in examples/train_lora/qwen2_5vl_lora_dpo.yaml
(commit 85b0f31): learning rate, warm-up, rank and targets of the adapters (its alpha is twice the
rank by default), the largest image and the longest row. It trains batches of 8 for three epochs on
RLHF-V. ms-swift's example (examples/train/multimodal/rlhf/dpo/lora.sh, commit 20ec461) has the same
rank with a learning rate of 1e-4, batches of 16, images up to 1,003,520 pixels, and rows up to
4,096 tokens. Nobody has published SeVa's effect on this model, so watch held-out pairs:
`--train.eval-fraction 0.1`.

`base.max_pixels` is the main lever on memory and time: an image takes a token for every 28 x 28
pixels, up to 334 here, and 1,280 with `--base.max-pixels 1003520 --text.max-length 4096`.
`seva-jax plan --size qwen2.5-vl-7b` computes what fits.

SeVa's noise is drawn for every pixel of the resized picture. With more pixels an object's noise
averages out more, so the same t hides less; see `seva_jax/corrupt/README.md`.
"""

import dataclasses

from seva_jax.config import Checkpoint, TextOptions
from seva_jax.models import LoraConfig
from seva_jax.recipes import llava15_7b_seva
from seva_jax.text import QWEN2_VL


def with_recipe(workdir, path, template):
    """Varies `llava15_7b_seva.py`: another model, and LLaMA-Factory's numbers.

    Args:
        workdir: the work directory.
        path: the checkpoint.
        template: its conversation template.
    """
    config = llava15_7b_seva.get_config()
    return dataclasses.replace(
        config,
        workdir=workdir,
        base=Checkpoint(path=path, max_pixels=262144),
        text=TextOptions(generate=template, train=template, max_length=2048),
        lora=LoraConfig(rank=8, alpha=16.0),
        optim=dataclasses.replace(config.optim, lr=5e-6, warmup_ratio=0.1),
        # SeVa's adapters have a rank of 1024, and it trains the projector; the recipe does neither.
        train=dataclasses.replace(config.train, trained=("lora",)),
    )


def get_config():
    """Set the paths of the checkpoint and of the data here or on the command line."""
    return with_recipe("runs/qwen2_5_vl_7b_seva", "checkpoints/Qwen2.5-VL-7B-Instruct", QWEN2_VL)
