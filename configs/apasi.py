"""APASI for LLaVA-1.5-7B: descriptions against themselves with made-up objects in them.

    python -m seva_jax.train --config configs/apasi.py \
        --base.path DIR --prompts.root DIR --pairs.objects-file FILE --mesh.fsdp 8

The model describes images; a fifth of the sentences, never the first, is replaced by sentences of
the same language model about objects that often come with those in the description but are not in
it (`seva_jax/pairs/injection.py`). Nobody else is asked. The vocabulary of objects is yours: one
object a line with its synonyms; the paper takes LVIS's names.

The model describes again after each round. How many rounds is our choice; the rate is the released
one in each, and a schedule of rates is `apasi_schedule.py`.
"""

import dataclasses

from llava15_7b_seva import get_config as base

from seva_jax.config.rounds import Iterations
from seva_jax.data.files import ImageFolder
from seva_jax.models import LoraConfig
from seva_jax.objectives import DPO
from seva_jax.pairs import InjectedPairs
from seva_jax.training.optimizer import Optim


def get_config():
    """Three rounds with the released rate of 0.2; `--curriculum.num 1` for one."""
    e = base()
    return dataclasses.replace(
        e,
        workdir="runs/apasi",
        prompts=ImageFolder("data/images", questions=("Describe this image in detail.",)),
        corrupt=(),
        pairs=InjectedPairs(rate=0.2, objects_file="data/objects.txt"),
        objective=DPO(beta=0.1),
        lora=LoraConfig(rank=128, alpha=256.0),
        optim=Optim(lr=4e-7, schedule="cosine", warmup_ratio=0.03, weight_decay=0.0, clip_norm=0.0),
        train=dataclasses.replace(
            e.train, batch_size=64, epochs=3, repeat=1, trained=("lora",), reference="cached"
        ),
        curriculum=Iterations(3),
    )
