"""APASI on LLaVA-1.5-7B: the model's descriptions against copies that mention absent objects.

    python -m seva_jax.train --config configs/apasi.py \
        --base.path DIR --prompts.path FILE --prompts.image-root DIR --pairs.objects-file FILE \
        --mesh.fsdp 8

The model describes images, asked by the questions of LLaVA's detail_23k.json. In the rejected copy
a fifth of the sentences, never the first one, is replaced. The language model writes the
replacements without seeing the image, about objects that often occur together with those in the
description but are absent from it (`seva_jax/pairs/injection.py`). No other model is involved. You
supply the vocabulary of objects: one object per line with its synonyms. The release takes the
categories of LVIS.

One round, as in the release. With more, such as `--curriculum.num 3`, the trained model describes
the images again in every round; `apasi_schedule.py` has a schedule of rates.
"""

import dataclasses

from seva_jax.config import Iterations, RolloutOptions
from seva_jax.data import LlavaJson
from seva_jax.models import LoraConfig
from seva_jax.objectives import DPO
from seva_jax.pairs import InjectedPairs
from seva_jax.recipes import llava15_7b_seva
from seva_jax.text import Sampling
from seva_jax.training import Optim


def get_config():
    """Set the paths of the checkpoint and of the data here or on the command line."""
    config = llava15_7b_seva.get_config()
    return dataclasses.replace(
        config,
        workdir="runs/apasi",
        prompts=LlavaJson("data/detail_23k.json", "data/coco/train2017", remove=()),
        corrupt=(),
        rollout=RolloutOptions(Sampling(max_new_tokens=1024, temperature=0.0)),
        pairs=InjectedPairs(rate=0.2, objects_file="data/objects.txt"),
        objective=DPO(beta=0.1),
        lora=LoraConfig(rank=128, alpha=256.0),
        optim=Optim(lr=4e-7, projector_lr=2e-5, schedule="cosine", warmup_ratio=0.05),
        train=dataclasses.replace(
            config.train,
            batch_size=64,
            epochs=3,
            repeat=1,
            trained=("lora", "projector"),
            reference="cached",
        ),
        curriculum=Iterations(1),
    )
