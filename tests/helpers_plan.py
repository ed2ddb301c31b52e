"""A run to plan: the shape of its rows, and its experiment."""

from seva_jax.batches.trees import RowShape
from seva_jax.config import ComputeOptions, TrainOptions
from seva_jax.config.experiment import Experiment
from seva_jax.models import LoraConfig

SHAPE = RowShape(length=192, comparisons=1, branches=2, answer=64, tiles=1, targets=128)


def experiment(trained=("lora", "projector"), remat="none", **fields):
    """Makes an experiment with batches of four rows."""
    lora = LoraConfig(rank=32 if "lora" in trained else 0)
    compute = ComputeOptions(remat=remat, head_chunk=256, param_dtype="float32", dtype="float32")
    train = TrainOptions(batch_size=4, trained=trained)
    return Experiment(**{"train": train, "compute": compute, "lora": lora} | fields)
