"""Puts what is read from files onto devices: who reads what.

From a disk every device's part is read separately; on accelerators, linear kernels are put there
as the file has them and transposed by the devices. From an object store every byte is read once:
by a process for all its devices, and by all processes together, each of which reads other layers or
rows, of one parameter at a time. The devices then exchange what they need, over links that are
faster than those to a store. What does not live here: reading itself (`load.py`, `tensors.py`).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from seva_jax.convert.table import Index, Shape

_BITS = {2: np.uint16, 4: np.uint32}


def on_devices(
    shape: Shape,
    dtype: np.dtype,
    sharding: Any,
    read: Callable[[Sequence[Index]], list[np.ndarray]],
    slow_dims: Sequence[int] | None = None,
) -> jax.Array:
    """Returns an array on devices, given a function that reads parts of it.

    Args:
        shape: the array's shape.
        dtype: the array's dtype.
        sharding: the array's sharding.
        read: reads parts, given slices with explicit bounds for each dim.
        slow_dims: for an object store, the dims whose parts are single ranges of bytes. None for a
            disk, where one part is read at a time.
    """
    if slow_dims is None:
        return jax.make_array_from_callback(
            shape, sharding, lambda index: read([_bounds(index, shape)])[0]
        )
    reading = _reading(sharding, shape, slow_dims)
    mine = reading.addressable_devices_indices_map(shape).values()
    parts = {_key(part): part for part in (_bounds(index, shape) for index in mine)}
    arrays = dict(zip(parts, read(list(parts.values())), strict=True))
    if reading is not sharding:  # as integers, which no collective rounds or normalises
        arrays = {key: array.view(_BITS[dtype.itemsize]) for key, array in arrays.items()}
    array = jax.make_array_from_callback(
        shape, reading, lambda index: arrays[_key(_bounds(index, shape))]
    )
    if reading is sharding:
        return array
    return _exchange(dtype, reading, sharding, len(shape))(array)


def transposes(sharding: Any, shape: Shape) -> bool:
    """Returns whether `transposed_on_devices` serves an array: on accelerators, layers not split.

    Args:
        sharding: the array's sharding.
        shape: the array's shape.
    """
    device = next(iter(sharding.device_set))
    return device.platform != "cpu" and (
        len(shape) == 2 or sharding.shard_shape(shape)[0] == shape[0]
    )


def transposed_on_devices(
    shape: Shape,
    sharding: Any,
    read: Callable[[int, Index], np.ndarray],
) -> jax.Array:
    """Returns an array of kernels, given a function that reads parts of their transposes.

    The host copies nothing that it reads. The devices transpose one layer at a time and put it in
    its place in the stack, so they hold a layer in addition to the result.

    Args:
        shape: the array's shape, [L, in, out] or [in, out].
        sharding: the array's sharding.
        read: returns a part of a layer, given the layer's number and slices with explicit bounds
            for the dims [out, in]; the layer is 0 without L.
    """
    stacked = len(shape) == 3
    theirs = shape[:0:-1] if stacked else shape[::-1]
    reading = sharding
    if isinstance(sharding, NamedSharding):
        axes = _axes(sharding, len(shape))
        reading = _named(sharding.mesh, axes[:0:-1] if stacked else axes[::-1])

    def layer(number: int) -> jax.Array:
        return jax.make_array_from_callback(
            theirs, reading, lambda index: read(number, _bounds(index, theirs))
        )

    first = layer(0)
    if not stacked:
        return _transposed(sharding)(first)
    stack = _empty(shape, first.dtype, sharding)()
    for number in range(shape[0]):
        stack = _with_layer(sharding)(stack, layer(number) if number else first, number)
    return stack


@functools.cache
def _transposed(sharding: Any) -> Callable[[jax.Array], jax.Array]:
    return jax.jit(jnp.transpose, out_shardings=sharding)


@functools.cache
def _empty(shape: Shape, dtype: np.dtype, sharding: Any) -> Callable[[], jax.Array]:
    return jax.jit(lambda: jnp.zeros(shape, dtype), out_shardings=sharding)


@functools.cache
def _with_layer(sharding: Any) -> Callable[[jax.Array, jax.Array, int], jax.Array]:
    """Returns a program that puts a transposed layer into a stack, whose memory it reuses."""

    def put(stack: jax.Array, layer: jax.Array, number: jax.Array) -> jax.Array:
        # As integers, which no transposition rounds or normalises.
        bits = _BITS[stack.dtype.itemsize]
        cast = jax.lax.bitcast_convert_type
        turned = cast(layer, bits).T[None]
        stack = jax.lax.dynamic_update_slice_in_dim(cast(stack, bits), turned, number, axis=0)
        return cast(stack, layer.dtype)

    return jax.jit(put, donate_argnums=0, out_shardings=sharding)


def spread(sharding: NamedSharding, shape: Shape, slow_dims: Sequence[int]) -> NamedSharding:
    """Returns a sharding that splits an array over all devices of a mesh, if its dims allow it.

    Axes of the mesh that split slow dims already stay there. An axis that divides none is left out:
    devices along it hold copies.

    Args:
        sharding: a sharding on that mesh.
        shape: the array's shape.
        slow_dims: the dims to split, in order of preference.
    """
    sizes = sharding.mesh.shape
    wanted = _axes(sharding, len(shape))
    axes = [names if dim in slow_dims else () for dim, names in enumerate(wanted)]
    for axis in [name for name in sizes if not any(name in names for names in axes)]:
        for dim in slow_dims:
            if shape[dim] % (sizes[axis] * math.prod(sizes[name] for name in axes[dim])) == 0:
                axes[dim] += (axis,)
                break
    return _named(sharding.mesh, axes)


def _axes(sharding: NamedSharding, num_dims: int) -> list[tuple[str, ...]]:
    """Returns the axes of the mesh that split each dim, those of longer strides first."""
    spec = [*sharding.spec, *(None,) * (num_dims - len(sharding.spec))]
    return [x if isinstance(x, tuple) else () if x is None else (x,) for x in spec]


def _named(mesh: Any, axes: Sequence[tuple[str, ...]]) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec(*(names or None for names in axes)))


def _reading(sharding: Any, shape: Shape, slow_dims: Sequence[int]) -> Any:
    """Returns the sharding by which processes read: the array's own if there is one process."""
    return sharding if sharding.is_fully_addressable else spread(sharding, shape, slow_dims)


