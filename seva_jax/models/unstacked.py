"""Separate variables for every decoder layer: the form of a model that answers.

Training stacks the layers and scans them, which compiles one layer. A decode loop over stacked
layers copies every layer's slice of the stack for every token, because the kernels that it calls
read whole arrays. `unstack` turns a model and its variables to the form without a stack.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.sharding import NamedSharding, PartitionSpec

from seva_jax.models.llava import Llava
from seva_jax.sharding import is_boxed


def unstack(model: Llava, variables: Any, free: bool = False) -> tuple[Llava, Any]:
    """Returns a model whose decoder layers are not stacked, and its variables.

    Layer i is at `language/layers_i` of every collection, on the devices and with the sharding that
    its part of the stack has. Everything else is passed through.

    Args:
        model: the module; returned as it is, with its variables, if its layers are not stacked.
        variables: collections of `model`: arrays, tracers, shapes (`jax.ShapeDtypeStruct`), or
            boxed leaves, see `abstract_variables`; kernels may be quantised.
        free: delete every stack as soon as its layers are copied, so that at most one stack is in
            memory twice. `variables` cannot be used afterwards, until `restack` puts them back.
    """
    if not model.stacked:
        return model, variables
    num = model.config.text.num_layers

    def collection(tree: Mapping[str, Any]) -> dict[str, Any]:
        language = tree.get("language", {})
        if "layers" not in language:
            return dict(tree)
        leaves, structure = jax.tree.flatten(language["layers"], is_leaf=is_boxed)
        split = zip(*(_layers(leaf, num, free) for leaf in leaves), strict=True)
        layers = {f"layers_{i}": structure.unflatten(own) for i, own in enumerate(split)}
        rest = {name: part for name, part in language.items() if name != "layers"}
        return {**tree, "language": {**rest, **layers}}

    return model.clone(stacked=False), {k: collection(tree) for k, tree in variables.items()}


def restack(variables: Any, separate: Any) -> None:
    """Puts the stacks back that `unstack` deleted, and deletes the separate layers in turn.

    The dicts of `variables` are changed, so everything that shares them with the caller, such as
    other policies with the same frozen weights, has the layers again.

    Args:
        variables: what `unstack(..., free=True)` was given.
        separate: what it returned.
    """
    for name, tree in variables.items():
        language = tree.get("language", {})
        if "layers" not in language:
            continue
        stacks, structure = jax.tree.flatten(language["layers"])
        layers = (separate[name]["language"][f"layers_{i}"] for i in range(stacks[0].shape[0]))
        for i, parts in enumerate(zip(*map(jax.tree.leaves, layers), strict=True)):
            stacks[i] = jax.block_until_ready(_stacking(stacks[i].sharding)(parts))
            for part in parts:
                part.delete()
        language["layers"] = structure.unflatten(stacks)


def _layers(stack: Any, num: int, free: bool) -> list[Any]:
    """Returns the parts of one leaf."""
    if is_boxed(stack):
        parts = _layers(stack.value, num, free)
        return [stack.replace(value=part, names=stack.names[1:]) for part in parts]
    sharding = getattr(stack, "sharding", None)
    if isinstance(stack, jax.ShapeDtypeStruct):
        own = _of_layer(sharding) if isinstance(sharding, NamedSharding) else sharding
        return [jax.ShapeDtypeStruct(stack.shape[1:], stack.dtype, sharding=own)] * num
    if not isinstance(stack, jax.Array) or isinstance(stack, Tracer):
        return [stack[i] for i in range(num)]
    # Arrays that no device was chosen for stay so.
    named = isinstance(sharding, NamedSharding)
    parts = _program(_of_layer(sharding) if named else None)(stack)
    if free:
        jax.block_until_ready(parts)
        stack.delete()
    return parts


def _of_layer(sharding: NamedSharding) -> NamedSharding:
    spec = PartitionSpec(*sharding.spec[1:])
    return NamedSharding(sharding.mesh, spec, memory_kind=sharding.memory_kind)


@functools.cache
def _program(sharding: NamedSharding | None) -> Any:
    """Returns the program that splits a stack; cached, so that it compiles once for a shape."""
    return jax.jit(lambda stack: list(stack), out_shardings=sharding)


@functools.cache
def _stacking(sharding: Any) -> Any:
    """Returns the program that stacks layers, likewise."""
    return jax.jit(jnp.stack, out_shardings=sharding)
