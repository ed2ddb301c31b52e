"""Features of images under the frozen vision tower: kept between runs, or as means."""

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


def mean_features(
    model: Llava,
    variables: Variables,
    names: Sequence[str],
    pixels: Pixels,
    mesh: jax.sharding.Mesh,
    batch_size: int,
) -> Iterator[np.ndarray]:
    """Mean over patches of each image's features, scaled to length 1, group by group in order.

    Every process prepares its share of the images and gets all features. Nothing is cached.

    Args:
        model: the module.
        variables: its variables.
        names: of the images.
        pixels: where they come from.
        mesh: where the model lives.
        batch_size: images computed together, over all devices.

    Returns:
        float32 [images of the group, width]; zeros for an image that cannot be read.
    """
    tower = jax.jit(_tower, static_argnums=0, out_shardings=replicated(mesh))
    (share, num_shares), unit = row_shard(mesh), row_unit(mesh)
    rows = -(-min(batch_size, max(len(names), 1)) // unit) * unit
    local = rows // num_shares

    def read(name: str) -> np.ndarray | None:
        try:
            return pixels(name)
        except ExampleError:
            return None

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for group in _groups(names, rows):
            stopping.check()  # what was given is on disk
            images = list(pool.map(read, group[share * local : (share + 1) * local]))
            batch = np.zeros((local, 1, *pixels.shape), pixels.dtype)
            for row, image in enumerate(images):
                if image is not None:
                    batch[row, 0] = image
            with jax.set_mesh(mesh):
                found = jax.device_get(tower(model, variables, put_batch(mesh, batch)))
            mean = found.astype(np.float32).mean(axis=1)[: len(group)]
            mean /= np.maximum(np.linalg.norm(mean, axis=1, keepdims=True), 1e-12)
            missing = [share * local + row for row, image in enumerate(images) if image is None]
            mean[[row for part in gather(missing) for row in part]] = 0
            yield mean


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
