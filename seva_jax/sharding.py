"""The device mesh, and the ONE table from logical dim names to mesh axes, resolved strictly.

Flax silently replicates a parameter whose logical name is misspelt. Here an unknown name, an axis
used twice, or a dim that does not divide evenly raises an error that names the parameter.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import NamedSharding, PartitionSpec

from seva_jax.types import DataError

AXES = ("data", "fsdp", "tensor")
BATCH = ("data", "fsdp")  # mesh axes that split the batch dim

# Logical dim name of a parameter -> mesh axis. fsdp splits the model width, a dim of every kernel;
# tensor splits the other dim: heads, MLP or vocabulary.
LOGICAL_AXES: Mapping[str, str | None] = {
    "layers": None,
    "norm": None,
    "rank": None,
    "patch": None,
    "position": None,
    "scale": None,
    "embed": "fsdp",
    "embed_in": None,
    "heads": "tensor",
    "kv_heads": "tensor",
    "mlp": "tensor",
    "vocab": "tensor",
    "vision_embed": None,
    "vision_heads": "tensor",
    "vision_qkv": None,  # queries, keys and values one after another: a split would cut across
    "vision_mlp": "tensor",
}

# The vocabulary of a released model may be any number. Where tensor does not divide it, tensor
# splits the width of the embedding and the head instead, beside fsdp.
VOCAB, WIDTH, WIDTH_AXIS = "vocab", "embed", "fsdp"

# Adapters are split like the kernels they adapt. Where fsdp does not split the kernel's dim, it
# splits the rank if that divides evenly; a small rank makes adapters small enough to replicate.
RANK, RANK_AXIS = "rank", "fsdp"

# Logical dim name of an activation -> mesh axis or axes.
ACTIVATION_AXES: Mapping[str, str | tuple[str, ...] | None] = {
    "layers": None,
    "batch": BATCH,
    "length": None,
    "width": None,
    "width_part": "tensor",
    "head_dim": None,
    "heads": "tensor",
    "mlp": "tensor",
    "vocab": "tensor",
}


def constrain(x: jax.Array, *names: str) -> jax.Array:
    """Constrains the sharding of an activation; does nothing without a mesh (`jax.set_mesh`).

    Without constraints XLA may choose, layer by layer, to split widths instead of rows, and gather
    whole stacks of weights or activations in between. A vocabulary that does not divide stays
    whole.

    Args:
        x: the activation.
        names: logical name of each dim, see `ACTIVATION_AXES`.

    Raises:
        DataError: a name is unknown, or there is not one for each dim.
    """
    spec = activation_spec(*names)
    if len(names) != x.ndim:
        raise DataError(f"an activation of shape {x.shape} has dim names {names}")
    if jax.sharding.get_abstract_mesh().empty:
        return x
    if VOCAB in names and uneven(x.shape[dim := names.index(VOCAB)]):
        spec = PartitionSpec(*spec[:dim], None, *spec[dim + 1 :])
    return jax.lax.with_sharding_constraint(x, spec)


def uneven(vocab_size: int) -> bool:
    """Returns whether `tensor` of the current mesh does not divide a vocabulary."""
    mesh = jax.sharding.get_abstract_mesh()
    return not mesh.empty and vocab_size % mesh.shape["tensor"] != 0


def constrain_logits(logits_BSV: jax.Array) -> jax.Array:
    """Constrains logits to be split by vocabulary, also where `tensor` does not divide it.

    They are padded for that and cut again, which XLA keeps split: the last part is shorter.
    """
    size = logits_BSV.shape[-1]
    if not uneven(size):
        return constrain(logits_BSV, "batch", "length", VOCAB)
    spare = -size % jax.sharding.get_abstract_mesh().shape["tensor"]
    padded = jnp.pad(logits_BSV, ((0, 0), (0, 0), (0, spare)))
    return constrain(padded, "batch", "length", VOCAB)[..., :size]


def activation_spec(*names: str) -> PartitionSpec:
    """Returns the mesh axes of an activation with these dims.

    Raises:
        DataError: a name is unknown.
    """
    if not set(names) <= ACTIVATION_AXES.keys():
        raise DataError(f"dim names {names}; known: {', '.join(ACTIVATION_AXES)}")
    return PartitionSpec(*(ACTIVATION_AXES[n] for n in names))


def constrain_parameter(x: jax.Array, *names: str) -> jax.Array:
    """Constrains the sharding of a parameter inside a layer, and with it that of its gradient.

    The backward pass of a scan keeps the gradients of all layers; unconstrained, every device
    would hold all of them whole.

    Args:
        x: the parameter of one layer.
        names: logical name of each dim, see `LOGICAL_AXES`.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    spec = _spec(dict(mesh.shape), names, x.shape, "a layer's parameter")
    return jax.lax.with_sharding_constraint(x, spec)


