"""Measures what tree rows save as sizes grow: a DPO step in tree rows against a row per answer.

Question, answers, number of answers and batch are varied one at a time. Both sides compute the
reference in the step, with the same weights and the same losses.
"""

from __future__ import annotations

import dataclasses
import statistics
from typing import Any, Literal

from seva_jax.bench.examples import SIZES, examples, packed
from seva_jax.bench.step import adapted_model, rows_side, tree_side
from seva_jax.bench.timing import in_turns, machine
from seva_jax.models import Llava
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
    model, frozen, adapters = adapted_model(config, bench.rank, bench.dtype)
    base = {name: values[0] for name, values in axes.items()}
    points = [base | {name: value} for name, values in axes.items() for value in values]
    print(
        f"DPO step, LLaVA {bench.size}, {config.tile_features} image tokens, LoRA "
        f"r={bench.rank}, {bench.dtype}, reference in the step\n" + machine([], bench.rounds)
    )
    columns = (*axes, "trees, s", "rows, s", "speed-up", "tokens", "loss")
    print("".join(f"{x:>10}" for x in columns), flush=True)
    for point in [p for i, p in enumerate(points) if p not in points[:i]]:
        sides = _sides(model, frozen, {"lora": adapters}, **point)
        losses = [side() for side in sides.values()]  # compiles
        trees, rows = map(statistics.median, in_turns(sides, bench.rounds).values())
        trunk = config.tile_features + point["question"]
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
    return {
        "trees": tree_side(model, trainable, frozen, packed(model.config, trees)),
        "rows": rows_side(model, trainable, frozen, trees),
    }
