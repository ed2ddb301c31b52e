"""MIA-DPO (arXiv 2410.17637): LLaVA-1.5-7B on prompts about one of several images.

    python -m seva_jax.train --config configs/mia_dpo.py --base.path DIR \
        --prompts.source.path llava_v1_5_mix665k.json --prompts.source.image-root DIR \
        --mesh.fsdp 8

What is kept and its limits: `seva_jax/pairs/mia.py`. Number of images and batch size are ours.
"""

import dataclasses

from seva_jax.config.config_files import config_directory, read_config
from seva_jax.data.composed import Composed
from seva_jax.data.files import LlavaJson
from seva_jax.models import LoraConfig
from seva_jax.objectives import DPO
from seva_jax.pairs import MiaPairs
from seva_jax.training.optimizer import Optim
from seva_jax.training.options import TrainOptions

ANSWERED = LlavaJson(
    path="data/llava_v1_5_mix665k.json",
    image_root="data",
    remove=(),
    limit=28000,
    seed=42,
    answers=True,
)


def get_config():
    """Paths of the checkpoint and of the data are yours to set, here or on the command line."""
    return dataclasses.replace(
        read_config(config_directory() / "llava15_7b_seva.py"),
        workdir="runs/mia_dpo",
        prompts=Composed(ANSWERED, seed=42),
        corrupt=(),
        pairs=MiaPairs(),
        # The paper's alpha * DPO + gamma * SFT: gamma is 0 in the release, and may be set here.
        objective=DPO(beta=0.1, sft_weight=0.0),
        lora=LoraConfig(rank=128, alpha=256.0),
        optim=Optim(lr=5e-5, schedule="linear", warmup_ratio=0.0),
        train=TrainOptions(batch_size=32, epochs=1, trained=("lora",)),
    )
