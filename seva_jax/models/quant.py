"""Frozen kernels in 8 or 4 bits, through qwix: the base of QLoRA (arXiv 2305.14314).

Quantised are the kernels of the language model's linear layers; embedding, head, norms, vision
tower and projector stay as they are. A quantised kernel is a `qwix.QArray` in the place of the
array; `layers.Linear` turns it back into floats one layer at a time, inside the scan.
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
_TILE = 64  # input rows that share a scale in nf4, as QLoRA's blocks


def require_qwix() -> ModuleType:
    """The library.

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
    """Whether a leaf of variables is a quantised kernel (real, abstract or boxed)."""
    return hasattr(leaf, "qvalue")


def floats(kernel: Any, dtype: Any) -> jax.Array:
    """A kernel in the compute dtype, dequantised if need be."""
    if not is_quantised(kernel):
        return kernel.astype(dtype)
    # The scale's dtype is that of the result, and of the memory it takes for one layer.
    rounded = dataclasses.replace(kernel, scale=kernel.scale.astype(dtype))
    return require_qwix().dequantize(rounded)


def takes(path: str) -> bool:
    """Whether a parameter of the "params" collection, joined by "/", is one that is quantised."""
    return path.startswith("language/layers/") and path.endswith("/kernel")


def quantise(path: str, kernel_LIO: jax.Array, kind: BaseWeights, sharding: Any = None) -> Any:
    """A parameter as it is stored: quantised if it is one of those, else unchanged.

    int8 has a scale for each output of each layer; nf4 (normal float 4) one for each output and
    64 inputs, 4.5 bits a weight. Scales are float32.

    Args:
        path: in the "params" collection, joined by "/".
        kernel_LIO: the parameter; layers, inputs, outputs if it is a kernel.
        kind: what to store.
        sharding: of the result, a tree like it; None leaves it to XLA.
    """
    if kind == "float" or not takes(path):
        return kernel_LIO

    def layers(kernel_LIO: jax.Array) -> Any:
        # Layer by layer, or the float32 copy of a whole stack would be in memory at once.
        return jax.lax.map(lambda kernel_IO: _quantise(kernel_IO, kind), kernel_LIO)

    return jax.jit(layers, out_shardings=sharding)(kernel_LIO)


def quantise_all(params: Any, kind: BaseWeights, shardings: Any) -> Any:
    """A "params" collection as it is stored, see `quantise`."""

    def one(path: Any, leaf: jax.Array, sharding: Any) -> Any:
        return quantise("/".join(str(key.key) for key in path), leaf, kind, sharding)

    return jax.tree_util.tree_map_with_path(one, params, shardings)


def _quantise(kernel_IO: jax.Array, kind: BaseWeights) -> Any:
    tiles = {} if kind == "int8" else {0: math.gcd(_TILE, kernel_IO.shape[0])}
    return require_qwix().quantize(
        kernel_IO.astype("float32"), kind, channelwise_axes=(1,), tiled_axes=tiles
    )


def abstract_stored(boxed: Mapping[str, Any], kind: BaseWeights, dtype: Any) -> dict[str, Any]:
    """Shapes, dtypes and logical dim names of a "params" collection as it is stored.

    Args:
        boxed: as it is initialised, of `abstract_variables`.
        kind: how kernels are stored.
        dtype: of what is not quantised.

    Returns:
        The same tree; a quantised kernel is a QArray of boxed leaves.
    """

    def one(path: Any, leaf: Any) -> Any:
        name = "/".join(str(key.key) for key in path)
        if kind == "float" or not takes(name):
            return leaf.replace(value=jax.ShapeDtypeStruct(leaf.value.shape, jnp.dtype(dtype)))
        shapes = jax.eval_shape(lambda x: quantise(name, x, kind), leaf.value)
        layers, inputs, outputs = leaf.names
        if shapes.scale.shape[1] == 1:
            inputs = "scale"
        return dataclasses.replace(
            shapes,
            qvalue=leaf.replace(value=shapes.qvalue),
            scale=leaf.replace(value=shapes.scale, names=(layers, inputs, outputs)),
        )

    return jax.tree_util.tree_map_with_path(one, boxed, is_leaf=is_boxed)
