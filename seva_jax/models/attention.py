"""Attention: `attend`, several kernels that compute it, and `attend_cached` for decoding.

`plain` is ordinary XLA over the whole square of scores. `blocks` is XLA over blocks of queries,
each with the keys up to the end of the block; it keeps no scores for the backward pass. `splash` is
the Pallas kernel that JAX ships for TPUs, which also skips blocks that the mask leaves empty, such
as those between different trees or branches. `cudnn` is NVIDIA's fused kernel, with the mask as a
bias, and `tokamax` that of the optional library of this name, which takes the mask as it is.
`attend` chooses among them by platform, card, dtype and head width; `attention_problem` says why a
device cannot compute a kernel that a config names.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any, Literal

import jax
import jax.numpy as jnp

from seva_jax.sharding import activation_spec

if TYPE_CHECKING:
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel

Attention = Literal["auto", "plain", "blocks", "cudnn", "tokamax"]
BLOCK = 128  # queries in a block; also the lanes of a TPU's vector unit
MASKED = -1e30  # score of a masked key: its exponential is 0 next to that of any other
LARGEST = 512  # largest side of the blocks that a kernel works on
_TOKAMAX = (0, 0, 17)  # the oldest version whose kernels this module has been tried with
# On Blackwell, tokamax splits the keys if there are few blocks of queries, about half as many as a
# card has multiprocessors, and then refuses a mask.
_FEWEST_BLOCKS = 128


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
        kind: the kernel where whole rows attend to themselves, S = U > 1. "auto" takes `splash` if
            the program is compiled for a TPU and the head width is a multiple of 128, `fused` if it
            is compiled for NVIDIA GPUs and cuDNN takes dtype and head width, and otherwise
            `blocks`. The others name a kernel. All other shapes take `plain`.

    Returns:
        [B, S, H, Q] in the dtype of the queries; the softmax is in float32.
    """
    whole_rows = query_BSHQ.shape[1] == key_BUGQ.shape[1] > 1
    if kind == "plain" or mask_BSU is None or not whole_rows:
        return plain(query_BSHQ, key_BUGQ, value_BUGQ, mask_BSU)
    arguments = query_BSHQ, key_BUGQ, value_BUGQ, mask_BSU
    if kind == "cudnn":
        return _masked_on_mesh(cudnn, *arguments)
    if kind == "tokamax":
        return _masked_on_mesh(tokamax, *arguments)
    kernels: dict[str, Callable[..., jax.Array]] = {}
    width = query_BSHQ.shape[-1]
    if kind == "auto" and width % BLOCK == 0:
        kernels["tpu"] = functools.partial(_masked_on_mesh, splash)
    if kind == "auto" and _cudnn_takes(query_BSHQ.dtype, width, compute_capability()):
        kernels["cuda"] = functools.partial(_masked_on_mesh, fused)
    if not kernels:
        return blocks(*arguments)
    return jax.lax.platform_dependent(*arguments, **kernels, default=blocks)


def attention_problem(kind: Attention, device: Any, width: int) -> str:
    """Returns why a device cannot compute a kind of attention in bfloat16; "" if it can.

    Args:
        kind: see `attend`.
        device: one of the devices.
        width: the head width.
    """
    if kind not in ("cudnn", "tokamax"):
        return ""
    if device.platform != "gpu":
        return f"{kind} is for NVIDIA GPUs; these devices are {device.platform}s"
    capability = compute_capability()
    if not _cudnn_takes(jnp.dtype(jnp.bfloat16), width, capability):
        return f"{kind} does not take heads of width {width} on {_card(device, capability)}"
    if kind == "tokamax" and not has_tokamax():
        oldest = ".".join(map(str, _TOKAMAX))
        return (
            f"tokamax needs the package tokamax, {oldest} or later, which Python 3.12 and later "
            "get by pip install 'seva_jax[gpu]'"
        )
    if kind == "tokamax" and not _tokamax_takes(width, capability):
        return (
            f"tokamax needs a GPU of compute capability 9 or 10 and heads of width 64 or 128; "
            f"this is {_card(device, capability)} and the width is {width}"
        )
    return ""


