"""Finds the image tokens that show a part of an image, for attention to it.

What lives here: `shown_tokens`. What does not: where the features of a tile are in an image
(`ImageProcessing.places`), and measuring attention (`seva_jax/inference/answer_stats.py`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from seva_jax.images.compose import Box
from seva_jax.images.preprocess import ImageProcessing, still
from seva_jax.types import DataError, Frame, ImageLayout, ImageSize


def shown_tokens(
    processing: ImageProcessing,
    features: int,
    sizes: Sequence[ImageSize],
    image: int,
    box: Box | None = None,
) -> np.ndarray:
    """Returns which of the image tokens of a prompt show an image, or a part of it.

    All tokens of an image show it. A part is shown by the tokens whose centre is in it, in every
    tile; of a token that is a sum of several features, it is the mean of theirs. Newlines and the
    feature of a class token show no part.

    Args:
        processing: the image pipeline.
        features: features that the vision tower makes of a tile.
        sizes: heights and widths of the images of the prompt.
        image: which of the images, from 0.
        box: the part, as shares of the width and height that it gives; None for all of the image.

    Returns:
        bool [N], the tokens of all images in order.

    Raises:
        DataError: the images are frames of a video.
    """
    if any(isinstance(size, Frame) for size in sizes):
        raise DataError("attention is measured to parts of images, not of videos; ask about images")
    images = still(sizes)
    shown = [np.zeros(x.num_tokens, bool) for x in processing.layouts(sizes, features)]
    layout = processing.layouts(sizes, features)[image]
    shown[image][:] = True
    if box is not None:
        side = math.isqrt(features)
        places_ISS2 = processing.places(images[image], side, len(sizes) == 1)
        # A tower that keeps its class token has that first; it is nowhere.
        places_IP2 = np.full((layout.tiles, features, 2), -1.0)
        places_IP2[:, features - side * side :] = places_ISS2.reshape(layout.tiles, -1, 2)
        shown[image][:] = _inside(layout, places_IP2.reshape(-1, 2), box)
    return np.concatenate(shown)


def _inside(layout: ImageLayout, places_F2: np.ndarray, box: Box) -> np.ndarray:
    """Returns which tokens of an image have their centre in a box.

    Args:
        layout: its layout.
        places_F2: centres of the features of its tiles, see `ImageProcessing.places`.
        box: the box.
    """
    place_N2 = places_F2[layout.patch_N]
    if layout.blend is not None:
        index_NM, weight_NM = layout.blend
        place_N2 = (places_F2[index_NM] * weight_NM[..., None]).sum(1)
    y_N, x_N = place_N2.T
    in_y = (box.top / box.height <= y_N) & (y_N < box.bottom / box.height)
    in_x = (box.left / box.width <= x_N) & (x_N < box.right / box.width)
    return in_y & in_x & (layout.patch_N >= 0)
