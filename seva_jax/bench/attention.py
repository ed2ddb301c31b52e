"""Time of attention alone, with the tree attention mask of a DPO batch: every kind of `attend`."""

from __future__ import annotations

import dataclasses
import typing
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from seva_jax.bench.examples import SIZES, examples, packed
from seva_jax.bench.timing import in_turns, machine
from seva_jax.models import Attention
from seva_jax.models.attention import attend
from seva_jax.training.step import tree_mask
from seva_jax.types import DataError

_CALLS = 10  # in a round, so that the time to start a kernel does not count


@dataclasses.dataclass(frozen=True)
class AttentionBench:
    """Time of each attention kernel on rows of a DPO batch: forward, and with the backward pass.

    A kind that this device does not have is named with its error.

    Attributes:
        size: architecture that gives heads and head width.
        pairs: rows, one for each pair.
        question: tokens of the question and its template, without those of the image.
        answer: tokens of each answer.
        dtype: dtype of queries, keys and values.
        kinds: see `seva_jax.models.attention.attend`; empty for all.
        rounds: timed rounds of 10 calls.
    """

    size: Literal["tiny", "small", "mid", "7b", "13b"] = "small"
    pairs: int = 2
    question: int = 64
    answer: int = 128
    dtype: Literal["float32", "bfloat16"] = "float32"
    kinds: tuple[Attention, ...] = ()
    rounds: int = 5


def run_attention(bench: AttentionBench) -> None:
    """Measures one kind after the other and prints a line for each."""
    if min(bench.pairs, bench.rounds) < 1:
        raise DataError("--pairs and --rounds must be at least 1")
    config = SIZES[bench.size]
    batch = packed(config, examples(config, bench.pairs, bench.question, bench.answer))
    mask_BSS = jax.jit(tree_mask)(batch.tree_BS, batch.branch_BS)
    text, shape = config.text, mask_BSS.shape[:2]
    heads = (text.num_heads, text.num_kv_heads, text.num_kv_heads)
    inputs = [
        jax.random.normal(jax.random.key(i), (*shape, num, text.head_dim)).astype(bench.dtype)
        for i, num in enumerate(heads)
    ]
    print(
        f"attention, {shape[0]} rows of {shape[1]} tokens, {text.num_heads} heads of "
        f"{text.head_dim}, {bench.dtype}, tree attention mask\n" + machine([], bench.rounds)
    )
    print(f"{'':<12}{'forward, ms':>14}{'with backward, ms':>20}{'difference':>13}")
    exact = [x.astype(jnp.float32) for x in inputs]
    expected = _forward("plain", mask_BSS)(*exact)
    for kind in bench.kinds or typing.get_args(Attention):
        try:
            forward, both = _forward(kind, mask_BSS), _backward(kind, mask_BSS)
            off = jnp.abs(forward(*inputs).astype(jnp.float32) - expected).max()
            times = [_milliseconds(call, inputs, bench.rounds) for call in (forward, both)]
        except Exception as error:  # whatever a missing kernel raises
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            print(f"{kind:<12}not here: {reason[:120]}", flush=True)
            continue
        print(f"{kind:<12}{times[0]:>14.3f}{times[1]:>20.3f}{off:>13.2g}", flush=True)
    print('"difference" is the largest one to "plain" in float32')


def _forward(kind: Attention, mask_BSS: jax.Array) -> Any:
    return jax.jit(lambda q, k, v: attend(q, k, v, mask_BSS, kind))


def _backward(kind: Attention, mask_BSS: jax.Array) -> Any:
    def total(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return jnp.square(attend(q, k, v, mask_BSS, kind).astype(jnp.float32)).sum()

    return jax.jit(jax.grad(total, argnums=(0, 1, 2)))


def _milliseconds(call: Any, inputs: Any, rounds: int) -> float:
    def several() -> None:
        jax.block_until_ready([call(*inputs) for _ in range(_CALLS)])

    several()  # compiles
    return 1e3 / _CALLS * float(np.median(in_turns({"": several}, rounds)[""]))
