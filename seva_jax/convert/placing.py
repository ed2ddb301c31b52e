"""Puts what is read from files onto devices: who reads what.

From a disk every device's part is read separately. From an object store every byte is read once:
by a process for all its devices, and by all processes together, each of which reads other layers or
rows. The devices then exchange what they need, over links that are faster than those to a store.
What does not live here: reading itself (`load.py`, `tensors.py`).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec, Sharding

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
    reading = sharding
    if not sharding.is_fully_addressable:
        reading = spread(sharding, shape, slow_dims)
    mine = reading.addressable_devices_indices_map(shape).values()
    parts = {_key(part): part for part in (_bounds(index, shape) for index in mine)}
    arrays = dict(zip(parts, read(list(parts.values())), strict=True))
    if reading is not sharding:  # as integers, which no collective rounds or normalises
        arrays = {key: array.view(_BITS[dtype.itemsize]) for key, array in arrays.items()}
    array = jax.make_array_from_callback(
        shape, reading, lambda index: arrays[_key(_bounds(index, shape))]
    )
    return array if reading is sharding else _exchange(dtype, sharding)(array)


def spread(sharding: NamedSharding, shape: Shape, slow_dims: Sequence[int]) -> NamedSharding:
    """Returns a sharding that splits an array over all devices of a mesh, if its dims allow it.

    An axis of the mesh that divides none of the dims is left out: devices along it hold copies.

    Args:
        sharding: a sharding on that mesh.
        shape: the array's shape.
        slow_dims: the dims to split, in order of preference.
    """
    axes: dict[int, tuple[str, ...]] = dict.fromkeys(range(len(shape)), ())
    sizes = sharding.mesh.shape
    for axis, size in sizes.items():
        for dim in slow_dims:
            if shape[dim] % (size * math.prod(sizes[name] for name in axes[dim])) == 0:
                axes[dim] += (axis,)
                break
    return NamedSharding(sharding.mesh, PartitionSpec(*(names or None for names in axes.values())))


@functools.lru_cache
def _exchange(dtype: np.dtype, sharding: Sharding) -> Callable[[jax.Array], jax.Array]:
    def numbers(bits: jax.Array) -> jax.Array:
        return jax.lax.bitcast_convert_type(bits, dtype)

    return jax.jit(numbers, out_shardings=sharding)


def _bounds(index: Index | None, shape: Shape) -> Index:
    whole = index or (slice(None),) * len(shape)
    return tuple(slice(*part.indices(size)[:2]) for part, size in zip(whole, shape, strict=True))


def _key(part: Index) -> tuple[tuple[int, int], ...]:
    return tuple((side.start, side.stop) for side in part)
