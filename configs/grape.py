"""GRAPE: preferences between robot trajectories, on LLaVA-1.5-7B (arXiv 2411.19309).

    python -m seva_jax.train --config configs/grape.py \
        --base.path DIR --prompts.path FILE --prompts.image-root DIR

The numbers are those of the release's `finetune.py`. GRAPE aligns OpenVLA, whose vision towers this
package does not have and whose actions are the last 256 token ids of the vocabulary. Here an action
is text, by default the numbers of its bins (`seva_jax/data/trajectories.py` explains the file
format and the score). A comparison has up to 16 trees with one image each, which makes about 10,000
positions in one row. A batch of one comparison cannot be split, so the devices split the model
instead (`mesh`): 1, 2, 4, 8 or 16 of them.
"""

import dataclasses

from seva_jax.data import Gcpg, TrajectoryPairs
from seva_jax.models import LoraConfig
from seva_jax.objectives import DPO, Trajectory
from seva_jax.recipes import llava15_7b_seva
from seva_jax.sharding import MeshShape
from seva_jax.training import Optim


def get_config():
    """Trains on the best scored trajectory of a task against the worst scored one."""
    config = llava15_7b_seva.get_config()
    return dataclasses.replace(
        config,
        workdir="runs/grape",
        prompts=TrajectoryPairs(
            "data/trajectories.jsonl",
            "data/frames",
            judge=Gcpg(likelihood=0.01, cost=0.01, success=5.0),
            window=8,
            stride=1,
        ),
        corrupt=(),
        objective=Trajectory(window=8, objective=DPO(beta=0.1)),
        lora=LoraConfig(rank=32, alpha=32.0),  # alpha is min(rank, 32)
        # 0.01 is the decay of PyTorch's AdamW where none is given.
        optim=Optim(lr=2e-5, schedule="constant", warmup_ratio=0.0, weight_decay=0.01),
        train=dataclasses.replace(
            config.train, batch_size=1, epochs=10, repeat=1, trained=("lora",)
        ),
        mesh=MeshShape(data=1, tensor=-1),
    )
