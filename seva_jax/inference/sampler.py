"""Batched sampling: prefill, then one compiled decode loop with early exit.

`generate` answers one batch. `refill` and `decode` in turns answer any number of prompts: finished
rows take new prompts while the others continue (continuous batching). Which prompts and images are
answered is decided in `seva_jax/inference/rollouts.py`.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from seva_jax.models import Cache, CacheKind, Llava
from seva_jax.sharding import constrain
from seva_jax.text import Sampling
from seva_jax.training.step import Variables
from seva_jax.types import Array, Blend


class PromptBatch(NamedTuple):
    """Tokenised prompts, padded on either side.

    Attributes:
        tokens_BS: int32 token ids, images expanded to their image tokens.
        mask_BS: bool, True for real tokens.
        patch_BS: int32, see `TreeBatch.patch_BS`.
        pixels_BIHWC: float32 preprocessed tiles of images.
        blend: see `TreeBatch.blend`.
        place_BI5: see `TreeBatch.place_BI5`.
        positions_BS3: positions of three axes for models that have them; None counts tokens.
    """

    tokens_BS: Array
    mask_BS: Array
    patch_BS: Array
    pixels_BIHWC: Array
    blend: Blend | None = None
    place_BI5: Array | None = None
    positions_BS3: Array | None = None


def choose(logits_BV: jax.Array, keys_B: jax.Array, sampling: Sampling) -> jax.Array:
    """Returns the next token [B] of each row, from float32 logits."""
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


class Decoding(NamedTuple):
    """Rows that are being answered.

    A row's cache has slots for its prompt and, behind them, a ring of as many slots as an answer
    may have tokens: every step writes the same slot of all rows, whenever their answers began.

    Attributes:
        clock: int32 scalar, decode steps so far.
        cache: the KV cache.
        seen_BS: bool, True for real tokens of the prompt.
        next_B: int32, the position of the first token of the answer.
        key_data_BN: raw PRNG keys.
        tag_B: int32, the caller's tag of each row.
        count_B: int32, tokens of the answer so far.
        token_B: int32, the last of them.
        done_B: whether the answer is complete; True also for rows without a prompt.
        out_BT: int32, the answer, then padding.
        met_BV: whether prompt or answer has a token; None unless repetition is penalised.
    """

    clock: jax.Array
    cache: Cache
    seen_BS: jax.Array
    next_B: jax.Array
    key_data_BN: jax.Array
    tag_B: jax.Array
    count_B: jax.Array
    token_B: jax.Array
    done_B: jax.Array
    out_BT: jax.Array
    met_BV: jax.Array | None = None


@dataclasses.dataclass(frozen=True)
class Sampler:
    """Samples answers: `prefill` starts rows, `admit` puts them among others, `decode` continues.

    Attributes:
        model: the module.
        sampling: greedy or random choice, longest answer.
        stop_ids: tokens that end an answer.
        pad_id: the token that fills a row after the stop token.
        cache: see `Llava.empty_cache`.
    """

    model: Llava
    sampling: Sampling
    stop_ids: tuple[int, ...]
    pad_id: int
    cache: CacheKind = "exact"

    def prefill(
        self,
        variables: Variables,
        batch: PromptBatch,
        keys_B: jax.Array,
        tag_B: jax.Array,
        num_slots: int,
    ) -> Decoding:
        """Samples the first token of every row; rows with a negative tag are empty and done.

        Args:
            variables: the model's variables; without "lora" the adapters are off.
            batch: prompts of mixed lengths and numbers of images.
            keys_B: typed PRNG keys; row i's answer depends on keys_B[i] and row i alone.
            tag_B: int32, a tag that is kept with each row.
            num_slots: slots of the cache, at least the width of the prompts.
        """
        rows, width = batch.tokens_BS.shape
        positions_BS = jnp.maximum(jnp.cumsum(batch.mask_BS, axis=1) - 1, 0)
        next_B = positions_BS[:, -1] + 1
        if batch.positions_BS3 is not None:
            positions_BS = batch.positions_BS3
            real_BS1 = batch.mask_BS[..., None]
            next_B = jnp.where(real_BS1, positions_BS, -1).max(axis=(1, 2)) + 1
        causal_SS = jnp.arange(width) <= jnp.arange(width)[:, None]
        # Padding attends to itself: kernels divide by the sum of a query's weights.
        mask_BSS = (batch.mask_BS[:, None] & causal_SS) | jnp.eye(width, dtype=bool)
        filled: Any = self.model.apply(
            variables,
            batch.tokens_BS,
            positions_BS,
            mask_BSS,
            batch.patch_BS,
            self.model.apply(variables, batch.pixels_BIHWC, batch.place_BI5, method="features"),
            self.model.empty_cache(rows, num_slots, self.cache),
            jnp.int32(0),
            blend=batch.blend,
            method="hidden",
        )
        hidden_BSD, cache = filled
        last_B = width - 1 - jnp.argmax(batch.mask_BS[:, ::-1], axis=1)
        hidden_B1D = jnp.take_along_axis(hidden_BSD, last_B[:, None, None], axis=1)
        logits_B1V: Any = self.model.apply(variables, hidden_B1D, method="head")
        num_new = self.sampling.max_new_tokens
        empty = Decoding(
            clock=jnp.int32(0),
            cache=cache,
            seen_BS=batch.mask_BS,
            next_B=next_B.astype(jnp.int32),
            key_data_BN=jax.random.key_data(keys_B),
            tag_B=tag_B,
            count_B=jnp.zeros(rows, jnp.int32),
            token_B=jnp.zeros(rows, jnp.int32),
            done_B=tag_B < 0,
            out_BT=jnp.full((rows, num_new), self.pad_id, jnp.int32),
        )
        if self.sampling.penalises:
            size = logits_B1V.shape[-1]
            met_BS = jnp.where(batch.mask_BS, batch.tokens_BS, size)  # padding is out of range
            met_BV = (
                jnp.zeros((rows, size), bool)
                .at[jnp.arange(rows)[:, None], met_BS]
                .set(True, mode="drop")
            )
            empty = empty._replace(met_BV=constrain(met_BV, "batch", "vocab"))
        return self._pick(empty, logits_B1V[:, 0])

    def _pick(self, state: Decoding, logits_BV: jax.Array) -> Decoding:
        """Samples one token for each unfinished row."""
        keys = jax.random.wrap_key_data(state.key_data_BN)
        keys = jax.vmap(jax.random.fold_in)(keys, state.count_B)
        met_BV = state.met_BV
        if met_BV is not None:
            penalty = self.sampling.repetition_penalty
            less_BV = jnp.where(logits_BV < 0, logits_BV * penalty, logits_BV / penalty)
            logits_BV = jnp.where(met_BV, less_BV, logits_BV)
        token_B = jnp.where(state.done_B, self.pad_id, choose(logits_BV, keys, self.sampling))
        if met_BV is not None:
            met_BV |= jnp.arange(logits_BV.shape[-1]) == token_B[:, None]
        num_new = self.sampling.max_new_tokens
        here_BT = jnp.arange(num_new) == jnp.where(state.done_B, -1, state.count_B)[:, None]
        count_B = state.count_B + ~state.done_B
        stops = jnp.array(self.stop_ids, jnp.int32)
        stopped_B = (token_B[:, None] == stops).any(-1) | (count_B == num_new)
        return state._replace(
            count_B=count_B,
            token_B=token_B,
            done_B=state.done_B | stopped_B,
            out_BT=jnp.where(here_BT, token_B[:, None], state.out_BT),
            met_BV=met_BV,
        )

    def admit(self, state: Decoding, fresh: Decoding, from_B: jax.Array, parts: int) -> Decoding:
        """Puts fresh rows in place of finished ones.

        Args:
            state: all rows.
            fresh: rows from `prefill`, with slots for the prompt only.
            from_B: for every row its replacement, counted within its part, or -1.
            parts: both sets of rows come in this many equal parts, one for each device, and no row
                changes its part.
        """
        from_NB = from_B.reshape(parts, -1)

        def taken(old: jax.Array, new: jax.Array, dim: int) -> jax.Array:
            def split(x: jax.Array) -> jax.Array:
                return x.reshape(*x.shape[:dim], parts, -1, *x.shape[dim + 1 :])

            def one(old: jax.Array, new: jax.Array, from_B: jax.Array) -> jax.Array:
                fresh = jnp.take(new, jnp.maximum(from_B, 0), axis=dim)
                given = (from_B >= 0).reshape(-1, *[1] * (old.ndim - dim - 1))
                return jnp.where(given, fresh, old)

            rows = jax.vmap(one, (dim, dim, 0), dim)(split(old), split(new), from_NB)
            return rows.reshape(old.shape)

        width, narrow = state.seen_BS.shape[1], fresh.seen_BS.shape[1]
        seen_BS = jnp.pad(fresh.seen_BS, ((0, 0), (0, width - narrow)))
        fresh = fresh._replace(seen_BS=seen_BS)

        def prompt(old: jax.Array, new: jax.Array) -> jax.Array:
            return old.at[:narrow].set(taken(old[:narrow], new, 2))

        cache = jax.tree.map(prompt, state.cache, fresh.cache)
        rest: Any = jax.tree.map(
            lambda old, new: taken(old, new, 0),
            state._replace(clock=None, cache=None),
            fresh._replace(clock=None, cache=None),
        )
        return rest._replace(clock=state.clock, cache=cache)

    def decode(self, variables: Variables, state: Decoding, enough: jax.Array) -> Decoding:
        """Samples tokens until `enough` more rows are done, or all of them."""
        rows, width = state.seen_BS.shape
        num_new = self.sampling.max_new_tokens
        prompt_BS = jnp.cumsum(state.seen_BS, axis=1) - 1  # positions in the prompt
        goal = jnp.minimum(state.done_B.sum() + enough, rows)

        def step(state: Decoding) -> Decoding:
            place = state.clock % num_new
            age_T = (place - jnp.arange(num_new)) % num_new
            mask_BU = jnp.concatenate([state.seen_BS, age_T < state.count_B[:, None]], axis=1)
            position_B1 = (state.next_B + state.count_B - 1)[:, None]
            logits_B1V, cache = self.model.apply(
                variables,
                state.token_B[:, None],
                position_B1,
                mask_BU[:, None],
                state.cache,
                width + place,
                jnp.concatenate([prompt_BS, position_B1 - age_T], axis=1),
                method="decode",
            )
            state = self._pick(state, logits_B1V[:, 0])
            return state._replace(clock=state.clock + 1, cache=cache)

        return jax.lax.while_loop(lambda s: s.done_B.sum() < goal, step, state)


@functools.partial(jax.jit, static_argnames=("model", "sampling", "stop_ids", "pad_id", "cache"))
def generate(
    model: Llava,
    variables: Variables,
    batch: PromptBatch,
    keys_B: jax.Array,
    sampling: Sampling,
    stop_ids: tuple[int, ...],
    pad_id: int,
    cache: CacheKind = "exact",
) -> jax.Array:
    """Answers a batch of prompts; the arguments are those of `Sampler` and `Sampler.prefill`.

    Returns:
        [B, max_new_tokens] int32: new tokens including the stop token, then `pad_id`.
    """
    rows, width = batch.tokens_BS.shape
    sampler = Sampler(model, sampling, stop_ids, pad_id, cache)
    tags = jnp.zeros(rows, jnp.int32)
    slots = width + sampling.max_new_tokens
    fresh = sampler.prefill(variables, batch, keys_B, tags, slots)
    return sampler.decode(variables, fresh, jnp.int32(rows)).out_BT


@functools.partial(jax.jit, static_argnames=("sampler", "parts"), donate_argnames="state")
def refill(
    sampler: Sampler,
    variables: Variables,
    state: Decoding,
    batch: PromptBatch,
    keys_B: jax.Array,
    tag_B: jax.Array,
    from_B: jax.Array,
    parts: int,
) -> Decoding:
    """Runs `Sampler.prefill`, then `Sampler.admit`; donates the old state."""
    width = batch.tokens_BS.shape[1]
    fresh = sampler.prefill(variables, batch, keys_B, tag_B, width)
    return sampler.admit(state, fresh, from_B, parts)


@functools.partial(jax.jit, static_argnames="sampler", donate_argnames="state")
def decode(sampler: Sampler, variables: Variables, state: Decoding, enough: jax.Array) -> Decoding:
    """Runs `Sampler.decode`; donates the old state."""
    return sampler.decode(variables, state, enough)


@functools.partial(jax.jit, static_argnames=("sampler", "num_rows", "width"))
def empty_state(sampler: Sampler, num_rows: int, width: int) -> Decoding:
    """Returns an empty decode state.

    Args:
        sampler: the sampler that will fill it.
        num_rows: B.
        width: largest width of a prompt, tokens.
    """

    def full(value: Any, *shape: int, name: str = "length") -> jax.Array:
        return constrain(jnp.full((num_rows, *shape), value), "batch", *[name] * len(shape))

    num_new = sampler.sampling.max_new_tokens
    key_data_N = jax.random.key_data(jax.random.key(0))
    return Decoding(
        clock=jnp.int32(0),
        cache=sampler.model.empty_cache(num_rows, width + num_new, sampler.cache),
        seen_BS=full(False, width),
        next_B=full(jnp.int32(0)),
        key_data_BN=full(key_data_N, len(key_data_N)),
        tag_B=full(jnp.int32(-1)),
        count_B=full(jnp.int32(0)),
        token_B=full(jnp.int32(0)),
        done_B=full(True),
        out_BT=full(jnp.int32(sampler.pad_id), num_new),
        met_BV=full(False, sampler.model.config.text.vocab_size, name="vocab")
        if sampler.sampling.penalises
        else None,
    )
