"""Time of training on comparisons of mixed lengths: packed rows, or one row per comparison.

Both sides take the same steps on the same batches; their losses have to agree.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from seva_jax.batches.packing import Layout, Sizes, choose
from seva_jax.batches.trees import RowShape, TreeExample
from seva_jax.bench.examples import BETA, LR, SIZES, examples, laid_out
from seva_jax.bench.step import Side, adapted_model
from seva_jax.bench.timing import in_turns, machine, table
from seva_jax.models import Llava, LlavaConfig, LoraConfig
from seva_jax.objectives import DPO
from seva_jax.training.flops import forward, model_flops
from seva_jax.training.step import StepOptions, TrainState, TrainStep
from seva_jax.types import DataError, TreeBatch


@dataclasses.dataclass(frozen=True)
class PackingBench:
    """Time of a pass over comparisons of mixed lengths: rows of several shapes, rows of one.

    Attributes:
        size: architecture; "small" and "mid" are LLaVA-shaped and suit a CPU.
        comparisons: comparisons in a pass.
        batch: comparisons in a step.
        images: images of each comparison; 0 for text only.
        question: tokens of the question without those of the images.
        answer: tokens of the shortest and the longest answer; lengths between them are uniform on a
            logarithmic scale.
        shapes: maximum number of row shapes of the packed side.
        rank: rank of the adapters.
        dtype: dtype of compute and frozen weights.
        rounds: timed passes of each side.
    """

    size: Literal["small", "mid", "7b", "13b"] = "small"
    comparisons: int = 32
    batch: int = 8
    images: int = 1
    question: int = 64
    answer: tuple[int, int] = (8, 512)
    shapes: int = 4
    rank: int = 64
    dtype: Literal["float32", "bfloat16"] = "float32"
    rounds: int = 3


def run_packing(bench: PackingBench) -> None:
    """Measures both sides in turns and prints a table."""
    short, long = bench.answer
    if min(bench.comparisons, bench.batch, bench.rounds, bench.shapes) < 1 or not 0 < short <= long:
        raise DataError("--comparisons, --batch, --rounds, --shapes: 1 or more; --answer: rising")
    if bench.images < 0:
        raise DataError(f"--images: 0 or more, not {bench.images}")
    config = SIZES[bench.size]
    model, frozen, adapters = adapted_model(config, bench.rank, bench.dtype)
    rng = np.random.default_rng(0)
    whole = examples(config, bench.comparisons, bench.question, long, images=bench.images)
    lengths = np.exp(rng.uniform(np.log(short), np.log(long), (bench.comparisons, 2))).astype(int)
    trees = [
        dataclasses.replace(tree, branches=(tree.branches[0][:chosen], tree.branches[1][:rejected]))
        for tree, (chosen, rejected) in zip(whole, lengths, strict=True)
    ]
    index = range(bench.comparisons)
    batches = [list(index[i : i + bench.batch]) for i in index[:: bench.batch]]
    sizes, widest = Sizes.of(trees), RowShape.covering(trees)

    def cost(shape: RowShape) -> float:
        return model_flops(forward(config, LoraConfig(rank=bench.rank), shape), ("lora",))

    packers = {
        name: choose(sizes, widest, bench.batch, batches, 1, most, cost)
        for name, most in (("packed", bench.shapes), ("a row for each", 1))
    }
    sides = {
        name: _side(model, frozen, adapters, [_batch(config, trees, *packer(b)) for b in batches])
        for name, packer in packers.items()
    }
    losses = {name: side() for name, side in sides.items()}  # compiles
    times = in_turns(sides, bench.rounds)
    print(
        f"{bench.comparisons} comparisons in batches of {bench.batch}, LLaVA {bench.size}, "
        f"{bench.images} x {config.tile_features} + {bench.question} tokens and answers of "
        f"{short} to {long}, LoRA r={bench.rank}, {bench.dtype}\n" + machine([], bench.rounds)
    )
    notes = {name: f"   {losses[name]:.6f}  {p.describe()}" for name, p in packers.items()}
    notes[""] = "   last loss"
    print(table(times, 16, "pairs", bench.comparisons, "a row for each", 2, notes))


def _side(model: Llava, frozen: Any, adapters: Any, batches: list[TreeBatch]) -> Side:
    """Returns a pass over all batches from the same adapters, which returns the last loss."""
    optimizer = optax.adamw(LR)
    step = jax.jit(TrainStep(model, DPO(beta=BETA), optimizer, StepOptions(), True))
    ready = [jax.device_put(batch) for batch in batches]

    def run() -> float:
        trainable = {"lora": adapters}
        state = TrainState(jnp.int32(0), trainable, optimizer.init(trainable))
        loss = 0.0
        for batch in ready:
            state, metrics = step(state, frozen, batch)
            loss = float(metrics["loss"])
        return loss

    return run


def _batch(
    config: LlavaConfig, trees: list[TreeExample], layout: Layout, rows: list[list[int]]
) -> TreeBatch:
    """Packs comparisons into a batch with leaves [1, B, ...]."""
    rows += [[]] * (layout.rows - len(rows))
    batch = laid_out(config, [[trees[i] for i in row] for row in rows], layout.shape)
    return jax.tree.map(lambda x: x[None], batch)