def _card(device: Any, capability: tuple[int, int] | None) -> str:
    known = "unknown" if capability is None else ".".join(map(str, capability))
    return f"{device.device_kind} (compute capability {known})"


@functools.cache
def compute_capability() -> tuple[int, int] | None:
    """Returns the lowest compute capability of the NVIDIA GPUs of all processes; None without."""
    devices: list[Any] = jax.devices()
    if devices[0].platform != "gpu" or "cuda" not in devices[0].client.platform_version:
        return None
    known = [d.compute_capability.split(".") for d in devices if hasattr(d, "compute_capability")]
    return min(((int(major), int(minor)) for major, minor in known), default=None)


def _cudnn_takes(dtype: jnp.dtype, width: int, capability: tuple[int, int] | None) -> bool:
    """Returns whether `cudnn` computes attention of a dtype and head width on a card.

    Source: `check_is_flash_attention` in jax/_src/cudnn/fused_attention_stablehlo.py.
    """
    if capability is None or capability < (8, 0) or dtype not in (jnp.bfloat16, jnp.float16):
        return False
    return width % 8 == 0 and width <= (256 if capability >= (9, 0) else 128)


def _tokamax_takes(width: int, capability: tuple[int, int] | None) -> bool:
    """Returns whether `tokamax` computes attention of a head width on a card, in both directions.

    Its kernels for the backward pass are for Hopper and Blackwell of data centres.
    """
    return capability is not None and capability[0] in (9, 10) and width in (64, 128)


@functools.cache
def has_tokamax() -> bool:
    """Returns whether a version of tokamax with the kernels of `tokamax` is installed."""
    try:
        numbers = re.findall(r"\d+", version("tokamax"))
    except PackageNotFoundError:
        return False
    return tuple(map(int, numbers[:3])) >= _TOKAMAX


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
    query = query_B1HQ.reshape(rows, num_groups, -1, width).transpose(2, 1, 0, 3)
    query = query.astype(jnp.float32)
    several = num_heads > num_groups
    if not several:  # with a dim of size 1, the program for CPUs takes twenty times as long
        query = query[0]

    def shared(cached: jax.Array) -> jax.Array:
        """Adds a dim for the query heads of a group, if there are several, after the positions."""
        return cached[:, None] if several else cached

    # In the other order, XLA converts the whole cache before it reads it.
    key, value = (shared(x.astype(jnp.float32)) for x in (key_UGBQ, value_UGBQ))
    score = (query * key).sum(-1)  # [U, H, G, B] or [U, G, B]
    if key_scale_UGB is not None:
        score = score * shared(key_scale_UGB)
    mask = shared(mask_B1U[:, 0].T[:, None])
    weight = jax.nn.softmax(jnp.where(mask, score * width**-0.5, MASKED), axis=0)
    if value_scale_UGB is not None:
        weight = weight * shared(value_scale_UGB)
    out = (weight[..., None] * value).sum(0).astype(query_B1HQ.dtype)
    out_HGBQ = out.reshape(-1, num_groups, rows, width)
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


