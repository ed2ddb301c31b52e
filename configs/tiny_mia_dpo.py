"""MIA-DPO on the procedural world: the base model learns to read several images first.

python -m seva_jax.train --config configs/tiny_mia_dpo.py
"""

import dataclasses

from seva_jax.config.base_models import TrainedBase
from seva_jax.config.config_files import config_directory, read_config
from seva_jax.data.composed import Composed
from seva_jax.data.mixed import Mixture
from seva_jax.objectives import DPO
from seva_jax.pairs import MiaPairs
from seva_jax.worlds.shapes import world_vocabulary

# Words of the questions; the world's tokenizer has one id for each.
WORDS = ("In", "the", "image", "centre", ",", *(f"Image{number}" for number in range(1, 5)))


def composed(source):
    """The world's images are 32 pixels wide, so tiles are too, and labels are numbers."""
    sizes = (2, 3)  # few, so that the base model learns them in minutes
    return Composed(source, sequence_sizes=sizes, grid_sizes=(2, 4), tile=32, label="{number}")


def get_config():
    """As `tiny.py`, with prompts about one of 2 to 4 images."""
    tiny = read_config(config_directory() / "tiny.py")
    assert isinstance(tiny.base, TrainedBase)
    several = composed(dataclasses.replace(tiny.base.prompts, split="train-several"))
    return dataclasses.replace(
        tiny,
        workdir="runs/tiny_mia_dpo",
        base=dataclasses.replace(
            tiny.base,
            words=(*world_vocabulary(), *WORDS),
            prompts=Mixture((tiny.base.prompts, several), (1.0, 1.0)),
        ),
        prompts=composed(tiny.prompts),
        corrupt=(),
        pairs=MiaPairs(layer=1),
        text=dataclasses.replace(tiny.text, max_length=96),  # three images take 48 tokens
        objective=DPO(beta=0.1),
    )
