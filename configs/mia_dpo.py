"""MIA-DPO on LLaVA-1.5-7B: prompts about one of several images (arXiv 2410.17637).

    python -m seva_jax.train --config configs/mia_dpo.py --base.path DIR \
        --prompts.source.path llava_v1_5_mix665k.json --prompts.source.image-root DIR \
        --mesh.fsdp 8

`seva_jax/pairs/mia.py` explains which answers are kept and the limits for them. The numbers of
images and the batch size are ours.
"""

import dataclasses

from llava15_7b_seva import get_config as seva

from seva_jax.config import TrainOptions
from seva_jax.data import Composed, LlavaJson
from seva_jax.models import LoraConfig
from seva_jax.objectives import DPO
from seva_jax.pairs import MiaPairs
from seva_jax.training import Optim

ANSWERED = LlavaJson(
    path="data/llava_v1_5_mix665k.json",
    image_root="data",
    remove=(),
    limit=28000,
    seed=42,
    answers=True,
)


def get_config():
    """Set the paths of the checkpoint and of the data here or on the command line."""
    return dataclasses.replace(
        seva(),
        workdir="runs/mia_dpo",
        prompts=Composed(ANSWERED, seed=42),
        corrupt=(),
        pairs=MiaPairs(),
        # The paper's loss is alpha * DPO + gamma * SFT; gamma is 0 in the release. Set it here.
        objective=DPO(beta=0.1, sft_weight=0.0),
        lora=LoraConfig(rank=128, alpha=256.0),
        optim=Optim(lr=5e-5, schedule="linear", warmup_ratio=0.0),
        train=TrainOptions(batch_size=32, epochs=1, trained=("lora",)),
    )
