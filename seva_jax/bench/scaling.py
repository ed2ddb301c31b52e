"""Measures what tree rows save as sizes grow: a DPO step in tree rows against a row per answer.

Question, answers, number of answers and batch are varied one at a time. Both sides compute the
reference in the step, with the same weights and the same losses.
"""

from __future__ import annotations

import dataclasses
import statistics
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from seva_jax.bench.step import (
    BETA,
    LR,
    SIZES,
    examples,
    on_device,
    packed,
    random_adapters,
    random_params,
    separate_rows,
    side_of,
)
from seva_jax.bench.timing import in_turns, machine
from seva_jax.models import Llava, LoraConfig
from seva_jax.objectives import DPO
from seva_jax.training.step import StepOptions, TrainStep
from seva_jax.types import DataError


@dataclasses.dataclass(frozen=True)
class ScalingBench:
    """Tree rows against a row per answer; while one size varies, the others keep their first value.

    Attributes:
        size: architecture.
        question: tokens of the question, without the image's.
        answer: tokens of each answer.
        branches: answers of a comparison.
        batch: comparisons in a batch.
        rank: rank of the adapters.
        dtype: dtype of computation and frozen weights.
        rounds: timed steps of each side.
    """

    size: Literal["small", "mid", "7b", "13b"] = "small"
    question: tuple[int, ...] = (64, 512)
    answer: tuple[int, ...] = (128, 32, 512)
    branches: tuple[int, ...] = (2, 4)
    batch: tuple[int, ...] = (1, 4)
    rank: int = 64
    dtype: Literal["float32", "bfloat16"] = "float32"
    rounds: int = 3


def run_scaling(bench: ScalingBench) -> None:
    """Measures each point in turns and prints a table."""
    axes = {name: getattr(bench, name) for name in ("question", "answer", "branches", "batch")}
    if bench.rounds < 1 or not all(axes.values()) or min(map(min, axes.values())) < 1:
        raise DataError("--question, --answer, --branches, --batch, --rounds: 1 or more")
    config = SIZES[bench.size]
    lora = LoraConfig(rank=bench.rank, alpha=2.0 * bench.rank)
    model = Llava(config, lora, jnp.dtype(bench.dtype))
    frozen = on_device(random_params(model), model.dtype)
    trainable = {"lora": random_adapters(model)}
    base = {name: values[0] for name, values in axes.items()}
    points = [base | {name: value} for name, values in axes.items() for value in values]
    print(
        f"DPO step, LLaVA {bench.size}, {config.tokens_per_image} image tokens, LoRA "
        f"r={bench.rank}, {bench.dtype}, reference in the step\n" + machine([], bench.rounds)
    )
    columns = (*axes, "trees, s", "rows, s", "speed-up", "tokens", "loss")
    print("".join(f"{x:>10}" for x in columns), flush=True)
    for point in [p for i, p in enumerate(points) if p not in points[:i]]:
        sides = _sides(model, frozen, trainable, **point)
        losses = [side() for side in sides.values()]  # compiles
        trees, rows = map(statistics.median, in_turns(sides, bench.rounds).values())
        trunk = config.tokens_per_image + point["question"]
        answers = point["branches"] * point["answer"]
        tokens = (point["branches"] * trunk + answers) / (trunk + answers)
        print(
            "".join(f"{x:>10}" for x in point.values())
            + f"{trees:>10.3f}{rows:>10.3f}{rows / trees:>9.2f}x{tokens:>9.2f}x"
            + f"   {losses[0]:.6f}, {losses[1]:.6f}",
            flush=True,
        )


def _sides(
    model: Llava, frozen: Any, trainable: Any, question: int, answer: int, branches: int, batch: int
) -> dict[str, Any]:
    trees = examples(model.config, batch, question, answer, branches)
    rows = [dataclasses.replace(t, branches=(b,)) for t in trees for b in t.branches]
    options = StepOptions()
    step = TrainStep(model, DPO(beta=BETA), optax.adamw(LR), options, True)
    in_trees = jax.tree.map(lambda x: x[None], packed(model.config, trees))
    separate = separate_rows(model, options, branches)
    return {
        "trees": side_of(step, trainable, frozen, in_trees),
        "rows": side_of(separate, trainable, frozen, packed(model.config, rows)),
    }
