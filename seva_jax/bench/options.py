"""Options of the benchmarks whose other side may run in a process of its own (`other_side.py`)."""

from __future__ import annotations

import dataclasses
from typing import Literal

from seva_jax.models import Attention, CacheKind, Remat

Kind = Literal["both-cached", "cached", "in-step", "rows"]


@dataclasses.dataclass(frozen=True)
class StepBench:
    """Time of a DPO step with adapters: ours, ours in two-row layout, TRL's.

    Attributes:
        size: architecture; "small" and "mid" are LLaVA-shaped and suit a CPU.
        pairs: pairs in a step.
        micro_batches: equal parts of the batch, whose gradients are summed one after the other.
        question: tokens of the question and its template, without those of the image.
        answer: tokens of each answer.
        rank: rank of the adapters.
        dtype: dtype of compute and frozen weights.
        remat: what our backward pass recomputes, see `ComputeOptions.remat`; "auto" takes the least
            that fits an accelerator's memory.
        attention: see `seva_jax.models.attention.attend`.
        sides: which of ours to measure; "rows", two rows a pair, is left out with micro-batches.
        rounds: timed steps of each side.
        trl: measure TRL, too.
    """

    size: Literal["tiny", "small", "mid", "7b", "13b"] = "small"
    pairs: int = 2
    micro_batches: int = 1
    question: int = 64
    answer: int = 128
    rank: int = 64
    dtype: Literal["float32", "bfloat16"] = "float32"
    remat: Remat | Literal["auto"] = "none"
    attention: Attention = "auto"
    sides: tuple[Kind, ...] = ("both-cached", "cached", "in-step", "rows")
    rounds: int = 5
    trl: bool = True


@dataclasses.dataclass(frozen=True)
class SampleBench:
    """Time of greedy answers: our sampler, `transformers.generate`.

    Attributes:
        size: architecture; "small" and "mid" are LLaVA-shaped and suit a CPU.
        rows: rows answered together; on a GPU, transformers halves them until they fit.
        question: tokens of the question and its template, without those of the image.
        answer: new tokens of each row.
        dtype: dtype of weights and compute.
        caches: our KV caches to measure.
        rounds: timed batches of each side.
        hf: measure transformers, too.
    """

    size: Literal["tiny", "small", "mid", "7b", "13b"] = "small"
    rows: int = 8
    question: int = 64
    answer: int = 64
    dtype: Literal["float32", "bfloat16"] = "float32"
    caches: tuple[CacheKind, ...] = ("exact", "int8")
    rounds: int = 3
    hf: bool = True
