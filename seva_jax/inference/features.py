"""Features of images under the frozen vision tower: cached between runs, or averaged."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

from seva_jax.batches.image_inputs import FeatureCache, Features, Pixels
from seva_jax.inference.passes import run_pass
from seva_jax.models import Llava
from seva_jax.runtime.processes import barrier, gather
from seva_jax.runtime.read_ahead import READERS, read_ahead
from seva_jax.runtime.stores import is_remote
from seva_jax.sharding import process_row_share, row_multiple
from seva_jax.training.step import Variables
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
    """Returns features of images, computing those that the cache lacks and adding them to it.

    Every image is decoded and hashed, so a changed image is noticed. All processes must see the
    same cache directory.

    Args:
        cache: the cache of this tower.
        model: the module.
        variables: its variables.
        names: names of the images, the same on every process. Unreadable ones are left out.
        pixels: decodes and preprocesses an image.
        mesh: where the model lives.
        batch_size: images computed together, over all devices.
        progress: called with a number of images that are now cached.
    """
    number, count = jax.process_index(), jax.process_count()
    keys: dict[str, str] = {}
    mine = names[number::count]
    with ThreadPoolExecutor(_threads(pixels.remote)) as pool:
        my_keys = dict(zip(mine, pool.map(lambda name: _key(pixels, name), mine), strict=True))
    for part in gather(my_keys):
        keys |= {name: key for name, key in part.items() if key}
    of_content = {key: name for name, key in keys.items()}
    # Process 0 decides: on a network file system, others may see its files later.
    missing = gather(cache.lacking(of_content) if number == 0 else [])[0]
    progress(len(names) - len(missing))
    with ThreadPoolExecutor(_threads(is_remote(cache.directory))) as pool:
        computed = _tower_pass(
            model, variables, missing, pixels, mesh, batch_size,
            lambda key: pixels(of_content[key]),
        )  # fmt: skip
        for group, features, _ in computed:
            list(pool.map(cache.write, group[number::count], features[number::count]))
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
    """Yields the mean over patches of each image's features, scaled to length 1, batch by batch.

    Every process prepares its share of the images and gets all features. Nothing is cached.

    Args:
        model: the module.
        variables: its variables.
        names: names of the images.
        pixels: decodes and preprocesses an image.
        mesh: where the model lives.
        batch_size: images computed together, over all devices.

    Returns:
        float32 [N, E]; zeros for an image that cannot be read.
    """

    def read(name: str) -> np.ndarray | None:
        try:
            return pixels(name)
        except ExampleError:
            return None

    computed = _tower_pass(model, variables, names, pixels, mesh, batch_size, read)
    for _, features, missing in computed:
        mean = features.astype(np.float32).mean(axis=1)
        mean /= np.maximum(np.linalg.norm(mean, axis=1, keepdims=True), 1e-12)
        mean[missing] = 0
        yield mean


def _tower_pass(
    model: Llava,
    variables: Variables,
    names: Sequence[str],
    pixels: Pixels,
    mesh: jax.sharding.Mesh,
    batch_size: int,
    read: Callable[[str], np.ndarray | None],
) -> Iterator[tuple[Sequence[str], np.ndarray, list[int]]]:
    """Yields the names of a batch, their features [N, P, E], and which of them are unreadable.

    Every process prepares its share of the images.
    """
    (share, num_shares), multiple = process_row_share(mesh), row_multiple(mesh)
    rows = -(-min(batch_size, max(len(names), 1)) // multiple) * multiple
    local = rows // num_shares

    def tower(variables: Variables, pixels_BIHWC: jax.Array) -> Any:
        return model.apply(variables, pixels_BIHWC, method="features")

    groups = [names[first : first + rows] for first in range(0, len(names), rows)]
    mine = [group[share * local : (share + 1) * local] for group in groups]
    threads = _threads(pixels.remote)
    images = read_ahead(read, itertools.chain(*mine), threads, max(threads, local))

    def batches() -> Iterator[tuple[tuple[Sequence[str], list[int]], np.ndarray]]:
        for group, members in zip(groups, mine, strict=True):
            batch = np.zeros((local, 1, *pixels.shape), pixels.dtype)
            missing = []
            for row, image in enumerate(itertools.islice(images, len(members))):
                if image is None:
                    missing.append(share * local + row)
                else:
                    batch[row, 0] = image
            yield (group, missing), batch

    with contextlib.closing(images):
        for (group, missing), features in run_pass(tower, variables, batches(), mesh):
            yield group, features[: len(group)], [row for part in gather(missing) for row in part]


def _threads(remote: bool) -> int:
    """Returns how many images, or files of a cache, are read or written at a time."""
    return READERS if remote else os.cpu_count() or 1


def _key(pixels: Pixels, name: str) -> str:
    """Returns the key of an image, see `Pixels.key`; empty if it cannot be read."""
    try:
        return pixels.key(name)
    except ExampleError:
        return ""
