"""Moves a model to the layout in which it answers: separate layers, split where they are read.

Training splits the weights over `fsdp` and gathers them layer by layer, once for a large batch. An
answer would gather the whole model again for every token. So a model answers on a mesh of its own,
data x tensor over the same devices: `tensor` devices split the weights and answer the same rows
together, and every such group has a copy.

What lives here: moving weights and adapters to that mesh. What does not: choosing `tensor`
(`answering_layout.py`), separating the layers (`seva_jax/models/unstacked.py`), answering
(`rollouts.py`).
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import jax
import numpy as np
from jax.sharding import NamedSharding

from seva_jax.inference.answering_layout import boxed_shapes, require_tensor
from seva_jax.models import Llava, unstack
from seva_jax.sharding import answering_mesh, replicated, variable_shardings
from seva_jax.training.step import Variables


class AnsweringForm(NamedTuple):
    """A model in the layout in which it answers.

    Attributes:
        model: the module, whose layers are not stacked.
        variables: its variables, see `answering_variables`.
        mesh: where they are, data x tensor.
    """

    model: Llava
    variables: Variables
    mesh: jax.sharding.Mesh


def answering_form(
    model: Llava,
    variables: Variables,
    mesh: jax.sharding.Mesh,
    tensor: int,
    free: bool = False,
) -> AnsweringForm:
    """Moves a model to the layout in which it answers, see `answering_variables`.

    Args:
        model: the module, with stacked layers.
        variables: its variables as training lays them out; they stay as they are without `free`.
        mesh: that of training.
        tensor: devices that share the weights and answer the same rows together.
        free: delete every stack as soon as its layers are separated, see `unstack`. Only for a
            single device, on which nothing moves.

    Raises:
        DataError: the model or the devices cannot be divided so.
    """
    require_tensor(model, variables, mesh, tensor)
    there = answering_mesh(mesh, tensor)
    if free:
        assert mesh.size == 1, "parts of stacks move to other devices"
        return AnsweringForm(*unstack(model, variables, free=True), there)
    separate, _ = unstack(model, {})
    return AnsweringForm(separate, answering_variables(model, variables, there), there)


def answering_variables(model: Llava, variables: Variables, mesh: jax.sharding.Mesh) -> Variables:
    """Returns variables as a model answers with them: layers separate, split over another mesh.

    Compiled programs move them from device to device, never through the host, one layer at a time:
    the most memory that this takes on a device is that of both layouts, and in full one decoder
    layer, or one other part (embedding, head, vision tower or projector). Arrays that are in their
    place already, such as all of these on a single device, are not copied. Programs are kept: to
    move other values of the same shapes, such as adapters between updates, takes no compiling.

    Args:
        model: the module, with stacked layers.
        variables: some or all collections, as training lays them out; they stay as they are.
        mesh: see `answering_mesh`.

    Raises:
        DataError: a dim does not divide by the axis `tensor`.
    """
    separate = unstack(model, boxed_shapes(model, variables))[1]
    shardings = variable_shardings(mesh, separate)
    return {name: _moved_collection(variables[name], shardings[name]) for name in variables}


def _moved_collection(tree: Any, shardings: Any) -> Any:
    """Moves a collection part by part; shardings are those of separate layers."""
    moved = {part: _moved(tree[part], to) for part, to in shardings.items() if part != "language"}
    if "language" in tree:
        language = tree["language"]
        moved["language"] = {
            name: _moved(language[name], to)
            if name in language
            else _moved_layer(language["layers"], _number(name), to)
            for name, to in shardings["language"].items()
        }
    return moved


def _moved_layer(stacks: Any, number: np.int32, shardings: Any) -> Any:
    """Copies a layer out of the stacks and moves it."""
    if all(map(_in_order, jax.tree.leaves(stacks), jax.tree.leaves(shardings))):
        return jax.jit(_layer, out_shardings=shardings)(stacks, number)
    everywhere = jax.tree.map(lambda x: replicated(x.sharding.mesh), stacks)
    whole = jax.jit(_layer, out_shardings=everywhere)(stacks, number)
    # Before the next layer is gathered, this one has to be gone.
    return jax.block_until_ready(jax.device_put(whole, shardings))


def _moved(tree: Any, shardings: Any) -> Any:
    """Moves the leaves that are elsewhere: each is gathered, then every device keeps its part."""
    leaves, structure = jax.tree.flatten(tree)
    targets = structure.flatten_up_to(shardings)
    pairs = enumerate(zip(leaves, targets, strict=True))
    if not (away := [i for i, (leaf, to) in pairs if not _is_at(leaf, to)]):
        return tree
    moving, to = ([each[i] for i in away] for each in (leaves, targets))
    if isinstance(here := getattr(moving[0], "sharding", None), NamedSharding):
        mesh: Any = here.mesh
        moving = jax.jit(_same, out_shardings=replicated(mesh))(moving)
    ordered = all(map(_in_order, moving, to))
    there = jax.jit(_same, out_shardings=to)(moving) if ordered else jax.device_put(moving, to)
    for i, leaf in zip(away, there, strict=True):
        leaves[i] = leaf
    return structure.unflatten(leaves)


def _is_at(leaf: Any, sharding: NamedSharding) -> bool:
    return isinstance(leaf, jax.Array) and leaf.sharding.is_equivalent_to(sharding, leaf.ndim)


def _in_order(leaf: Any, sharding: NamedSharding) -> bool:
    """Returns whether a program can take a leaf and return it so: it has one order of devices.

    `jax.device_put` can reorder them; where it need not, it may copy through the host.
    """
    here = getattr(leaf, "sharding", None)
    if not isinstance(here, NamedSharding):
        return True
    mesh, other = cast(Any, here.mesh), cast(Any, sharding.mesh)
    return list(mesh.devices.flat) == list(other.devices.flat)


# Functions of the module, so that `jax.jit` keeps their programs.
def _same(leaves: list[Any]) -> list[Any]:
    return leaves


def _layer(stacks: Any, number: jax.Array) -> Any:
    return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, number, 0, False), stacks)


def _number(name: str) -> np.int32:
    """Returns the number of a layer named "layers_7"."""
    return np.int32(name.rpartition("_")[2])
