"""Merging adapters into the kernels that they adapt, on the devices that hold the kernels."""

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
    """Returns a "params" collection that alone computes what the model computes with adapters.

    Sums are in float32, one layer of one kernel at a time, and rounded once to `dtype`.

    Args:
        params: the parameters, floats. Merged kernels that already have `dtype` are donated: their
            memory is reused for the result.
        adapters: the "lora" collection, or {} for none.
        lora: config of the adapters.
        dtype: dtype of the result.
        shardings: shardings of the result, a tree like `params`.
    """

    def one(path: Any, leaf: jax.Array, sharding: Any) -> jax.Array:
        *parents, name = (key.key for key in path)
        adapter = adapters
        for parent in parents:
            adapter = adapter.get(parent, {}) if isinstance(adapter, Mapping) else {}
        if name == "kernel" and "a" in adapter:
            scale = lora.at("/".join(parents)).scale
            merge = _program(scale, dtype, sharding, leaf.dtype == dtype)
            return merge(leaf, adapter["a"], adapter["b"])
        if leaf.dtype == dtype:
            return leaf
        return jax.jit(lambda x: x.astype(dtype), out_shardings=sharding)(leaf)

    return jax.tree_util.tree_map_with_path(one, params, shardings)


@functools.cache
def _program(scale: float, dtype: Any, sharding: Any, in_place: bool) -> Any:
    """Returns the merge of one kernel; cached, so it compiles once for all of one shape."""
    merge = functools.partial(_merged, scale=scale, dtype=dtype)
    return jax.jit(merge, out_shardings=sharding, donate_argnums=(0,) if in_place else ())


def _merged(kernel: jax.Array, a: jax.Array, b: jax.Array, scale: float, dtype: Any) -> jax.Array:
    """Returns the merged kernel: of all layers [L, F, O], or the projector's [F, O]."""

    def layer(at: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        kernel_FO, a_FR, b_RO = at
        change_FO = jnp.matmul(a_FR, b_RO, precision="highest") * scale
        return (kernel_FO.astype(jnp.float32) + change_FO).astype(dtype)

    return jax.lax.map(layer, (kernel, a, b)) if kernel.ndim == 3 else layer((kernel, a, b))
