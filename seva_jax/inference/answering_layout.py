"""How many devices share the weights of a model that answers, and what answering takes of memory.

What lives here: estimates from shapes, the choice of `RolloutOptions.tensor`, and which choices are
possible. The run and the planner (`seva_jax/plan/answering.py`) use the same functions. What does
not: moving the model there (`answering.py`).
"""

from __future__ import annotations

import contextlib
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
from seva_jax.runtime.processes import gather, say
from seva_jax.sharding import answering_mesh, is_boxed, process_row_share, variable_shardings
from seva_jax.training.memory import bytes_on_a_device, device_limit, tower_scores
from seva_jax.training.step import Variables
from seva_jax.types import DataError

_GIB = 2**30
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

    def cache(self, tensor: int) -> float:
        """Returns the bytes of KV cache on each device if `tensor` devices answer the same rows."""
        return -(-self.rows // (self.devices // tensor)) * self.row / tensor

    def on_a_device(self, tensor: int) -> float:
        """Returns the bytes on each device if `tensor` devices answer the same rows."""
        fresh = -(-self.fresh // (self.devices // tensor))
        return self.cache(tensor) + fresh * (self.fresh_row / tensor + self.fresh_row_whole)


def choose_tensor(
    weights: Mapping[int, float],
    needs: AnsweringNeeds,
    resident: float,
    limit: float,
) -> int:
    """Returns how many devices should share the weights of a model that answers.

    For every token a device reads its part of the weights and of the caches. More devices in a
    group make its part of the weights smaller, but not that of the caches, because the group has
    more rows; and they exchange more in every layer, and prepare the same prompts if they belong to
    several processes. So this is the smallest number with which a device reads no more weights than
    caches: a larger one could at most halve what it reads.

    Args:
        weights: for every number of devices that can split the model, the bytes on each of them,
            see `possible_tensors`.
        needs: what answering takes besides.
        resident: bytes on each device of what stays there meanwhile, such as the weights in the
            layout of training.
        limit: bytes that each device has.

    Returns:
        The number, of those whose memory suffices: the largest of these if the weights are larger
        than the caches with all of them. The largest possible one if no memory suffices.

    >>> needs = AnsweringNeeds(8, rows=64, fresh=16, row=0.25e9, fresh_row=0.0, fresh_row_whole=0.0)
    >>> choose_tensor({1: 14e9, 2: 7e9, 4: 3.5e9, 8: 1.75e9}, needs, 1.75e9, 80e9)
    8
    >>> choose_tensor({1: 14e9, 2: 7e9, 4: 3.5e9, 8: 1.75e9}, needs._replace(row=1e9), 1.75e9, 80e9)
    2
    """
    room = limit * (1 - SPARE) - resident
    fitting = [t for t, size in weights.items() if size + needs.on_a_device(t) <= room]
    balanced = [t for t in fitting if weights[t] <= needs.cache(t)]
    return min(balanced) if balanced else max(fitting or weights)


def fitting_tensor(
    model: Llava,
    variables: Variables,
    mesh: jax.sharding.Mesh,
    needs: AnsweringNeeds,
    resident: float,
    free: bool = False,
) -> int:
    """Returns what `choose_tensor` chooses for these devices; 1 if their memory is unknown (CPU).

    It is the same on every process. Warns if the memory is likely to be too small.

    Args:
        model: the module.
        variables: its variables as training lays them out.
        mesh: that of training.
        needs: what answering takes besides.
        resident: bytes on each device of what stays there besides the variables.
        free: whether stacked layers are deleted when they are separated.
    """
    limits = gather(device_limit())
    if None in limits:
        return 1
    weights = possible_tensors(model, variables, mesh)
    limit, kept = min(limits), resident + bytes_on_a_device(variables)
    tensor = choose_tensor(weights, needs, kept, limit)
    total = kept + weights[tensor] * (not free) + needs.on_a_device(tensor)
    if total > limit:
        say(
            f"warning: answering takes about {total / _GIB:.1f} GiB on each device, which has "
            f"{limit / _GIB:.1f} GiB; a smaller --rollout.batch-size may fit"
        )
    return tensor


def is_crowded(
    model: Llava,
    variables: Variables,
    mesh: jax.sharding.Mesh,
    needs: AnsweringNeeds,
    resident: float,
) -> bool:
    """Returns whether a single device is too small for stacked and separate layers together.

    False for several devices, which hold a part of each, and if the memory is unknown (CPU).

    Args:
        model: the module.
        variables: its variables as training lays them out.
        mesh: that of training.
        needs: what answering takes besides.
        resident: bytes on each device of what stays there besides the variables.
    """
    limit = device_limit()
    if mesh.size > 1 or limit is None:
        return False
    made = possible_tensors(model, variables, mesh)[1]
    needed = resident + bytes_on_a_device(variables) + made + needs.on_a_device(1)
    return needed > limit * (1 - SPARE)


def answering_needs(
    model: Llava,
    num_devices: int,
    rows: int,
    fresh: int,
    prompt: int,
    new: int,
    tiles: int = 1,
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
        tiles: tiles of a prompt's images.
        cache: see `RolloutOptions`.
    """
    text, vision, size = model.config.text, model.config.vision, jnp.dtype(model.dtype).itemsize
    head = text.head_dim + 4 if cache == "int8" else text.head_dim * size
    token = 2 * text.num_layers * text.num_kv_heads * head
    # In prefill: queries, keys and values, also in float32 for the rotation; gate, up, product.
    heads = 2 * (text.num_heads + text.num_kv_heads) * text.head_dim
    split = token + heads * (size + 4) + 3 * text.mlp_size * size
    # The residual stream, norms, what is added for deep layers; mask.
    deep = len(vision.deep_layers)
    whole = text.hidden_size * ((4 + deep) * size + 8) + prompt
    pixels = 3 * vision.image_size**2 * (4 + size)
    patch = vision.hidden_size * ((8 + 2 * deep) * size + 8) + 2 * vision.mlp_size * size
    scores = tower_scores(model.config, model.dtype)
    return AnsweringNeeds(
        devices=num_devices,
        rows=rows,
        fresh=fresh,
        row=token * (prompt + new),
        fresh_row=split * prompt + 8 * text.vocab_size + tiles * scores,
        fresh_row_whole=whole * prompt + tiles * (pixels + vision.num_patches * patch),
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
    stored = boxed_shapes(model, variables)
    here = variable_shardings(mesh, stored)
    possible = {}
    for tensor in dividing_tensors(model.config, mesh.size):
        with contextlib.suppress(DataError):
            possible[tensor] = _bytes_made(stored, here, _shardings(stored, mesh, tensor))
    return possible


def dividing_tensors(config: LlavaConfig, num_devices: int) -> list[int]:
    """Returns the numbers of devices that divide all devices and all dims that are split."""
    common = math.gcd(num_devices, *tensor_sizes(config).values())
    return [n for n in range(1, common + 1) if common % n == 0]


def require_tensor(model: Llava, variables: Any, mesh: jax.sharding.Mesh, tensor: int) -> None:
    """Checks that groups of `tensor` devices can share a model that answers.

    Args:
        model: the module, with stacked layers.
        variables: its variables as training lays them out, or their shapes.
        mesh: that of training.
        tensor: devices that share the weights.

    Raises:
        DataError: they cannot; the message names the sizes that can.
    """
    possible = possible_tensors(model, variables, mesh)
    if tensor in possible:
        return
    sizes = ", ".join(f"{name} {size:,}" for name, size in tensor_sizes(model.config).items())
    problem = f"must divide the {mesh.size} device(s) and what it splits of the model: {sizes}"
    if tensor in dividing_tensors(model.config, mesh.size):
        try:
            _shardings(boxed_shapes(model, variables), mesh, tensor)
        except DataError as error:
            problem = f"is not possible: {error}"
    sizes = ", ".join(map(str, [*possible, 0]))
    raise DataError(
        f"rollout.tensor {tensor} {problem}; set --rollout.tensor to one of {sizes} (0 chooses)"
    )


def _shardings(stored: Any, mesh: jax.sharding.Mesh, tensor: int) -> Any:
    """Returns the shardings of stacked layers on the mesh that answers.

    Raises:
        DataError: scales of quantised kernels do not divide, or rows of processes overlap.
    """
    there = answering_mesh(mesh, tensor)
    process_row_share(there)
    return variable_shardings(there, stored)


def tensor_sizes(config: LlavaConfig) -> dict[str, int]:
    """Returns what the axis `tensor` must divide, by logical name, see `sharding.LOGICAL_AXES`.

    It need not divide the vocabulary, see `sharding.WIDTH`.
    """
    text, vision = config.text, config.vision
    return {
        "heads": text.num_heads,
        "kv_heads": text.num_kv_heads,
        "mlp": text.mlp_size,
        "vision_heads": vision.num_heads,
        "vision_mlp": vision.mlp_size,
    }


def boxed_shapes(model: Llava, variables: Any) -> Any:
    """Returns the shapes of variables with the logical names of their dims."""
    boxed = abstract_variables(model)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), variables)
    return boxed_as_stored({name: boxed[name] for name in variables}, shapes)


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
