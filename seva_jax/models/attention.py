"""Attention: `attend`, several kernels that compute it, and `attend_cached` for decoding.

`plain` is ordinary XLA over the whole square of scores. `blocks` is XLA over blocks of queries,
each with the keys up to the end of the block; it keeps no scores for the backward pass. `splash` is
the Pallas kernel that JAX ships for TPUs, which also skips blocks that the mask leaves empty, such
as those between different trees or branches. `cudnn` is NVIDIA's fused kernel, with the mask as a
bias.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import jax
import jax.numpy as jnp

from seva_jax.sharding import activation_spec

if TYPE_CHECKING:
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel

Attention = Literal["auto", "plain", "cudnn"]
BLOCK = 128  # queries in a block; also the lanes of a TPU's vector unit
MASKED = -1e30  # score of a masked key: its exponential is 0 next to that of any other
_LARGEST = 512  # largest side of the blocks that a kernel works on


def attend(
    query_BSHQ: jax.Array,
    key_BUGQ: jax.Array,
    value_BUGQ: jax.Array,
    mask_BSU: jax.Array | None,
    kind: Attention = "auto",
) -> jax.Array:
    """Computes scaled dot-product attention; H query heads share G key and value heads.

    Args:
        query_BSHQ: queries.
        key_BUGQ: keys; H is divisible by G.
        value_BUGQ: values.
        mask_BSU: True where a query attends to a key; None for everywhere. Every query attends to
            at least one key, and where S = U > 1 to no later position.
        kind: the kernel where whole rows attend to themselves, S = U > 1: "auto" takes `splash` if
            the program is compiled for a TPU and the head width is a multiple of 128, otherwise
            `blocks`; "cudnn" takes `cudnn`. "plain" takes `plain`, as do all other shapes.

    Returns:
        [B, S, H, Q] in the dtype of the queries; the softmax is in float32.
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
    key_UGBQ: jax.Array,
    value_UGBQ: jax.Array,
    key_scale_UGB: jax.Array | None,
    value_scale_UGB: jax.Array | None,
    mask_B1U: jax.Array,
) -> jax.Array:
    """Computes attention of one query per row to the cache of a layer, see `llama.LayerCache`.

    Sums of elementwise products, which XLA fuses with the conversion to one pass over the cache,
    in any dtype. For matrix products a CPU would first write the cache in another order, and a TPU
    would do so before and after the loop. The paged and ragged kernels that come with JAX take a
    length for each row, where here free slots lie between a prompt and the ring of its answer.

    Args:
        query_B1HQ: queries.
        key_UGBQ: keys, in any float dtype or int8.
        value_UGBQ: values, likewise.
        key_scale_UGB: what int8 keys are to be multiplied by; None for float keys.
        value_scale_UGB: what int8 values are to be multiplied by; None for float values.
        mask_B1U: True where a query attends to a key.

    Returns:
        [B, 1, H, Q] in the dtype of the queries; the softmax is in float32.
    """
    rows, _, num_heads, width = query_B1HQ.shape
    num_groups = key_UGBQ.shape[1]
    query = query_B1HQ.reshape(rows, num_groups, num_heads // num_groups, width)
    query_HGBQ = query.transpose(2, 1, 0, 3).astype(jnp.float32)
    # In the other order, XLA converts the whole cache before it reads it.
    key, value = (x.astype(jnp.float32)[:, None] for x in (key_UGBQ, value_UGBQ))
    score_UHGB = (query_HGBQ * key).sum(-1)
    if key_scale_UGB is not None:
        score_UHGB = score_UHGB * key_scale_UGB[:, None]
    mask_UB = mask_B1U[:, 0].T
    score_UHGB = jnp.where(mask_UB[:, None, None], score_UHGB * width**-0.5, MASKED)
    weight_UHGB = jax.nn.softmax(score_UHGB, axis=0)
    if value_scale_UGB is not None:
        weight_UHGB = weight_UHGB * value_scale_UGB[:, None]
    out_HGBQ = (weight_UHGB[..., None] * value).sum(0).astype(query.dtype)
    return out_HGBQ.transpose(2, 1, 0, 3).reshape(rows, 1, num_heads, width)


def plain(
    query_BSHQ: jax.Array,
    key_BUGQ: jax.Array,
    value_BUGQ: jax.Array,
    mask_BSU: jax.Array | None,
) -> jax.Array:
    """Computes `attend` over the whole square of scores; no restrictions."""
    mask = None if mask_BSU is None else mask_BSU[:, None]
    return jax.nn.dot_product_attention(
        query_BSHQ, key_BUGQ, value_BUGQ, mask=mask, implementation="xla"
    )


def blocks(
    query_BSHQ: jax.Array, key_BSGQ: jax.Array, value_BSGQ: jax.Array, mask_BSS: jax.Array
) -> jax.Array:
    """Computes `attend` in blocks of queries, where S = U and the mask is causal."""
    length, num_heads, width = query_BSHQ.shape[1:]
    num_groups = key_BSGQ.shape[2]
    key_BGSQ, value_BGSQ = key_BSGQ.swapaxes(1, 2), value_BSGQ.swapaxes(1, 2)
    query_BGHSQ = query_BSHQ.swapaxes(1, 2).reshape(
        -1, num_groups, num_heads // num_groups, length, width
    )

    @jax.checkpoint
    def block(query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array) -> jax.Array:
        score = jnp.einsum("bghsq,bguq->bghsu", query, key, preferred_element_type=jnp.float32)
        score = jnp.where(mask[:, None, None], score * width**-0.5, MASKED)
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
    """Computes `attend` on NVIDIA GPUs, where S = U, in bfloat16 or float16."""
    length = query_BSHQ.shape[1]
    pad = length % 2  # cuDNN's backward pass needs an even length
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
    """Runs a kernel on every device for the rows and heads of that device."""
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
    """Computes `attend` on TPUs, where S = U.

    Args:
        query_BSHQ: see `attend`.
        key_BSGQ: see `attend`.
        value_BSGQ: see `attend`.
        mask_BSS: see `attend`.
        interpret: interpret the kernel in Python on any platform, for tests.
    """
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel

    length, num_heads, width = query_BSHQ.shape[1:]
    group = num_heads // key_BSGQ.shape[2]
    pad = -length % BLOCK
    if pad:
        # Padding attends to itself: a query without keys would divide by zero.
        mask_BSS = jnp.pad(mask_BSS, ((0, 0), (0, pad), (0, pad)))
        mask_BSS |= jnp.diag(jnp.arange(length + pad) >= length)
    sizes = _block_sizes(length + pad)

    def rows(x: jax.Array, *dims: int) -> jax.Array:
        """Reshapes [B, S, heads, Q] to [B, *dims, S, Q], with S padded."""
        x = jnp.pad(x, ((0, 0), (0, pad), (0, 0), (0, 0))).swapaxes(1, 2)
        return x.reshape(x.shape[0], *dims, length + pad, width)

    def one_row(query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array) -> jax.Array:
        kernel = splash_attention_kernel.make_splash_mqa(
            jnp.broadcast_to(mask, (group, *mask.shape)), block_sizes=sizes,
            head_shards=1, q_seq_shards=1, interpret=interpret,
        )  # fmt: skip
        # Under jit this flag is traced, but calling the kernel branches on it to name a scope.
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
    """Returns the largest block sizes, up to 512, that divide the length."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel

    side = next(n for n in range(_LARGEST, 0, -BLOCK) if length % n == 0)
    return splash_attention_kernel.BlockSizes(
        block_q=side, block_kv=side, block_kv_compute=side,
        block_q_dkv=side, block_kv_dkv=side, block_kv_dkv_compute=side,
        block_q_dq=side, block_kv_dq=side,
    )  # fmt: skip
