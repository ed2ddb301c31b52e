"""Batched answers: one prefill, then one compiled decode loop with early exit.

`generate` is the whole interface. Who is asked what, and on which image, is in
`seva_jax/rollout/run.py`.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from seva_jax.models import Llava
from seva_jax.step import Variables
from seva_jax.types import Array


class PromptBatch(NamedTuple):
    """Tokenised prompts, padded on either side.

    Attributes:
        tokens_BS: int32 token ids, images expanded to their image tokens.
        mask_BS: bool, True for real tokens.
        patch_BS: int32, -1 for text, otherwise an index into the row's image features.
        pixels_BIHWC: float32 preprocessed images.
    """

    tokens_BS: Array
    mask_BS: Array
    patch_BS: Array
    pixels_BIHWC: Array


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How tokens are chosen.

    Attributes:
        max_new_tokens: longest answer, tokens.
        temperature: 0 is greedy.
        top_p: keep the smallest set of tokens whose probability reaches this (nucleus).
    """

    max_new_tokens: int = 512
    temperature: float = 0.0
    top_p: float = 1.0


def choose(logits_BV: jax.Array, keys_B: jax.Array, sampling: Sampling) -> jax.Array:
    """Next token [B] of each row, from float32 logits."""
    if sampling.temperature == 0.0:
        return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
    logits_BV = logits_BV / sampling.temperature
    if sampling.top_p < 1.0:
        sorted_BV = jnp.sort(logits_BV, axis=-1, descending=True)
        probs_BV = jax.nn.softmax(sorted_BV, axis=-1)
        before_BV = jnp.cumsum(probs_BV, axis=-1) - probs_BV
        kept_BV = jnp.where(before_BV < sampling.top_p, sorted_BV, jnp.inf)
        logits_BV = jnp.where(logits_BV >= kept_BV.min(-1, keepdims=True), logits_BV, -jnp.inf)
    return jax.vmap(jax.random.categorical)(keys_B, logits_BV).astype(jnp.int32)


@functools.partial(jax.jit, static_argnames=("model", "sampling", "stop_ids", "pad_id"))
def generate(
    model: Llava,
    variables: Variables,
    batch: PromptBatch,
    keys_B: jax.Array,
    sampling: Sampling,
    stop_ids: tuple[int, ...],
    pad_id: int,
) -> jax.Array:
    """Answers a batch of prompts.

    Args:
        model: the module.
        variables: its variables; without "lora" the adapters are off.
        batch: prompts of mixed lengths and numbers of images.
        keys_B: typed PRNG keys, one a row; row i's answer depends on keys_B[i] and row i alone.
        sampling: greedy or random choice, longest answer.
        stop_ids: tokens that end an answer.
        pad_id: fills the row after the stop token.

    Returns:
        [B, max_new_tokens] int32: new tokens including the stop token, then `pad_id`.
    """
    rows, width = batch.tokens_BS.shape
    num_new = sampling.max_new_tokens
    slots_U = jnp.arange(width + num_new)
    seen_BU = jnp.pad(batch.mask_BS, ((0, 0), (0, num_new)))
    positions_BS = jnp.maximum(jnp.cumsum(batch.mask_BS, axis=1) - 1, 0)
    causal_SS = slots_U[:width] <= slots_U[:width, None]
    # Padding sees itself: kernels divide by the sum over what a query sees.
    mask_BSS = (batch.mask_BS[:, None] & causal_SS) | jnp.eye(width, dtype=bool)
    cache = model.empty_cache(rows, width + num_new)
    hidden_BSD, cache = model.apply(
        variables,
        batch.tokens_BS,
        positions_BS,
        mask_BSS,
        batch.patch_BS,
        model.apply(variables, batch.pixels_BIHWC, method="features"),
        cache,
        jnp.int32(0),
        method="hidden",
    )
    last_B = width - 1 - jnp.argmax(batch.mask_BS[:, ::-1], axis=1)
    hidden_B1D = jnp.take_along_axis(hidden_BSD, last_B[:, None, None], axis=1)
    logits_B1V: Any = model.apply(variables, hidden_B1D, method="head")
    logits_BV = logits_B1V[:, 0]
    length_B = batch.mask_BS.sum(axis=1)
    stops = jnp.array(stop_ids, jnp.int32)

    def pick(logits_BV: jax.Array, done_B: jax.Array, t: jax.Array) -> tuple[jax.Array, jax.Array]:
        keys = jax.vmap(jax.random.fold_in, (0, None))(keys_B, t)
        token_B = jnp.where(done_B, pad_id, choose(logits_BV, keys, sampling))
        return token_B, done_B | (token_B[:, None] == stops).any(-1)

    def decode(carry: tuple) -> tuple:
        t, token_B, done_B, out_BT, cache = carry
        slot = width + t - 1
        mask_BU = seen_BU | ((slots_U >= width) & (slots_U <= slot))
        logits_B1V, cache = model.apply(
            variables,
            token_B[:, None],
            (length_B + t - 1)[:, None],
            mask_BU[:, None],
            cache,
            slot,
            method="decode",
        )
        token_B, done_B = pick(logits_B1V[:, 0], done_B, t)
        return t + 1, token_B, done_B, out_BT.at[:, t].set(token_B), cache

    token_B, done_B = pick(logits_BV, jnp.zeros(rows, bool), jnp.int32(0))
    out_BT = jnp.full((rows, num_new), pad_id, jnp.int32).at[:, 0].set(token_B)
    start = (jnp.int32(1), token_B, done_B, out_BT, cache)
    return jax.lax.while_loop(lambda c: (c[0] < num_new) & ~c[2].all(), decode, start)[3]
