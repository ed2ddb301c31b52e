"""Shapes and initial values of a model's variables, shared by trainer and planner."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from seva_jax.models.llava import Llava
from seva_jax.sharding import is_boxed


def _init(model: Llava, key: jax.Array) -> Any:
    ids = jnp.zeros((1, 1), jnp.int32)
    side = model.config.vision.image_size
    pixels = jnp.zeros((1, 1, side, side, 3))
    place = jnp.ones((1, 1, 5), jnp.int32) if model.config.vision.native else None
    mask = jnp.ones((1, 1, 1), bool)
    return model.init(key, ids, ids, mask, ids, pixels, place_BI5=place)


def _unbox(tree: Any) -> Any:
    return jax.tree.map(lambda x: x.value if is_boxed(x) else x, tree, is_leaf=is_boxed)


def abstract_variables(model: Llava) -> dict[str, Any]:
    """Returns the shapes of all variables and allocates nothing.

    Returns:
        {"params": ..., "lora": ...}; every leaf is boxed with the logical names of its dims
        (`.names`, `.value.shape`). "lora" is there only if the model has adapters.
    """
    hashable: Any = model
    shapes = _shapes(hashable)
    return jax.tree.map(lambda x: x, shapes, is_leaf=is_boxed)  # callers may change their dicts


@functools.lru_cache(maxsize=16)  # the planner asks many times
def _shapes(model: Llava) -> Mapping[str, Any]:
    return jax.eval_shape(lambda key: _init(model, key), jax.random.key(0))


def abstract_params(model: Llava) -> dict[str, Any]:
    """Returns the shapes of the "params" collection as plain `jax.ShapeDtypeStruct`s."""
    return _unbox(abstract_variables(model)["params"])


def num_parameters(model: Llava) -> int:
    """Returns the number of parameters of a model, without adapters."""
    return sum(x.size for x in jax.tree.leaves(abstract_params(model)))


def init_variables(model: Llava, collection: str, shardings: Any, seed: int) -> Any:
    """Returns initial float32 values of one collection, created on the devices that hold them.

    Args:
        model: the module.
        collection: "params" or "lora".
        shardings: the sharding of every leaf of the collection.
        seed: seed of the random values.
    """

    def init(key: jax.Array) -> Any:
        return _unbox(_init(model, key)[collection])

    return jax.jit(init, out_shardings=shardings)(jax.random.key(seed))
