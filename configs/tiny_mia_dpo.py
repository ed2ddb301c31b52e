"""MIA-DPO on the procedural world: the base model first learns to read several images.

python -m seva_jax.train --config configs/tiny_mia_dpo.py
"""

import dataclasses

from seva_jax.config import TrainedBase
from seva_jax.data import Composed, Mixture
from seva_jax.objectives import DPO
from seva_jax.pairs import MiaPairs
from seva_jax.recipes import tiny
from seva_jax.worlds import world_vocabulary

# The words of the questions; the world's tokenizer has one id for each.
WORDS = ("In", "the", "image", "centre", ",", *(f"Image{number}" for number in range(1, 5)))


def composed(source, **options):
    """Returns prompts about one of several images; tiles are 32 pixels wide like the world's."""
    return Composed(
        source,
        sequence_sizes=(2, 3),  # few, so that the base model learns them in minutes
        grid_sizes=(2, 4),
        tile=32,
        label="{number}",
        listed="",
        centred="In the image in the centre, {question}",
        **options,
    )


def get_config():
    """Varies `tiny.py`: prompts are about one of 2 to 4 images."""
    config = tiny.get_config()
    assert isinstance(config.base, TrainedBase)
    learnt = dataclasses.replace(config.base.prompts, split="train-several")
    several = composed(learnt, tile_noise=0.0, inset_noise=0.0)
    return dataclasses.replace(
        config,
        workdir="runs/tiny_mia_dpo",
        base=dataclasses.replace(
            config.base,
            words=(*world_vocabulary(), *WORDS),
            prompts=Mixture((config.base.prompts, several), (1.0, 1.0)),
            steps=1300,
        ),
        prompts=composed(config.prompts),
        corrupt=(),
        pairs=MiaPairs(layer=1),
        text=dataclasses.replace(config.text, max_length=96),  # three images take 48 tokens
        objective=DPO(beta=0.1),
    )
