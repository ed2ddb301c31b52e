"""What the model is asked under a corruption: the prompt, and its images preprocessed.

What lives here: applying one corruption to one prompt on the host. What does not: the corruptions
(`seva_jax/corrupt`), answering (`rollouts.py`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np

from seva_jax.batches.image_inputs import ImageUse, Pixels, image_uses
from seva_jax.corrupt import Corruption, SequenceCorruption, apply_pixels, corruption_key
from seva_jax.corrupt.base import apply_jitted
from seva_jax.images import ImageProcessing
from seva_jax.types import FRAME, Comparison, Prompt, Size


def corrupted_prompt(prompt: Prompt, corruption: Corruption, index: int, seed: int) -> Prompt:
    """Returns the prompt under corruption `index`: itself, unless its sequence is changed."""
    if not isinstance(corruption, SequenceCorruption):
        return prompt
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        return corruption.changed(corruption_key(seed, prompt.id, index), prompt)


class PromptImages(NamedTuple):
    """The images of a prompt as the model gets them.

    Attributes:
        tiles_IHWC: float32, the tiles of all images.
        sizes: height and width of each image before it was preprocessed; `FRAME` for frames.
    """

    tiles_IHWC: np.ndarray
    sizes: tuple[Size, ...]


class _Image(NamedTuple):
    tiles_IHWC: np.ndarray
    size: Size


def prompt_images(
    prompt: Prompt,
    load_image: Callable[[str], np.ndarray],
    processing: ImageProcessing,
    corruptions: Sequence[Corruption],
    seed: int,
) -> list[PromptImages]:
    """Returns the preprocessed images of a prompt: clean, then under each corruption.

    Every image is decoded and preprocessed once. Corruptions run on the host's CPU, so the same
    images come out on every platform.
    """
    load = functools.cache(load_image)
    clean = functools.cache(functools.partial(_clean, load, processing))
    variants = [[clean(use) for use in image_uses(prompt)]] + [
        _corrupted(prompt, load, clean, processing, corruption, index, seed)
        for index, corruption in enumerate(corruptions)
    ]
    none = np.zeros((0, processing.size, processing.size, 3), np.float32)
    return [
        PromptImages(
            np.concatenate([none, *(image.tiles_IHWC for image in images)]),
            tuple(image.size for image in images),
        )
        for images in variants
    ]


def _clean(load: Callable[[str], np.ndarray], processing: ImageProcessing, use: ImageUse) -> _Image:
    if use.frame:
        return _Image(Pixels(load, processing)(use), FRAME)
    height, width, _ = load(use.name).shape
    return _Image(Pixels(load, processing)(use), (height, width))


def _corrupted(
    prompt: Prompt,
    load: Callable[[str], np.ndarray],
    clean: Callable[[ImageUse], _Image],
    processing: ImageProcessing,
    corruption: Corruption,
    index: int,
    seed: int,
) -> list[_Image]:
    """Returns the images of a prompt under corruption `index`.

    Args:
        prompt: the prompt.
        load: gives a decoded image by name.
        clean: gives a preprocessed image.
        processing: image pipeline.
        corruption: the corruption.
        index: its index among those of the run.
        seed: the run's.
    """
    if corruption.space == "sequence":
        return [clean(use) for use in image_uses(corrupted_prompt(prompt, corruption, index, seed))]
    images = []
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        for number, use in enumerate(image_uses(prompt)):
            key = corruption_key(seed, f"{prompt.id}/{number}", index)
            if corruption.space == "pixels":
                changed_HWC = apply_pixels(corruption, key, load(use.name))
                images.append(_clean(lambda _, x=changed_HWC: x, processing, use))
                continue
            tiles_IHWC, size = clean(use)
            change = functools.partial(_changed, corruption, key)
            images.append(_Image(processing.changed(tiles_IHWC, size, change), size))
    return images


def _changed(
    corruption: Corruption, key: jax.Array, number: int, image_HWC: np.ndarray
) -> np.ndarray:
    """Returns a tile, or a picture, under a corruption of normalised pixels.

    Noise is drawn for each tile; the first one has the noise that the only one would have.
    """
    key = jax.random.fold_in(key, number) if number else key
    return np.asarray(apply_jitted(corruption, key, image_HWC))


def corrupted_views(
    comparison: Comparison,
    load_image: Callable[[str], np.ndarray],
    processing: ImageProcessing,
    corruptions: Sequence[Corruption],
    seed: int,
) -> list[tuple[str, list[np.ndarray]]]:
    """Returns what the model saw when it gave the rejected answers of a comparison.

    Args:
        comparison: the comparison.
        load_image: gives an image by name.
        processing: image pipeline.
        corruptions: those of the run.
        seed: the run's.

    Returns:
        The name of each corruption of the comparison, and the images that it left, each whole:
        float32 [H, W, 3].
    """
    prompt = comparison.prompt
    load = functools.cache(load_image)
    clean = functools.cache(functools.partial(_clean, load, processing))
    views = []
    for index in comparison.corruptions:
        chosen = corruptions[index]
        images = _corrupted(prompt, load, clean, processing, chosen, index, seed)
        views.append((str(chosen), [processing.view(*x) for x in images]))
    return views