@dataclasses.dataclass(frozen=True)
class MeshShape:
    """Devices along each mesh axis; at most one may be -1, which takes all remaining devices.

    Attributes:
        data: number of copies of the model. Each computes its own part of the batch, so a copy
            has to fit on its fsdp x tensor devices.
        fsdp: number of devices that split the parameters of a copy among them. Each also computes
            its own part of the batch.
        tensor: number of devices that split attention heads, MLP and vocabulary (or, where it does
            not divide by their number, the width of embedding and head), and compute the same part
            of the batch together. They communicate in every layer.
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1

    def make(self, devices: list[Any] | None = None) -> jax.sharding.Mesh:
        """Returns the mesh over the given devices; None takes all devices.

        Raises:
            DataError: the sizes are invalid, or their product is not the number of devices.
        """
        devices = list(jax.devices()) if devices is None else devices
        sizes = [self.data, self.fsdp, self.tensor]
        fixed = math.prod(s for s in sizes if s != -1)
        if sizes.count(-1) > 1 or any(s < 1 and s != -1 for s in sizes):
            raise DataError(f"mesh sizes must be positive, with at most one -1; got {self}")
        if -1 in sizes and fixed <= len(devices):
            sizes[sizes.index(-1)] = len(devices) // fixed
        if math.prod(sizes) != len(devices):
            needed = (
                f"a multiple of {fixed}" if -1 in (self.data, self.fsdp, self.tensor) else fixed
            )
            raise DataError(
                f"{self} needs {needed} devices but there are {len(devices)}; "
                f"{self._nearest(len(devices))} would fit"
            )
        return jax.sharding.Mesh(_grid(devices, sizes), AXES)

    def _nearest(self, num_devices: int) -> str:
        """Returns options of a mesh that fits, with fsdp and tensor close to those requested."""

        def nearest(wanted: int, total: int) -> int:
            divisors = [n for n in range(1, total + 1) if total % n == 0]
            return min(divisors, key=lambda n: max(n, wanted) / min(n, wanted))

        tensor = nearest(max(self.tensor, 1), num_devices)
        left = num_devices // tensor
        fsdp = left if self.fsdp == -1 else nearest(self.fsdp, left)
        return f"--mesh.data {left // fsdp} --mesh.fsdp {fsdp} --mesh.tensor {tensor}"


def _grid(devices: list[Any], sizes: list[int]) -> np.ndarray:
    """Returns the devices in mesh order: neighbours on an axis are neighbours in the network."""
    if devices[0].platform != "tpu":
        return np.array(devices).reshape(sizes)
    num_slices = len({getattr(device, "slice_index", 0) for device in devices})
    if num_slices == 1:
        return mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    data, fsdp, tensor = sizes
    if data % num_slices:
        raise DataError(
            f"mesh.data {data} is not a multiple of the {num_slices} slices: only data spans "
            "slices, because their network is slow"
        )
    return mesh_utils.create_hybrid_device_mesh(
        (data // num_slices, fsdp, tensor),
        (num_slices, 1, 1),
        devices,
        allow_split_physical_axes=True,
    )


def answering_mesh(mesh: jax.sharding.Mesh, tensor: int) -> jax.sharding.Mesh:
    """Returns the mesh on which a model answers: groups of `tensor` devices, each with a copy.

    On TPUs a group is a compact part of the slice, so the order of devices may differ from that of
    the other mesh.

    Args:
        mesh: that of training.
        tensor: devices of a group; divides the number of devices.

    Raises:
        DataError: a group would span several slices.
    """
    sizes = [mesh.size // tensor, 1, tensor]
    if list(mesh.devices.shape) == sizes:
        return mesh
    return jax.sharding.Mesh(_grid(list(mesh.devices.flat), sizes), AXES)


def process_row_share(mesh: jax.sharding.Mesh) -> tuple[int, int]:
    """Returns the share of a batch's rows that this process prepares: (index, number of shares).

    Processes that only the `tensor` axis separates hold the same rows and get the same share.

    Raises:
        DataError: the mesh gives processes different numbers of rows, or rows that partly overlap.
    """
    held: dict[int, list[int]] = {}
    for position, devices in enumerate(mesh.devices.reshape(-1, mesh.shape["tensor"])):
        for process in sorted({device.process_index for device in devices}):
            held.setdefault(process, []).append(position)
    shares = sorted({tuple(positions) for positions in held.values()})
    num = row_multiple(mesh)
    if len({len(share) for share in shares}) != 1 or sum(map(len, shares)) != num:
        raise DataError(
            f"mesh {dict(mesh.shape)} gives {len(held)} processes unequal or overlapping rows; "
            "let tensor divide the devices of a process, or be a multiple of them"
        )
    return shares.index(tuple(held[jax.process_index()])), len(shares)


def resolve(
    mesh: jax.sharding.Mesh, names: tuple[str | None, ...], shape: tuple[int, ...], path: str
) -> NamedSharding:
    """Returns the sharding of one parameter.

    Args:
        mesh: the mesh.
        names: logical name of each dim, see `LOGICAL_AXES`.
        shape: size of each dim.
        path: the parameter's name, for error messages.

    Raises:
        DataError: a name is unknown, two dims use one axis, or a dim does not divide evenly; a
            vocabulary need not, see `WIDTH`.
    """
    return NamedSharding(mesh, _spec(dict(mesh.shape), names, shape, path))


def _spec(
    sizes: Mapping[str, int], names: tuple[str | None, ...], shape: tuple[int, ...], path: str
) -> PartitionSpec:
    """Does the work of `resolve`, given the sizes of the mesh axes."""
    if len(names) != len(shape):
        raise DataError(f"{path}: {len(names)} dim names {names} for shape {shape}")
    axes: list[str | tuple[str, ...] | None] = []
    moved: str | None = None
    for dim, (name, size) in enumerate(zip(names, shape, strict=True)):
        if name is None or name not in LOGICAL_AXES:
            raise DataError(
                f"{path}: dim {dim} has the unknown logical name {name!r}; "
                f"known: {', '.join(LOGICAL_AXES)}"
            )
        axis = LOGICAL_AXES[name]
        if name == VOCAB and WIDTH in names and axis is not None and size % sizes[axis]:
            moved, axis = axis, None
        if axis is not None and axis in axes:
            raise DataError(f"{path}: dims {names} use mesh axis {axis!r} twice")
        if axis is not None and size % sizes[axis]:
            raise DataError(
                f"{path}: dim {dim} ({name!r}, size {size}) does not divide by mesh axis "
                f"{axis!r} of size {sizes[axis]}"
            )
        axes.append(axis)
    if moved is not None:
        dim, split = names.index(WIDTH), (WIDTH_AXIS, moved)
        parts = math.prod(sizes[axis] for axis in split)
        if shape[dim] % parts:
            raise DataError(
                f"{path}: neither does the vocabulary ({shape[names.index(VOCAB)]}) divide by mesh "
                f"axis {moved!r} of size {sizes[moved]}, nor the width ({shape[dim]}) by "
                f"{' x '.join(split)} ({parts})"
            )
        axes[dim] = split
    for dim, (name, size) in enumerate(zip(names, shape, strict=True)):
        if name == RANK and RANK_AXIS not in axes and size % sizes[RANK_AXIS] == 0:
            axes[dim] = RANK_AXIS
    return PartitionSpec(*axes)


def is_boxed(leaf: Any) -> bool:
    """Returns whether a leaf of a tree of variables is boxed: carries logical dim names."""
    return hasattr(leaf, "names")


def variable_shardings(mesh: jax.sharding.Mesh, boxed: Any) -> Any:
    """Returns the shardings of a tree of boxed variables, see `models.abstract_variables`.

    Raises:
        DataError: a leaf has no logical dim names, or see `resolve`.
    """

    def one(path: Any, leaf: Any) -> NamedSharding:
        names = getattr(leaf, "names", None)
        where = jax.tree_util.keystr(path, simple=True, separator="/")
        if names is None:
            raise DataError(f"{where}: no logical dim names")
        return resolve(mesh, names, leaf.value.shape, where)

    return jax.tree_util.tree_map_with_path(one, boxed, is_leaf=is_boxed)


def on_one_device(boxed: Any, device: Any) -> Any:
    """Returns shardings that put a whole tree of boxed variables on one device."""
    one = jax.sharding.SingleDeviceSharding(device)
    return jax.tree.map(lambda _: one, boxed, is_leaf=is_boxed)


def placed(boxed: Any, shardings: Any, dtype: Any = None) -> Any:
    """Returns the shapes of boxed variables as `jax.ShapeDtypeStruct`s with shardings.

    Args:
        boxed: as `variable_shardings` takes them.
        shardings: one for each leaf.
        dtype: dtype of all leaves; None keeps the dtype of each.
    """

    def one(leaf: Any, sharding: Any) -> jax.ShapeDtypeStruct:
        kind = leaf.value.dtype if dtype is None else dtype
        return jax.ShapeDtypeStruct(leaf.value.shape, kind, sharding=sharding)

    return jax.tree.map(one, boxed, shardings, is_leaf=is_boxed)


def row_multiple(mesh: jax.sharding.Mesh) -> int:
    """Returns how many parts the mesh splits the rows of a batch into."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def check_batch(mesh: jax.sharding.Mesh, batch_size: int, micro_batches: int) -> None:
    """Checks that a batch divides evenly into micro-batches, and each of them over the mesh.

    Raises:
        DataError: it does not; the message names the nearest size that does.
    """
    parts = micro_batches * row_multiple(mesh)
    if batch_size % parts:
        raise DataError(
            f"batch size {batch_size} must be a multiple of {parts} (micro-batches x data x "
            f"fsdp devices); the nearest is {max(round(batch_size / parts), 1) * parts}"
        )


