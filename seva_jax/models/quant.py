"""Frozen kernels in 8 or 4 bits, through qwix: the base model of QLoRA (arXiv 2305.14314).

Only the kernels of the language model's linear layers are quantised; embedding, head, norms, vision
tower and projector keep their floats. A quantised kernel is a `qwix.QArray` in place of the array;
`layers.Linear` dequantises it one layer at a time, inside the scan.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from types import ModuleType
from typing import Any, Literal

import jax
import jax.numpy as jnp

from seva_jax.sharding import is_boxed
from seva_jax.types import DataError

BaseWeights = Literal["float", "int8", "nf4"]
_TILE = 64  # inputs that share a scale in nf4, as in a block of QLoRA


def require_qwix() -> ModuleType:
    """Imports and returns qwix.

    Raises:
        DataError: it is not installed.
    """
    try:
        import qwix
    except ImportError:
        raise DataError(
            "compute.base_weights int8 and nf4 need qwix: pip install 'seva_jax[quant]'"
        ) from None
    return qwix


def is_quantised(leaf: Any) -> bool:
    """Returns whether a leaf of variables is a quantised kernel (real, abstract or boxed)."""
    return hasattr(leaf, "qvalue")


def floats(kernel: Any, dtype: Any) -> jax.Array:
    """Returns a kernel in the compute dtype, dequantised if it is quantised."""
    if not is_quantised(kernel):
        return kernel.astype(dtype)
    # The result has the dtype of the scale: a float32 scale would take a float32 copy of a layer.
    rounded = dataclasses.replace(kernel, scale=kernel.scale.astype(dtype))
    return require_qwix().dequantize(rounded)


def takes(path: str) -> bool:
    """Returns whether a parameter, its path joined by "/", is one of those to quantise."""
    return path.startswith("language/layers/") and path.endswith("/kernel")


def quantise(path: str, kernel_LFO: jax.Array, kind: BaseWeights, sharding: Any = None) -> Any:
    """Returns a parameter as it is stored: quantised if `takes(path)`, otherwise unchanged.

    int8 has a scale for each output of each layer; nf4 (4-bit normal float) has one for each output
    and 64 inputs, 4.5 bits per weight. Scales are float32.

    Args:
        path: path of the parameter in the "params" collection, joined by "/".
        kernel_LFO: the parameter; a kernel has dims layers, inputs, outputs.
        kind: how to store kernels.
        sharding: sharding of the result, a tree like it; None leaves it to XLA.
    """
    if kind == "float" or not takes(path):
        return kernel_LFO

    def layers(kernel_LFO: jax.Array) -> Any:
        # Layer by layer, so that no float32 copy of the whole stack is in memory.
        return jax.lax.map(lambda kernel_FO: _quantise(kernel_FO, kind), kernel_LFO)

    return jax.jit(layers, out_shardings=sharding)(kernel_LFO)


def quantise_all(params: Any, kind: BaseWeights, shardings: Any) -> Any:
    """Returns a "params" collection as it is stored, see `quantise`."""

    def one(path: Any, leaf: jax.Array, sharding: Any) -> Any:
        return quantise(_name(path), leaf, kind, sharding)

    return jax.tree_util.tree_map_with_path(one, params, shardings)


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _quantise(kernel_FO: jax.Array, kind: BaseWeights) -> Any:
    tiles = {} if kind == "int8" else {0: math.gcd(_TILE, kernel_FO.shape[0])}
    return require_qwix().quantize(
        kernel_FO.astype("float32"), kind, channelwise_axes=(1,), tiled_axes=tiles
    )


def abstract_stored(boxed: Mapping[str, Any], kind: BaseWeights, dtype: Any) -> dict[str, Any]:
    """Returns shapes, dtypes and logical dim names of a "params" collection as it is stored.

    Args:
        boxed: the collection as it is initialised, see `abstract_variables`.
        kind: how kernels are stored.
        dtype: dtype of the parameters that are not quantised.

    Returns:
        The same tree; a quantised kernel is a QArray of boxed leaves.
    """

    def one(path: Any, leaf: Any) -> Any:
        name = _name(path)
        if kind == "float" or not takes(name):
            return leaf.replace(value=jax.ShapeDtypeStruct(leaf.value.shape, jnp.dtype(dtype)))
        return _boxed_as(leaf, jax.eval_shape(lambda x: quantise(name, x, kind), leaf.value))

    return jax.tree_util.tree_map_with_path(one, boxed, is_leaf=is_boxed)


def boxed_as_stored(boxed: Any, stored: Any) -> Any:
    """Returns variables as they are stored, boxed with the logical names of their dims.

    Args:
        boxed: variables as they are initialised, see `abstract_variables`.
        stored: the same variables as arrays or shapes; kernels may be quantised.
    """
    return jax.tree.map(_boxed_as, boxed, stored, is_leaf=is_boxed)


def _boxed_as(leaf: Any, stored: Any) -> Any:
    if not is_quantised(stored):
        return leaf.replace(value=stored)
    layers, inputs, outputs = leaf.names
    if stored.scale.shape[1] == 1:
        inputs = "scale"
    return dataclasses.replace(
        stored,
        qvalue=leaf.replace(value=stored.qvalue),
        scale=leaf.replace(value=stored.scale, names=(layers, inputs, outputs)),
    )
