"""Attention: one function, `attend`, and the ways it computes the same thing.

`plain` is ordinary XLA over the whole square of scores. `blocks` is XLA over blocks of queries,
each with the keys up to its end: no scores of the future, and none kept for the backward pass.
`splash` is the Pallas kernel that JAX ships for TPUs, which also skips the blocks that other trees
and other branches leave empty. `cudnn` is NVIDIA's fused kernel with the mask as a bias.

Shape suffixes: B rows, S queries, U keys, H query heads, G key and value heads, Q head width.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel

from seva_jax.sharding import activation_spec

Attention = Literal["auto", "plain", "cudnn"]
BLOCK = 128  # queries of a block; lanes of a TPU's vector unit
_MASKED = -1e30  # a score that no sum of exponentials notices
_LARGEST = 512  # side of the blocks a kernel works on, at most


def attend(
    query_BSHQ: jax.Array,
    key_BUGQ: jax.Array,
    value_BUGQ: jax.Array,
    mask_BSU: jax.Array | None,
    kind: Attention = "auto",
) -> jax.Array:
    """Scaled dot-product attention; H query heads share G key/value heads.

    Args:
        query_BSHQ: queries, S positions, H heads of width Q.
        key_BUGQ: keys, U positions, G heads (H divisible by G).
        value_BUGQ: values.
        mask_BSU: True where a query may see a key; None for all. A query that may see nothing
            returns something finite, which callers ignore. Where S = U > 1, nobody may see a
            later position.
        kind: "auto" takes, where whole rows attend to themselves, `splash` if the program is
            compiled for a TPU and heads are a multiple of 128 wide, else `blocks`; "cudnn" takes
            `cudnn` there; "plain" takes none of them.

    Returns:
        [B, S, H, Q], in the queries' dtype; softmax in float32.
    """
    whole_rows = query_BSHQ.shape[1] == key_BUGQ.shape[1] > 1
    if kind == "plain" or mask_BSU is None or not whole_rows:
        return plain(query_BSHQ, key_BUGQ, value_BUGQ, mask_BSU)
    if kind == "cudnn":
        return _on_mesh(cudnn, query_BSHQ, key_BUGQ, value_BUGQ, mask_BSU)
    if query_BSHQ.shape[-1] % BLOCK:
        return blocks(query_BSHQ, key_BUGQ, value_BUGQ, mask_BSU)
    return jax.lax.platform_dependent(
        query_BSHQ, key_BUGQ, value_BUGQ, mask_BSU,
        tpu=functools.partial(_on_mesh, splash), default=blocks,
    )  # fmt: skip


def attend_cached(
    query_B1HQ: jax.Array,
    key_BGUQ: jax.Array,
    value_BGUQ: jax.Array,
    key_scale_BGU: jax.Array | None,
    value_scale_BGU: jax.Array | None,
    mask_B1U: jax.Array,
) -> jax.Array:
    """Attention of one query a row to a cache, whose heads come before positions.

    Args:
        query_B1HQ: queries.
        key_BGUQ: keys.
        value_BGUQ: values.
        key_scale_BGU: factors of int8 keys; None for others.
        value_scale_BGU: factors of int8 values.
        mask_B1U: True where a query may see a key.

    Returns:
        [B, 1, H, Q]; softmax in float32.
    """
    rows, _, num_heads, width = query_B1HQ.shape
    num_groups = key_BGUQ.shape[1]
    query = query_B1HQ.reshape(rows, num_groups, num_heads // num_groups, width)
    dtype = query.dtype
    score = jnp.einsum(
        "bghq,bguq->bghu", query, key_BGUQ.astype(dtype), preferred_element_type=jnp.float32
    )
    if key_scale_BGU is not None:
        score = score * key_scale_BGU[:, :, None]
    score = jnp.where(mask_B1U[:, None], score * width**-0.5, _MASKED)
    weight = jax.nn.softmax(score, axis=-1)
    if value_scale_BGU is not None:
        weight = weight * value_scale_BGU[:, :, None]
    out = jnp.einsum("bghu,bguq->bghq", weight.astype(dtype), value_BGUQ.astype(dtype))
    return out.reshape(rows, 1, num_heads, width)


def plain(
    query_BSHQ: jax.Array,
    key_BUGQ: jax.Array,
    value_BUGQ: jax.Array,
    mask_BSU: jax.Array | None,
) -> jax.Array:
    """See `attend`."""
    mask = None if mask_BSU is None else mask_BSU[:, None]
    return jax.nn.dot_product_attention(
        query_BSHQ, key_BUGQ, value_BUGQ, mask=mask, implementation="xla"
    )


def blocks(
    query_BSHQ: jax.Array, key_BSGQ: jax.Array, value_BSGQ: jax.Array, mask_BSS: jax.Array
) -> jax.Array:
    """See `attend`; rows attend to themselves, and nobody to a later position."""
    length, num_heads, width = query_BSHQ.shape[1:]
    num_groups = key_BSGQ.shape[2]
    key_BGSQ, value_BGSQ = key_BSGQ.swapaxes(1, 2), value_BSGQ.swapaxes(1, 2)
    query_BGHSQ = query_BSHQ.swapaxes(1, 2).reshape(
        -1, num_groups, num_heads // num_groups, length, width
    )

    @jax.checkpoint
    def block(query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array) -> jax.Array:
        score = jnp.einsum("bghsq,bguq->bghsu", query, key, preferred_element_type=jnp.float32)
        score = jnp.where(mask[:, None, None], score * width**-0.5, _MASKED)
        weight = jnp.exp(score - jax.lax.stop_gradient(score.max(-1, keepdims=True)))
        total = weight.sum(-1, keepdims=True)
        out = jnp.einsum("bghsu,bguq->bghsq", weight.astype(value.dtype), value)
        return (out / total).astype(query.dtype)

    out = [
        block(
            query_BGHSQ[..., start:end, :], key_BGSQ[:, :, :end], value_BGSQ[:, :, :end],
            mask_BSS[:, start:end, :end],
        )
        for start in range(0, length, BLOCK)
        for end in [min(start + BLOCK, length)]
    ]  # fmt: skip
    joined = jnp.concatenate(out, axis=3)
    return joined.reshape(-1, num_heads, length, width).swapaxes(1, 2)


def cudnn(
    query_BSHQ: jax.Array, key_BSGQ: jax.Array, value_BSGQ: jax.Array, mask_BSS: jax.Array
) -> jax.Array:
    """See `attend`; rows attend to themselves. For GPUs of NVIDIA, in bfloat16 or float16."""
    length = query_BSHQ.shape[1]
    pad = length % 2  # cuDNN's backward pass wants an even length
    query, key, value = (
        jnp.pad(x, ((0, 0), (0, pad), (0, 0), (0, 0))) for x in (query_BSHQ, key_BSGQ, value_BSGQ)
    )
    mask = jnp.pad(mask_BSS, ((0, 0), (0, pad), (0, pad)))[:, None]
    out = jax.nn.dot_product_attention(query, key, value, mask=mask, implementation="cudnn")
    return out[:, :length]


def _on_mesh(
    kernel: Callable[..., jax.Array],
    query_BSHQ: jax.Array,
    key_BUGQ: jax.Array,
    value_BUGQ: jax.Array,
    mask_BSU: jax.Array,
) -> jax.Array:
    """A kernel on every device for its own rows and heads."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return kernel(query_BSHQ, key_BUGQ, value_BUGQ, mask_BSU)
    heads = activation_spec("batch", "length", "heads", "head_dim")
    rows = activation_spec("batch", "length", "length")
    return jax.shard_map(
        kernel, in_specs=(heads, heads, heads, rows), out_specs=heads, check_vma=False
    )(query_BSHQ, key_BUGQ, value_BUGQ, mask_BSU)


