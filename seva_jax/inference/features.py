"""Features of images under the frozen vision tower: kept between runs, or as means."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

from seva_jax.batches.image_inputs import FeatureCache, Features, Pixels
from seva_jax.models import Llava
from seva_jax.runtime import shutdown
from seva_jax.runtime.processes import barrier, gather
from seva_jax.sharding import process_row_share, put_batch, replicated, row_multiple
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
        run = _Tower(model, variables, pixels, mesh, batch_size)
        for group, features, _ in run(missing, lambda key: pixels(of_content[key])):
            for key, value in list(zip(group, features, strict=True))[number::count]:
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

    def read(name: str) -> np.ndarray | None:
        try:
            return pixels(name)
        except ExampleError:
            return None

    for _, features, missing in _Tower(model, variables, pixels, mesh, batch_size)(names, read):
        mean = features.astype(np.float32).mean(axis=1)
        mean /= np.maximum(np.linalg.norm(mean, axis=1, keepdims=True), 1e-12)
        mean[missing] = 0
        yield mean


@dataclasses.dataclass(frozen=True)
class _Tower:
    """Images through the vision tower, group by group, each process preparing its share."""

    model: Llava
    variables: Variables
    pixels: Pixels
    mesh: jax.sharding.Mesh
    batch_size: int

    def __call__(
        self, names: Sequence[str], read: Callable[[str], np.ndarray | None]
    ) -> Iterator[tuple[Sequence[str], np.ndarray, list[int]]]:
        """A group's names, their features [N, P, width], and which of them `read` gave None for."""
        tower = jax.jit(_tower, static_argnums=0, out_shardings=replicated(self.mesh))
        (share, num_shares), unit = process_row_share(self.mesh), row_multiple(self.mesh)
        rows = -(-min(self.batch_size, max(len(names), 1)) // unit) * unit
        local = rows // num_shares
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for first in range(0, len(names), rows):
                shutdown.raise_if_stopping()  # what was given is on disk
                group = names[first : first + rows]
                batch = np.zeros((local, 1, *self.pixels.shape), self.pixels.dtype)
                missing = []
                mine = group[share * local : (share + 1) * local]
                for row, image in enumerate(pool.map(read, mine)):
                    if image is None:
                        missing.append(share * local + row)
                    else:
                        batch[row, 0] = image
                with jax.set_mesh(self.mesh):
                    found = tower(self.model, self.variables, put_batch(self.mesh, batch))
                    features = jax.device_get(found)[: len(group)]
                yield group, features, [row for part in gather(missing) for row in part]


def _key(pixels: Pixels, name: str) -> str:
    """See `Pixels.key`; empty for an image that cannot be read."""
    try:
        return pixels.key(name)
    except ExampleError:
        return ""


def _tower(model: Llava, variables: Variables, pixels_BIHWC: jax.Array) -> Any:
    return model.apply(variables, pixels_BIHWC, method="features")