def num_read(sharding: Any, shape: Shape, slow_dims: Sequence[int]) -> int:
    """Returns how many elements all processes together read of an array in an object store.

    It is the array's size where its dims can be divided among all devices.

    Args:
        sharding: the array's sharding.
        shape: the array's shape.
        slow_dims: see `on_devices`.
    """
    parts = {
        (device.process_index, _key(_bounds(index, shape)))
        for device, index in _reading(sharding, shape, slow_dims).devices_indices_map(shape).items()
    }
    return sum(math.prod(stop - start for start, stop in part) for _, part in parts)


@functools.lru_cache
def _exchange(
    dtype: np.dtype, reading: NamedSharding, sharding: NamedSharding, num_dims: int
) -> Callable[[jax.Array], jax.Array]:
    """Returns a program that turns bits, as they were read, into numbers where they belong.

    One axis of the mesh moves at a time, the last one of its dim first. XLA does that by exchanging
    parts; it would gather whole arrays for several moves at once.
    """
    now, wanted, steps = _axes(reading, num_dims), _axes(sharding, num_dims), []
    for dim in range(num_dims):
        while now[dim] != wanted[dim][: len(now[dim])]:
            *kept, axis = now[dim]
            now[dim] = tuple(kept)
            for target, names in enumerate(wanted):
                if axis in names and now[target] == names[: names.index(axis)]:
                    now[target] += (axis,)
            steps.append(_named(sharding.mesh, now))

    def numbers(bits: jax.Array) -> jax.Array:
        for step in (*steps, sharding):
            bits = jax.lax.with_sharding_constraint(bits, step)
        return jax.lax.bitcast_convert_type(bits, dtype)

    return jax.jit(numbers, out_shardings=sharding)


def _bounds(index: Index | None, shape: Shape) -> Index:
    whole = index or (slice(None),) * len(shape)
    return tuple(slice(*part.indices(size)[:2]) for part, size in zip(whole, shape, strict=True))


def _key(part: Index) -> tuple[tuple[int, int], ...]:
    return tuple((side.start, side.stop) for side in part)
