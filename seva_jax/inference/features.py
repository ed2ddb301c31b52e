"""Features of images under the frozen vision tower: cached between runs, or averaged."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

from seva_jax.batches.image_inputs import FeatureCache, Features, ImageUse, Pixels
from seva_jax.batches.trees import joint_layout, places_after
from seva_jax.images import ImageProcessing
from seva_jax.inference.passes import run_pass
from seva_jax.models import Llava
from seva_jax.runtime.processes import barrier, gather
from seva_jax.runtime.read_ahead import READERS, read_ahead
from seva_jax.runtime.stores import is_remote
from seva_jax.sharding import process_row_share, row_multiple
from seva_jax.training.step import Variables
from seva_jax.types import ExampleError, ImageLayout, Size, frames_of

_Named = tuple[str, ImageLayout]


def cached_features(
    cache: FeatureCache,
    model: Llava,
    variables: Variables,
    uses: Sequence[ImageUse],
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
        uses: the images, the same on every process. Unreadable ones are left out.
        pixels: decodes and preprocesses an image.
        mesh: where the model lives.
        batch_size: tiles computed together, over all devices.
        progress: called with a number of images that are now cached.
    """
    number, count = jax.process_index(), jax.process_count()
    mine = uses[number::count]
    with ThreadPoolExecutor(_threads(pixels.remote)) as pool:
        my_keys = list(pool.map(lambda use: _key(pixels, use), mine))
    keys: dict[ImageUse, str] = {}
    layouts: dict[str, ImageLayout] = {}
    of_content: dict[str, ImageUse] = {}
    for process, part in enumerate(gather(my_keys)):
        for use, key in zip(uses[process::count], part, strict=True):
            if key:
                hashed, size = key
                keys[use] = hashed
                of_content[hashed] = use
                layouts[hashed] = _layout(pixels.processing, use, size, cache.shape[0])
    # Process 0 decides: on a network file system, others may see its files later.
    missing = gather(cache.lacking(of_content) if number == 0 else [])[0]
    progress(len(uses) - len(missing))
    with ThreadPoolExecutor(_threads(is_remote(cache.directory))) as pool:
        computed = _tower_pass(
            model, variables, [(key, layouts[key]) for key in missing], pixels, mesh, batch_size,
            lambda key: pixels(of_content[key]),
        )  # fmt: skip
        for group in computed:
            list(pool.map(lambda image: cache.write(*image), group[number::count]))
            progress(len(group))
    barrier("image features")
    return Features(cache, keys)


def _layout(processing: ImageProcessing, use: ImageUse, size: Size, features: int) -> ImageLayout:
    """Returns the layout of an image or a video.

    Args:
        processing: the image pipeline.
        use: the image or the video.
        size: its height and width.
        features: features of a tile.
    """
    if use.seconds:
        parts = processing.layouts(frames_of(size, len(use.names), use.seconds), features)
        return joint_layout(parts, features, processing.blended)
    # An image that is not alone is laid out as one of several.
    return processing.layouts([size] * (1 if use.alone else 2), features)[0]


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
    width = model.config.feature_width
    layout = pixels.processing.small_layout(model.config.tile_features)

    def read(name: str) -> np.ndarray | None:
        try:
            return pixels.small(name)
        except ExampleError:
            return None

    images = [(name, layout) for name in names]
    computed = _tower_pass(model, variables, images, pixels, mesh, batch_size, read)
    for group in computed:
        means = np.zeros((len(group), width), np.float32)
        for mean_E, (_, features_IPE) in zip(means, group, strict=True):
            if features_IPE is not None:
                mean_E[:] = features_IPE.astype(np.float32).mean(axis=(0, 1))
        means /= np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-12)
        yield means


def _tower_pass(
    model: Llava,
    variables: Variables,
    images: Sequence[_Named],
    pixels: Pixels,
    mesh: jax.sharding.Mesh,
    batch_size: int,
    read: Callable[[str], np.ndarray | None],
) -> Iterator[list[tuple[str, np.ndarray | None]]]:
    """Yields images with the features of their tiles, [I, P, E] or None, batch by batch.

    Every process prepares its share of the images and gets all features.

    Args:
        model: the module.
        variables: its variables.
        images: what each image is called, and its layout.
        pixels: the image pipeline.
        mesh: where the model lives.
        batch_size: tiles computed together, over all devices.
        read: returns the tiles of an image, [I, X]; None for one that cannot be read.
    """
    (share, num_shares), multiple = process_row_share(mesh), row_multiple(mesh)
    sizes = [layout.tiles for _, layout in images]
    room = max(-(-min(batch_size, sum(sizes)) // multiple), max(sizes, default=1))
    rows = list[list[_Named]]([[]])  # each holds whole images: tiles of one may see each other
    for image in images:
        if sum(layout.tiles for _, layout in rows[-1]) + image[1].tiles > room:
            rows.append([])
        rows[-1].append(image)
    rows += [[] for _ in range(-len(rows) % multiple)]
    groups = [rows[first : first + multiple] for first in range(0, len(rows), multiple)]
    local = multiple // num_shares
    mine = slice(share * local, (share + 1) * local)

    def tower(variables: Variables, tiles: tuple[jax.Array, jax.Array]) -> Any:
        return model.apply(variables, *tiles, method="features")

    threads = _threads(pixels.remote)
    names = [name for group in groups for row in group[mine] for name, _ in row]
    loaded = read_ahead(read, names, threads, max(threads, local * room))

    def batches() -> Iterator[tuple[tuple[list[list[_Named]], list[str]], tuple[Any, Any]]]:
        for group in groups:
            batch = np.zeros((local, room, *pixels.shape), pixels.dtype)
            place_BI5 = np.zeros((local, room, 5), np.int32)
            missing = list[str]()
            for row, own in enumerate(group[mine]):
                at = pictures = 0
                for name, layout in own:
                    tiles_IX, end = next(loaded), at + layout.tiles
                    if tiles_IX is None:
                        missing.append(name)
                    else:
                        batch[row, at:end] = tiles_IX
                    if layout.native is not None:
                        place_BI5[row, at:end], pictures = places_after(layout.native, pictures)
                    at = end
            yield (group, missing), (batch, place_BI5)

    with contextlib.closing(loaded):
        for (group, missing), features_BNE in run_pass(tower, variables, batches(), mesh):
            lost = {name for part in gather(missing) for name in part}
            out = list[tuple[str, np.ndarray | None]]()
            for row, features_NE in zip(group, features_BNE, strict=True):
                features_IPE = features_NE.reshape(room, -1, features_NE.shape[-1])
                at = 0
                for name, layout in row:
                    own = None if name in lost else features_IPE[at : at + layout.tiles]
                    out.append((name, own))
                    at += layout.tiles
            yield out


def _threads(remote: bool) -> int:
    """Returns how many images, or files of a cache, are read or written at a time."""
    return READERS if remote else os.cpu_count() or 1


def _key(pixels: Pixels, use: ImageUse) -> tuple[str, Size] | None:
    """Returns the key and the size of an image, see `Pixels.key`; None if it cannot be read."""
    try:
        return pixels.key(use)
    except ExampleError:
        return None