def fused(
    query_BSHQ: jax.Array, key_BSGQ: jax.Array, value_BSGQ: jax.Array, mask_BSS: jax.Array
) -> jax.Array:
    """Computes `attend` on NVIDIA GPUs, where S = U, by the fastest kernel for these shapes.

    On an H100 `tokamax` takes two thirds of the time of `cudnn`, see `bench/RESULTS.md`.
    """
    rows, length, num_heads, width = query_BSHQ.shape
    num_blocks = rows * num_heads * -(-length // BLOCK)
    fills_card = num_blocks >= _FEWEST_BLOCKS
    if fills_card and has_tokamax() and _tokamax_takes(width, compute_capability()):
        return tokamax(query_BSHQ, key_BSGQ, value_BSGQ, mask_BSS)
    return cudnn(query_BSHQ, key_BSGQ, value_BSGQ, mask_BSS)


def cudnn(
    query_BSHQ: jax.Array, key_BSGQ: jax.Array, value_BSGQ: jax.Array, mask_BSS: jax.Array
) -> jax.Array:
    """Computes `attend` on NVIDIA GPUs, where S = U, in bfloat16 or float16."""
    length = query_BSHQ.shape[1]
    pad = length % 2  # cuDNN's backward pass needs an even length
    query, key, value = (_pad_length(x, pad) for x in (query_BSHQ, key_BSGQ, value_BSGQ))
    mask = _pad_mask(mask_BSS, pad)[:, None]
    out = jax.nn.dot_product_attention(query, key, value, mask=mask, implementation="cudnn")
    return out[:, :length]


def tokamax(
    query_BSHQ: jax.Array, key_BSGQ: jax.Array, value_BSGQ: jax.Array, mask_BSS: jax.Array
) -> jax.Array:
    """Computes `attend` on NVIDIA GPUs since Hopper, where S = U, in bfloat16 or float16."""
    from tokamax import dot_product_attention  # pyright: ignore[reportMissingImports]

    length = query_BSHQ.shape[1]
    pad = -length % BLOCK  # its kernels take no other lengths with a mask
    query, key, value = (_pad_length(x, pad) for x in (query_BSHQ, key_BSGQ, value_BSGQ))
    mask = _pad_mask(mask_BSS, pad)[:, None]
    out = dot_product_attention(query, key, value, mask=mask, implementation="mosaic")
    return out[:, :length]


def _pad_length(x_BSGQ: jax.Array, pad: int) -> jax.Array:
    """Adds `pad` positions of zeros to every row."""
    return jnp.pad(x_BSGQ, ((0, 0), (0, pad), (0, 0), (0, 0)))


def _pad_mask(mask_BSS: jax.Array, pad: int) -> jax.Array:
    """Adds `pad` positions that attend to themselves: without keys they would divide by zero."""
    if not pad:
        return mask_BSS
    length = mask_BSS.shape[1]
    mask_BSS = jnp.pad(mask_BSS, ((0, 0), (0, pad), (0, pad)))
    return mask_BSS | jnp.diag(jnp.arange(length + pad) >= length)


def _masked_on_mesh(kernel: Callable[..., jax.Array], *arguments: jax.Array) -> jax.Array:
    return on_mesh(kernel, activation_spec("batch", "length", "length"), *arguments)


def on_mesh(
    kernel: Callable[..., jax.Array],
    rows: jax.sharding.PartitionSpec,
    query_BSHQ: jax.Array,
    key_BUGQ: jax.Array,
    value_BUGQ: jax.Array,
    seen: jax.Array,
) -> jax.Array:
    """Runs a kernel on every device for the rows and heads of that device.

    Args:
        kernel: takes the other arguments but `rows`.
        rows: how `seen` is split.
        query_BSHQ: queries.
        key_BUGQ: keys.
        value_BUGQ: values.
        seen: what says which keys a query attends to.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return kernel(query_BSHQ, key_BUGQ, value_BUGQ, seen)
    heads = activation_spec("batch", "length", "heads", "head_dim")
    return jax.shard_map(
        kernel, in_specs=(heads, heads, heads, rows), out_specs=heads, check_vma=False
    )(query_BSHQ, key_BUGQ, value_BUGQ, seen)


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
    mask_BSS = _pad_mask(mask_BSS, pad)
    sizes = splash_blocks(length + pad)

    def rows(x: jax.Array, *dims: int) -> jax.Array:
        """Reshapes [B, S, heads, Q] to [B, *dims, S, Q], with S padded."""
        x = _pad_length(x, pad).swapaxes(1, 2)
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
def splash_blocks(length: int) -> splash_attention_kernel.BlockSizes:
    """Returns the largest block sizes of `splash`, up to 512, that divide the length."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel

    side = next(n for n in range(LARGEST, 0, -BLOCK) if length % n == 0)
    return splash_attention_kernel.BlockSizes(
        block_q=side, block_kv=side, block_kv_compute=side,
        block_q_dkv=side, block_kv_dkv=side, block_kv_dkv_compute=side,
        block_q_dq=side, block_kv_dq=side,
    )  # fmt: skip
