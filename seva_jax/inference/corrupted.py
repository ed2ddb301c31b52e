"""What the model is asked under a corruption: the prompt, and its images preprocessed.

What lives here: applying one corruption to one prompt on the host. What does not: the corruptions
(`seva_jax/corrupt`), answering (`rollouts.py`).
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np

from seva_jax.batches.image_inputs import ImageUse, Picture, Pixels, image_uses
from seva_jax.corrupt import Corruption, SequenceCorruption, apply_pixels, corruption_key
from seva_jax.corrupt.base import apply_jitted
from seva_jax.images import ImageProcessing
from seva_jax.types import Comparison, ImageSize, Prompt


def corrupted_prompt(prompt: Prompt, corruption: Corruption, index: int, seed: int) -> Prompt:
    """Returns the prompt under corruption `index`: itself, unless its sequence is changed."""
    if not isinstance(corruption, SequenceCorruption):
        return prompt
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        return corruption.changed(corruption_key(seed, prompt.id, index), prompt)


class PromptImages(NamedTuple):
    """The images of a prompt as the model gets them.

    Attributes:
        tiles_IHWC: float32, the tiles of all images, or of the video.
        sizes: height and width of each image before it was preprocessed; or the frames.
    """

    tiles_IHWC: np.ndarray
    sizes: tuple[ImageSize, ...]


_Pictures = list[list[Picture]]  # for each image or video, itself or its frames


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
    clean = Pixels(functools.cache(load_image), processing)
    pictures_of = functools.cache(clean.pictures)
    variants: list[_Pictures] = [[pictures_of(use) for use in image_uses(prompt)]] + [
        _corrupted(prompt, clean, pictures_of, corruption, index, seed)
        for index, corruption in enumerate(corruptions)
    ]

    def joined(pictures: list[Picture]) -> np.ndarray:
        return processing.joined([picture.tiles_IHWC for picture in pictures])

    none = np.zeros((0, *processing.tile_shape), np.float32)
    return [
        PromptImages(
            np.concatenate([none, *(joined(one) for one in each)]),
            tuple(x.size for one in each for x in one),
        )
        for each in variants
    ]


def _corrupted(
    prompt: Prompt,
    clean: Pixels,
    pictures_of: Callable[[ImageUse], list[Picture]],
    corruption: Corruption,
    index: int,
    seed: int,
) -> _Pictures:
    """Returns the images of a prompt under corruption `index`.

    Args:
        prompt: the prompt.
        clean: decodes and preprocesses images.
        pictures_of: its pictures, kept.
        corruption: the corruption.
        index: its index among those of the run.
        seed: the run's.
    """
    if corruption.space == "sequence":
        changed = corrupted_prompt(prompt, corruption, index, seed)
        return [pictures_of(use) for use in image_uses(changed)]
    numbers, out = itertools.count(), _Pictures()
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        for use in image_uses(prompt):
            out.append([])
            for name, (tiles_IHWC, size) in zip(use.names, pictures_of(use), strict=True):
                key = corruption_key(seed, f"{prompt.id}/{next(numbers)}", index)
                if corruption.space == "pixels":
                    changed_HWC = apply_pixels(corruption, key, clean.load_image(name))
                    out[-1].append(clean.picture(changed_HWC, use, size))
                    continue
                change = functools.partial(_changed, corruption, key)
                changed_IHWC = clean.processing.changed(tiles_IHWC, size, change)
                out[-1].append(Picture(changed_IHWC, size))
    return out


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
    clean = Pixels(functools.cache(load_image), processing)
    pictures_of = functools.cache(clean.pictures)
    views = []
    for index in comparison.corruptions:
        chosen = corruptions[index]
        pictures = _corrupted(prompt, clean, pictures_of, chosen, index, seed)
        views.append((str(chosen), [processing.view(*x) for one in pictures for x in one]))
    return views
