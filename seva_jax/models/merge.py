"""Adapters added to the kernels they belong to, where the kernels lie."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from seva_jax.models.config import LoraConfig


def merge_adapters(
    params: Mapping[str, Any], adapters: Any, lora: LoraConfig, dtype: Any, shardings: Any
) -> Any:
    """A "params" collection with which the model alone does what it did with adapters.

    Sums are float32, one layer of one kernel at a time, and rounded once to what is stored.

    Args:
        params: the parameters, floats; given up where the result takes their place.
        adapters: the "lora" collection, or {} for none.
        lora: what the adapters are.
        dtype: of the result.
        shardings: of the result, a tree like `params`.
    """

    def one(path: Any, leaf: jax.Array, sharding: Any) -> jax.Array:
        *parents, name = (key.key for key in path)
        adapter = adapters
        for parent in parents:
            adapter = adapter.get(parent, {}) if isinstance(adapter, Mapping) else {}
        if name == "kernel" and "a" in adapter:
            merge = _program(lora.alpha / lora.rank, dtype, sharding, leaf.dtype == dtype)
            return merge(leaf, adapter["a"], adapter["b"])
        if leaf.dtype == dtype:
            return leaf
        return jax.jit(lambda x: x.astype(dtype), out_shardings=sharding)(leaf)

    return jax.tree_util.tree_map_with_path(one, params, shardings)


@functools.cache
def _program(scale: float, dtype: Any, sharding: Any, in_place: bool) -> Any:
    """Compiled once for all kernels of one shape."""
    merge = functools.partial(_merged, scale=scale, dtype=dtype)
    return jax.jit(merge, out_shardings=sharding, donate_argnums=(0,) if in_place else ())


def _merged(
    kernel_LIO: jax.Array, a_LIR: jax.Array, b_LRO: jax.Array, scale: float, dtype: Any
) -> jax.Array:
    def layer(at: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        kernel_IO, a_IR, b_RO = at
        change_IO = jnp.matmul(a_IR, b_RO, precision="highest") * scale
        return (kernel_IO.astype(jnp.float32) + change_IO).astype(dtype)

    return jax.lax.map(layer, (kernel_LIO, a_LIR, b_LRO))
