"""POVID on LLaVA-1.5-7B: DPO on given pairs, merge, then on-the-fly negatives (arXiv 2402.11411).

    python -m seva_jax.train --config configs/povid.py --base.path DIR --mesh.fsdp 8 \
        --prompts.path POVID_preference_data_for_VLLMs.json --prompts.image-root COCO \
        --curriculum.rounds.1.prompts.source.path POVID_preference_data_for_VLLMs.json \
        --curriculum.rounds.1.prompts.source.image-root COCO

POVID's stages are two rounds here. The first is DPO on 17,000 answers and their hallucinated
copies. Its adapters are merged into the weights, and the result is the reference of the second
round. There, a second rejected answer is made at every position of the chosen answer: the token
that the model itself would choose if it saw the image under noise.

The numbers are those of the release's scripts, as configs/README.md lists them. They put one pair
on a device but do not give the number of devices; we assume 8. They also ask for training the
projector at 2e-5, but their trainer freezes it. To train it, add
`--train.trained lora projector --curriculum.rounds.1.train.trained lora projector`.
"""

import dataclasses

from seva_jax.config import Round, Rounds, TextOptions, TrainOptions
from seva_jax.corrupt import PixelNoise
from seva_jax.data import ChangedImages, PovidPairs
from seva_jax.models import LoraConfig
from seva_jax.objectives import DPO, Inherent
from seva_jax.recipes import llava15_7b_seva
from seva_jax.text import VICUNA_V1
from seva_jax.training import Optim

PAIRS = PovidPairs("data/povid.json", "data/coco")


def get_config():
    """Set the paths of the checkpoint and of the data here or on the command line."""
    # POVID: the trainer adds adapters a second time, which freezes the projector again.
    train = TrainOptions(batch_size=8, epochs=3, trained=("lora",))
    second = Round(
        # POVID: noise beyond black and white wraps around.
        prompts=ChangedImages(PAIRS, PixelNoise(step=500, overflow="wrap")),
        objective=Inherent(beta=0.1),
        train=dataclasses.replace(train, epochs=1, reference="in_step"),
    )
    return dataclasses.replace(
        llava15_7b_seva.get_config(),
        workdir="runs/povid",
        prompts=PAIRS,
        corrupt=(),
        text=TextOptions(generate=VICUNA_V1, train=VICUNA_V1, max_length=1048),
        objective=DPO(beta=0.1),
        lora=LoraConfig(rank=128, alpha=256.0),
        optim=Optim(lr=1e-7, projector_lr=2e-5, schedule="cosine", warmup_ratio=0.03),
        train=train,
        curriculum=Rounds((Round(), second)),
    )
