"""The layout of a model that answers: separate layers, and weights split where they are read.

Training splits the weights over `fsdp` and gathers them layer by layer, once for a large batch. An
answer would gather the whole model again for every token. So a model answers on a mesh of its own,
data x tensor over the same devices: `tensor` devices split the weights and answer the same rows
together, and every such group has a copy.

What lives here: choosing `tensor`, and moving weights and adapters to that mesh. What does not:
separating the layers (`seva_jax/models/unstacked.py`), answering (`rollouts.py`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from seva_jax.models import (
    CacheKind,
    Llava,
    LlavaConfig,
    abstract_variables,
    boxed_as_stored,
)
from seva_jax.sharding import answering_mesh, is_boxed, process_row_share, variable_shardings
from seva_jax.training.step import Variables
from seva_jax.types import DataError

SPARE = 0.06  # share of a device's memory that estimates leave free


class AnsweringNeeds(NamedTuple):
    """What answering takes of memory besides the weights, see `answering_needs`.

    Attributes:
        devices: number of devices.
        rows: rows answered together, over all devices.
        fresh: rows started together, over all devices.
        row: bytes of a row's KV cache, which `tensor` splits.
        fresh_row: bytes that starting a row takes and `tensor` splits.
        fresh_row_whole: bytes that starting a row takes on every device of its group.
    """

    devices: int
    rows: int
    fresh: int
    row: float
    fresh_row: float
    fresh_row_whole: float

    def on_a_device(self, tensor: int) -> float:
        """Returns the bytes on each device if `tensor` devices answer the same rows."""
        groups = self.devices // tensor
        rows, fresh = -(-self.rows // groups), -(-self.fresh // groups)
        split = rows * self.row + fresh * self.fresh_row
        return split / tensor + fresh * self.fresh_row_whole


def choose_tensor(
    weights: Mapping[int, float],
    needs: AnsweringNeeds,
    resident: float,
    limit: float | None,
) -> int:
    """Returns the smallest number of devices that can hold and split a model that answers.

    Args:
        weights: for every number of devices that can split the model, the bytes on each of them,
            see `possible_tensors`.
        needs: what answering takes besides.
        resident: bytes on each device of what stays there meanwhile, such as the weights in the
            layout of training.
        limit: bytes that each device has; None if unknown, which takes the smallest.

    Returns:
        The number; the largest possible one if the memory is too small in every layout.

    >>> needs = AnsweringNeeds(8, rows=64, fresh=16, row=0.0, fresh_row=0.0, fresh_row_whole=0.0)
    >>> choose_tensor({1: 14e9, 2: 7e9, 4: 3.5e9, 8: 1.75e9}, needs, 1.75e9, 16e9)
    2
    """
    if limit is None:
        return min(weights)
    room = limit * (1 - SPARE) - resident
    fitting = [t for t, size in weights.items() if size + needs.on_a_device(t) <= room]
    return min(fitting, default=max(weights))


def answering_needs(
    model: Llava,
    num_devices: int,
    rows: int,
    fresh: int,
    prompt: int,
    new: int,
    images: int = 1,
    cache: CacheKind = "exact",
) -> AnsweringNeeds:
    """Estimates what answering takes of memory besides the weights.

    Args:
        model: the module.
        num_devices: number of devices.
        rows: rows answered together, over all devices.
        fresh: rows started together, over all devices.
        prompt: tokens of the longest prompt.
        new: tokens of the longest answer.
        images: images of a prompt.
        cache: see `RolloutOptions`.
    """
    text, vision, size = model.config.text, model.config.vision, jnp.dtype(model.dtype).itemsize
    head = text.head_dim + 4 if cache == "int8" else text.head_dim * size
    token = 2 * text.num_layers * text.num_kv_heads * head
    # In prefill: queries, keys and values, also in float32 for the rotation; gate, up, product.
    heads = 2 * (text.num_heads + text.num_kv_heads) * text.head_dim
    split = token + heads * (size + 4) + 3 * text.mlp_size * size
    whole = text.hidden_size * (4 * size + 8) + prompt  # the residual stream, norms; mask
    pixels = 3 * vision.image_size**2 * (4 + size)
    patches = (vision.image_size // vision.patch_size) ** 2
    tower = patches * (vision.hidden_size * (8 * size + 8) + 2 * vision.mlp_size * size)
    return AnsweringNeeds(
        devices=num_devices,
        rows=rows,
        fresh=fresh,
        row=token * (prompt + new),
        fresh_row=split * prompt + 8 * text.vocab_size,
        fresh_row_whole=whole * prompt + images * (pixels + tower),
    )


def possible_tensors(model: Llava, variables: Any, mesh: jax.sharding.Mesh) -> dict[int, int]:
    """Returns the sizes of the axis `tensor` on which a model can answer.

    Args:
        model: the module, with stacked layers.
        variables: its variables as training lays them out, or their shapes.
        mesh: that of training, over real or described devices.

    Returns:
        For each size the bytes on a device of all arrays that are made for it; arrays that are
        there already take none.
    """
    stored = _boxed(model, variables)
    here = variable_shardings(mesh, stored)
    possible = {}
    for tensor in dividing_tensors(model.config, mesh.size):
        there = answering_mesh(mesh, tensor)
        try:
            process_row_share(there)
            shardings = variable_shardings(there, stored)
        except DataError:  # scales of quantised kernels do not divide, or rows of processes overlap
            continue
        possible[tensor] = _bytes_made(stored, here, shardings)
    return possible


def dividing_tensors(config: LlavaConfig, num_devices: int) -> list[int]:
    """Returns the numbers of devices that divide all devices and all dims that are split."""
    common = math.gcd(num_devices, *tensor_sizes(config).values())
    return [n for n in range(1, common + 1) if common % n == 0]


def tensor_sizes(config: LlavaConfig) -> dict[str, int]:
    """Returns what the axis `tensor` splits, by logical name, see `sharding.LOGICAL_AXES`."""
    text, vision = config.text, config.vision
    return {
        "heads": text.num_heads,
        "kv_heads": text.num_kv_heads,
        "mlp": text.mlp_size,
        "vocab": text.vocab_size,
        "vision_heads": vision.num_heads,
        "vision_mlp": vision.mlp_size,
    }


def _boxed(model: Llava, variables: Any) -> Any:
    """Returns variables, or their shapes, with the logical names of their dims."""
    boxed = abstract_variables(model)
    return boxed_as_stored({name: boxed[name] for name in variables}, variables)


def _bytes_made(stored: Any, here: Any, there: Any) -> int:
    """Returns the bytes on a device of the arrays that another layout needs."""

    def one(path: Any, leaf: Any, old: NamedSharding, new: NamedSharding) -> int:
        shape = leaf.value.shape
        if not _is_layer(path) and old.is_equivalent_to(new, len(shape)):
            return 0
        return math.prod(new.shard_shape(shape)) * leaf.value.dtype.itemsize

    sizes = jax.tree_util.tree_map_with_path(one, stored, here, there, is_leaf=is_boxed)
    return sum(jax.tree.leaves(sizes))


def _is_layer(path: Any) -> bool:
    """Returns whether a path in a tree of collections is that of a stack of decoder layers."""
    return [getattr(key, "key", None) for key in path[1:3]] == ["language", "layers"]