def splash(
    query_BSHQ: jax.Array,
    key_BSGQ: jax.Array,
    value_BSGQ: jax.Array,
    mask_BSS: jax.Array,
    interpret: bool = False,
) -> jax.Array:
    """See `attend`; rows attend to themselves.

    Args:
        query_BSHQ: queries.
        key_BSGQ: keys.
        value_BSGQ: values.
        mask_BSS: every query sees at least one key.
        interpret: run the kernel's Python on any platform, for tests.
    """
    length, num_heads, width = query_BSHQ.shape[1:]
    group = num_heads // key_BSGQ.shape[2]
    pad = -length % BLOCK
    if pad:
        # Padding sees itself: a query without a key would divide by zero.
        mask_BSS = jnp.pad(mask_BSS, ((0, 0), (0, pad), (0, pad)))
        mask_BSS |= jnp.diag(jnp.arange(length + pad) >= length)
    sizes = _block_sizes(length + pad)

    def rows(x: jax.Array, *dims: int) -> jax.Array:
        """[B, S, heads, Q] -> [B, *dims, S, Q]."""
        x = jnp.pad(x, ((0, 0), (0, pad), (0, 0), (0, 0))).swapaxes(1, 2)
        return x.reshape(x.shape[0], *dims, length + pad, width)

    def one_row(query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array) -> jax.Array:
        kernel = splash_attention_kernel.make_splash_mqa(
            jnp.broadcast_to(mask, (group, *mask.shape)), block_sizes=sizes,
            head_shards=1, q_seq_shards=1, interpret=interpret,
        )  # fmt: skip
        # Under jit this flag is traced, and calling the kernel branches on it to name a scope.
        kernel.fwd_mask_info = kernel.fwd_mask_info._replace(is_dynamic_mask=None)
        out: Any = jax.vmap(kernel)(query, key, value)
        return out

    num_groups = key_BSGQ.shape[2]
    query = rows(query_BSHQ * (width**-0.5), num_groups, group).astype(query_BSHQ.dtype)
    out = jax.vmap(one_row)(
        query, rows(key_BSGQ, num_groups), rows(value_BSGQ, num_groups), mask_BSS
    )
    return out.reshape(-1, num_heads, length + pad, width).swapaxes(1, 2)[:, :length]


@functools.cache
def _block_sizes(length: int) -> splash_attention_kernel.BlockSizes:
    """The largest blocks, up to 512, that divide the length."""
    side = next(n for n in range(_LARGEST, 0, -BLOCK) if length % n == 0)
    return splash_attention_kernel.BlockSizes(
        block_q=side, block_kv=side, block_kv_compute=side,
        block_q_dkv=side, block_kv_dkv=side, block_kv_dkv_compute=side,
        block_q_dq=side, block_kv_dq=side,
    )  # fmt: skip
