"""POVID on LLaVA-1.5-7B: DPO on given pairs, merge, then on-the-fly negatives (arXiv 2402.11411).

    python -m seva_jax.train --config configs/povid.py --base.path DIR --mesh.fsdp 8 \
        --prompts.path POVID_preference_data_for_VLLMs.json --prompts.image-root COCO \
        --curriculum.stages.1.prompts.source.path POVID_preference_data_for_VLLMs.json \
        --curriculum.stages.1.prompts.source.image-root COCO

Stage 1 is DPO on 17,000 answers and their hallucinated copies. Its adapters are merged, and the
result is the reference of stage 2, whose second rejected answer is what the model itself would say
at each place of the chosen answer if it saw the image under noise.

The release's scripts differ from the paper: their second stage has 3 epochs
(`--curriculum.stages.1.train.epochs 3`). They give one pair a device and not the number of devices;
8 is taken here. Whether the projector was trained is not said; adapters only are.
"""

import dataclasses

from llava15_7b_seva import get_config as published

from seva_jax.config.options import TextOptions
from seva_jax.config.rounds import Round, Rounds
from seva_jax.corrupt import PixelNoise
from seva_jax.data.changed import ChangedImages
from seva_jax.data.preferences import PovidPairs
from seva_jax.models import LoraConfig
from seva_jax.objectives import DPO, Inherent
from seva_jax.text.templates import VICUNA_V1
from seva_jax.training.optimizer import Optim
from seva_jax.training.options import TrainOptions

PAIRS = PovidPairs("data/povid.json", "data/coco")


def get_config():
    """Paths of the checkpoint and of the data are yours to set, here or on the command line."""
    train = TrainOptions(batch_size=8, epochs=3, trained=("lora",))
    second = dataclasses.replace(train, epochs=1, reference="in_step")
    return dataclasses.replace(
        published(),
        workdir="runs/povid",
        prompts=PAIRS,
        corrupt=(),
        text=TextOptions(generate=VICUNA_V1, train=VICUNA_V1, max_length=2048),
        objective=DPO(beta=0.1),
        lora=LoraConfig(rank=128, alpha=256.0),
        optim=Optim(lr=1e-7, schedule="cosine", warmup_ratio=0.03),
        train=train,
        curriculum=Rounds(
            (
                Round(),
                Round(
                    prompts=ChangedImages(PAIRS, PixelNoise(step=500)),
                    objective=Inherent(beta=0.1),
                    train=second,
                ),
            )
        ),
    )
