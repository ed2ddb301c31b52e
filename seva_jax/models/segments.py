"""Attention without order inside the segments of a row, as of towers that pack several images.

What lives here: full attention between all tokens of a segment, and attention inside windows, which
are short segments. What does not: attention with a causal mask (`attention.py`). A segment's tokens
follow one another in the row; 0 is the segment of padding, which attends to itself.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from seva_jax.models.attention import BLOCK, LARGEST, MASKED, on_mesh, splash_blocks
from seva_jax.sharding import activation_spec

QUERIES = 512  # of a block


def attend_segments(
    query_BSHQ: jax.Array,
    key_BSHQ: jax.Array,
    value_BSHQ: jax.Array,
    segment_BS: jax.Array,
    interpret: bool = False,
) -> jax.Array:
    """Computes attention of every token to all tokens of its segment.

    Args:
        query_BSHQ: queries.
        key_BSHQ: keys.
        value_BSHQ: values.
        segment_BS: int32, the segment of each token.
        interpret: takes the TPU's kernel, interpreted in Python, on any platform; for tests.

    Returns:
        [B, S, H, Q] in the dtype of the queries; the softmax is in float32.
    """
    arguments = query_BSHQ, key_BSHQ, value_BSHQ, segment_BS
    if interpret:
        return _splash(*arguments, interpret=True)
    return jax.lax.platform_dependent(*arguments, tpu=_splash_on_mesh, default=_blocks)


def attend_windows(
    query_BSHQ: jax.Array,
    key_BSHQ: jax.Array,
    value_BSHQ: jax.Array,
    segment_BS: jax.Array,
    longest: int,
) -> jax.Array:
    """Computes `attend_segments` where no segment but padding has more than `longest` tokens.

    A row is cut into blocks of that many tokens, so that a token's segment lies in its own block
    and its two neighbours. The time grows with the length of the row, not with its square.
    Of padding, a token attends to that of these three blocks.
    """
    rows, length, heads, width = query_BSHQ.shape
    pad = -length % longest
    num = (length + pad) // longest

    def cut(x: jax.Array) -> jax.Array:
        """Cuts [B, S, ...] into blocks [B, N, longest, ...]."""
        x = jnp.pad(x, [(0, 0), (0, pad), *[(0, 0)] * (x.ndim - 2)])
        return x.reshape(rows, num, longest, *x.shape[2:])

    def near(x: jax.Array, fill: int = 0) -> jax.Array:
        """Returns each block with its neighbours, [B, N, 3 * longest, ...]."""
        padded = jnp.pad(
            x, [(0, 0), (1, 1), *[(0, 0)] * (x.ndim - 2)], constant_values=jnp.array(fill, x.dtype)
        )
        return jnp.concatenate([padded[:, :-2], x, padded[:, 2:]], axis=2)

    segment = cut(segment_BS)
    mask = segment[..., :, None] == near(segment, -1)[..., None, :]
    score = jnp.einsum(
        "bnshq,bnuhq->bnhsu", cut(query_BSHQ), near(cut(key_BSHQ)),
        preferred_element_type=jnp.float32,
    )  # fmt: skip
    weight = jax.nn.softmax(jnp.where(mask[:, :, None], score * width**-0.5, MASKED), axis=-1)
    out = jnp.einsum("bnhsu,bnuhq->bnshq", weight.astype(value_BSHQ.dtype), near(cut(value_BSHQ)))
    return out.reshape(rows, length + pad, heads, width)[:, :length].astype(query_BSHQ.dtype)


def _blocks(
    query_BSHQ: jax.Array, key_BSHQ: jax.Array, value_BSHQ: jax.Array, segment_BS: jax.Array
) -> jax.Array:
    """Computes `attend_segments` in blocks of queries, whose scores are never stored together."""
    length, width = query_BSHQ.shape[1], query_BSHQ.shape[3]

    @jax.checkpoint
    def block(query: jax.Array, segment: jax.Array) -> jax.Array:
        score = jnp.einsum("bshq,buhq->bhsu", query, key_BSHQ, preferred_element_type=jnp.float32)
        mask = segment[:, None, :, None] == segment_BS[:, None, None]
        weight = jax.nn.softmax(jnp.where(mask, score * width**-0.5, MASKED), axis=-1)
        out = jnp.einsum("bhsu,buhq->bshq", weight.astype(value_BSHQ.dtype), value_BSHQ)
        return out.astype(query.dtype)

    starts = range(0, length, QUERIES)
    parts = [block(query_BSHQ[:, i : i + QUERIES], segment_BS[:, i : i + QUERIES]) for i in starts]
    return jnp.concatenate(parts, axis=1)


def _splash_on_mesh(
    query_BSHQ: jax.Array, key_BSHQ: jax.Array, value_BSHQ: jax.Array, segment_BS: jax.Array
) -> jax.Array:
    """Runs `_splash` on every device for the rows and heads of that device."""
    rows = activation_spec("batch", "length")
    return on_mesh(_splash, rows, query_BSHQ, key_BSHQ, value_BSHQ, segment_BS)


def _splash(
    query_BSHQ: jax.Array,
    key_BSHQ: jax.Array,
    value_BSHQ: jax.Array,
    segment_BS: jax.Array,
    interpret: bool = False,
) -> jax.Array:
    """Computes `attend_segments` on TPUs, or interprets the kernel."""
    from jax.experimental.pallas.ops.tpu.splash_attention import (
        splash_attention_kernel,
        splash_attention_mask,
    )

    length, heads, width = query_BSHQ.shape[1:]
    # Small blocks take several times as long, more than the padding does. The kernels take heads of
    # a multiple of the lanes of a TPU's vector unit.
    pad, wider = -length % (LARGEST if length > LARGEST else BLOCK), -width % BLOCK

    def padded(x: jax.Array) -> jax.Array:
        return jnp.pad(x, ((0, 0), (0, pad), (0, 0), (0, wider))).swapaxes(1, 2)

    whole = length + pad
    mask = splash_attention_mask.MultiHeadMask(
        [splash_attention_mask.FullMask((whole, whole)) for _ in range(heads)]
    )
    kernel: Any = splash_attention_kernel.make_splash_mha_single_device(
        mask, block_sizes=splash_blocks(whole), interpret=interpret
    )
    segment_BS = jnp.pad(segment_BS, ((0, 0), (0, pad)))
    ids = splash_attention_kernel.SegmentIds(segment_BS, segment_BS)
    query = padded(query_BSHQ * width**-0.5).astype(query_BSHQ.dtype)
    out = jax.vmap(kernel)(query, padded(key_BSHQ), padded(value_BSHQ), segment_ids=ids)
    return out.swapaxes(1, 2)[:, :length, :, :width]
