"""What the model is asked under a corruption: the prompt, and its images preprocessed.

What lives here: applying one corruption to one prompt on the host. What does not: the corruptions
(`seva_jax/corrupt`), answering (`rollouts.py`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence

import jax
import numpy as np

from seva_jax.corrupt import Corruption, SequenceCorruption, apply_pixels, corruption_key
from seva_jax.corrupt.base import apply_jitted
from seva_jax.images import ImageProcessing
from seva_jax.types import Comparison, Prompt


def corrupted_prompt(prompt: Prompt, corruption: Corruption, index: int, seed: int) -> Prompt:
    """Returns the prompt under corruption `index`: itself, unless its sequence is changed."""
    if not isinstance(corruption, SequenceCorruption):
        return prompt
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        return corruption.changed(corruption_key(seed, prompt.id, index), prompt)


def prompt_pixels(
    prompt: Prompt,
    load_image: Callable[[str], np.ndarray],
    processing: ImageProcessing,
    corruptions: Sequence[Corruption],
    seed: int,
) -> list[np.ndarray]:
    """Returns the preprocessed images of a prompt, then its `corrupted_pixels` by each corruption.

    Every image is decoded and preprocessed once.
    """
    load = functools.cache(load_image)
    clean = functools.cache(lambda name: processing(load(name)))
    return [_stacked(map(clean, prompt.images), processing)] + [
        _corrupted(prompt, load, clean, processing, corruption, index, seed)
        for index, corruption in enumerate(corruptions)
    ]


def corrupted_pixels(
    prompt: Prompt,
    load_image: Callable[[str], np.ndarray],
    processing: ImageProcessing,
    corruption: Corruption,
    index: int,
    seed: int,
) -> np.ndarray:
    """Returns preprocessed images of a prompt under corruption `index`, [I, H, W, 3] float32.

    Runs on the host's CPU, so the same images come out on every platform.
    """

    def clean(name: str) -> np.ndarray:
        return processing(load_image(name))

    return _corrupted(prompt, load_image, clean, processing, corruption, index, seed)


def _corrupted(
    prompt: Prompt,
    load_image: Callable[[str], np.ndarray],
    clean: Callable[[str], np.ndarray],
    processing: ImageProcessing,
    corruption: Corruption,
    index: int,
    seed: int,
) -> np.ndarray:
    """Does the work of `corrupted_pixels`; `clean` gives a preprocessed image by name."""
    if corruption.space == "sequence":
        names = corrupted_prompt(prompt, corruption, index, seed).images
        return _stacked(map(clean, names), processing)
    pixels = []
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        for number, name in enumerate(prompt.images):
            key = corruption_key(seed, f"{prompt.id}/{number}", index)
            if corruption.space == "pixels":
                pixels.append(processing(apply_pixels(corruption, key, load_image(name))))
            else:
                pixels.append(np.asarray(apply_jitted(corruption, key, clean(name))))
    return _stacked(pixels, processing)


def corrupted_views(
    comparison: Comparison,
    load_image: Callable[[str], np.ndarray],
    processing: ImageProcessing,
    corruptions: Sequence[Corruption],
    seed: int,
) -> list[tuple[str, np.ndarray]]:
    """Returns what the model saw when it gave the rejected answers of a comparison.

    Args:
        comparison: the comparison.
        load_image: gives an image by name.
        processing: image pipeline.
        corruptions: those of the run.
        seed: the run's.

    Returns:
        The name of each corruption of the comparison, and its `corrupted_pixels`.
    """
    prompt = comparison.prompt
    return [
        (str(chosen), corrupted_pixels(prompt, load_image, processing, chosen, index, seed))
        for index, chosen in ((i, corruptions[i]) for i in comparison.corruptions)
    ]


def _stacked(pixels: Iterable[np.ndarray], processing: ImageProcessing) -> np.ndarray:
    """Returns preprocessed images as one array, [I, H, W, 3]; I may be 0."""
    images, size = list(pixels), processing.size
    return np.stack(images) if images else np.zeros((0, size, size, 3), np.float32)
