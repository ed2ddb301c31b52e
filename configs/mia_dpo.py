"""MIA-DPO on LLaVA-1.5-7B: prompts about one of several images (arXiv 2410.17637).

    python -m seva_jax.train --config configs/mia_dpo.py --base.path DIR \
        --prompts.source.path llava_v1_5_mix665k.json --prompts.source.image-root DIR \
        --mesh.fsdp 8

`seva_jax/pairs/mia.py` explains which answers are kept and the limits for them. The numbers are
those of the release: its notebooks for the prompts, its three generators for the answers, and
`train_dpo_multi.sh` for training.
"""

import dataclasses

from seva_jax.config import RolloutOptions, TextOptions, TrainOptions
from seva_jax.data import Composed, LlavaJson
from seva_jax.data.composed import Arrangement
from seva_jax.models import LoraConfig
from seva_jax.objectives import DPO
from seva_jax.pairs import MiaPairs
from seva_jax.recipes import llava15_7b_seva
from seva_jax.text import LLAVA_V0, VICUNA_V1, Sampling
from seva_jax.training import Optim

ANSWERED = LlavaJson(
    path="data/llava_v1_5_mix665k.json",
    image_root="data",
    remove=(),
    limit=201436,
    seed=42,
    answers=True,
)
# 62,461 sequences, 90,000 grids and 48,975 insets.
ARRANGEMENTS: tuple[Arrangement, ...] = (
    "grid", "sequence", "inset", "grid", "sequence", "grid", "inset", "grid",
    "sequence", "grid", "inset", "sequence", "grid", "inset", "sequence", "grid",
)  # fmt: skip
COMPOSED = Composed(
    ANSWERED,
    arrangements=ARRANGEMENTS,
    # 34,300 of 2 images, 10,050 of 3, 9,950 of 4 and 8,161 of 5.
    sequence_sizes=(2,) * 11 + (3,) * 3 + (4,) * 3 + (5,) * 3,
    # 48,000 of 2 tiles, 14,000 of 3 and of 4, 7,000 of 6 and of 9.
    grid_sizes=(2,) * 7 + (3,) * 2 + (4,) * 2 + (6, 9),
    seed=42,
)


def get_config():
    """Set the paths of the checkpoint and of the data here or on the command line."""
    return dataclasses.replace(
        llava15_7b_seva.get_config(),
        workdir="runs/mia_dpo",
        prompts=COMPOSED,
        corrupt=(),
        rollout=RolloutOptions(Sampling(max_new_tokens=512, temperature=0.0)),
        text=TextOptions(generate=LLAVA_V0, train=VICUNA_V1, max_length=4096),
        pairs=MiaPairs(),
        # The paper's loss is alpha * DPO + gamma * SFT; gamma is 0 in the release. Set it here.
        objective=DPO(beta=0.1, sft_weight=0.0),
        lora=LoraConfig(rank=128, alpha=256.0),
        optim=Optim(lr=5e-5, schedule="linear", warmup_ratio=0.1),
        train=TrainOptions(batch_size=64, epochs=1, trained=("lora",)),
    )