def replicated(mesh: jax.sharding.Mesh) -> NamedSharding:
    """Returns the sharding of an array that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: jax.sharding.Mesh, leading: int = 0) -> NamedSharding:
    """Returns a sharding that splits rows over the batch axes, after `leading` unsplit dims."""
    return NamedSharding(mesh, PartitionSpec(*[None] * leading, BATCH))


def put_batch(mesh: jax.sharding.Mesh, batch: Any, leading: int = 0) -> Any:
    """Joins the local rows of every process to global arrays, split over the batch axes.

    Args:
        mesh: the mesh.
        batch: a tree of NumPy arrays; dim `leading` is that of the rows, and holds those of this
            process.
        leading: number of unsplit dims before the rows.
    """
    sharding = batch_sharding(mesh, leading)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)


def state_shardings(mesh: jax.sharding.Mesh, abstract_state: Any, trainable_shardings: Any) -> Any:
    """Returns the shardings of optimiser state: moments are split like their parameters.

    The moments mirror the tree of trained parameters, so their paths end in the path of a
    parameter; all other leaves (counters) are replicated.
    """
    flat, _ = jax.tree_util.tree_flatten_with_path(trainable_shardings)
    by_path = {tuple(str(k) for k in path): sharding for path, sharding in flat}

    def one(path: Any, _: Any) -> NamedSharding:
        keys = tuple(str(k) for k in path)
        for start in range(len(keys)):
            if keys[start:] in by_path:
                return by_path[keys[start:]]
        return replicated(mesh)

    return jax.tree_util.tree_map_with_path(one, abstract_state)
