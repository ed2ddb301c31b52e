"""Features of images under the frozen vision tower, computed once and kept between runs."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

from seva_jax import stopping
from seva_jax.data.inputs import FeatureCache, Features, Pixels
from seva_jax.models import Llava
from seva_jax.processes import barrier, gather
from seva_jax.sharding import put_batch, replicated, row_shard, row_unit
from seva_jax.step import Variables
from seva_jax.types import ExampleError


def cached_features(
    cache: FeatureCache,
    model: Llava,
    variables: Variables,
    names: Sequence[str],
    pixels: Pixels,
    mesh: jax.sharding.Mesh,
    batch_size: int,
    progress: Callable[[int], Any],
) -> Features:
    """Features of images; those that the cache lacks are computed and added to it.

    Every image is decoded and hashed, so one that changed is noticed. All processes see one
    directory.

    Args:
        cache: of this tower.
        model: the module.
        variables: its variables.
        names: of the images, the same on every process; one that cannot be read is left out.
        pixels: where they come from.
        mesh: where the model lives.
        batch_size: images computed together, over all devices.
        progress: called with a number of images that are there.
    """
    number, count = jax.process_index(), jax.process_count()
    keys: dict[str, str] = {}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        mine = names[number::count]
        found = dict(zip(mine, pool.map(lambda name: _key(pixels, name), mine), strict=True))
        for part in gather(found):
            keys |= {name: key for name, key in part.items() if key}
        of_content = {key: name for name, key in keys.items()}
        # Process 0 decides: on a network's file system others may see its files later.
        missing = gather([key for key in of_content if not cache.path(key).exists()])[0]
        progress(len(names) - len(missing))
        tower = jax.jit(_tower, static_argnums=0, out_shardings=replicated(mesh))
        share, num_shares = row_shard(mesh)
        unit = row_unit(mesh)
        rows = -(-min(batch_size, max(len(missing), 1)) // unit) * unit
        local = rows // num_shares
        for group in _groups(missing, rows):
            stopping.check()
            wanted = group[share * local : (share + 1) * local]
            batch = np.zeros((local, 1, *pixels.shape), pixels.dtype)
            for row, image in enumerate(pool.map(lambda k: pixels(of_content[k]), wanted)):
                batch[row, 0] = image
            with jax.set_mesh(mesh):
                features = jax.device_get(tower(model, variables, put_batch(mesh, batch)))
            for key, value in list(zip(group, features, strict=False))[number::count]:
                cache.write(key, value)
            progress(len(group))
    barrier("image features")
    return Features(cache, keys)


def _key(pixels: Pixels, name: str) -> str:
    """See `Pixels.key`; empty for an image that cannot be read."""
    try:
        return pixels.key(name)
    except ExampleError:
        return ""


def _groups(keys: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    return (keys[i : i + size] for i in range(0, len(keys), size))


def _tower(model: Llava, variables: Variables, pixels_BIHWC: jax.Array) -> Any:
    return model.apply(variables, pixels_BIHWC, method="features")
