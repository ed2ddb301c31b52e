"""APASI on LLaVA-1.5-7B: the model's descriptions against copies that mention absent objects.

    python -m seva_jax.train --config configs/apasi.py \
        --base.path DIR --prompts.root DIR --pairs.objects-file FILE --mesh.fsdp 8

The model describes images. In the rejected copy a fifth of the sentences, never the first one, is
replaced. The language model writes the replacements without seeing the image, about objects that
often occur together with those in the description but are absent from it
(`seva_jax/pairs/injection.py`). No other model is involved. You supply the vocabulary of objects:
one object per line with its synonyms. The paper takes the category names of LVIS.

The model describes the images again in every round. The number of rounds is our choice; the rate is
the released one in every round, and `apasi_schedule.py` has a schedule of rates.
"""

import dataclasses

from llava15_7b_seva import get_config as seva

from seva_jax.config import Iterations
from seva_jax.data import ImageFolder
from seva_jax.models import LoraConfig
from seva_jax.objectives import DPO
from seva_jax.pairs import InjectedPairs
from seva_jax.training import Optim


def get_config():
    """Runs three rounds with the released rate of 0.2; `--curriculum.num 1` runs one."""
    config = seva()
    return dataclasses.replace(
        config,
        workdir="runs/apasi",
        prompts=ImageFolder("data/images", questions=("Describe this image in detail.",)),
        corrupt=(),
        pairs=InjectedPairs(rate=0.2, objects_file="data/objects.txt"),
        objective=DPO(beta=0.1),
        lora=LoraConfig(rank=128, alpha=256.0),
        optim=Optim(lr=4e-7, schedule="cosine", warmup_ratio=0.03, weight_decay=0.0, clip_norm=0.0),
        train=dataclasses.replace(
            config.train, batch_size=64, epochs=3, repeat=1, trained=("lora",), reference="cached"
        ),
        curriculum=Iterations(3),
    )
