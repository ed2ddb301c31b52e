"""What the model is asked under a corruption: the prompt, and its images preprocessed.

What lives here: applying one corruption to one prompt on the host. What does not: the corruptions
(`seva_jax/corrupt`), answering (`rollouts.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

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
    if corruption.space == "sequence":
        names = corrupted_prompt(prompt, corruption, index, seed).images
        return stacked([processing(load_image(name)) for name in names], processing)
    pixels = []
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        for number, name in enumerate(prompt.images):
            key = corruption_key(seed, f"{prompt.id}/{number}", index)
            image = load_image(name)
            if corruption.space == "pixels":
                pixels.append(processing(apply_pixels(corruption, key, image)))
            else:
                pixels.append(np.asarray(apply_jitted(corruption, key, processing(image))))
    return stacked(pixels, processing)


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


def stacked(pixels: list[np.ndarray], processing: ImageProcessing) -> np.ndarray:
    """Returns preprocessed images as one array, [I, H, W, 3]; I may be 0."""
    size = processing.size
    return np.stack(pixels) if pixels else np.zeros((0, size, size, 3), np.float32)
