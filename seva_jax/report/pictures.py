"""Images as data URLs that keep a page within its size limit.

What lives here: dividing the page's size among images, thumbnail size, quality and encoding. What
does not: the markup around an image (`gallery.py`).
"""

from __future__ import annotations

import base64
import dataclasses
import io
import math
import re

import numpy as np
from PIL import Image

PAGE_BYTES = 14_500_000
MAX_IMAGE_CHARS = 40_000
MAX_SIDE = 336  # the input size of LLaVA-1.5
MIN_SIDE = 64
# Base64 characters per pixel of pure noise, the largest kind of image, as JPEG of quality 45.
NOISE_CHARS_PER_PIXEL = 0.27
QUALITIES = (84, 70, 56, 44, 32, 20)


class Album:
    """Collects a page's images, so that each can get an equal share of the page's size.

    `add` returns a mark to write where the data URL belongs; `fill` replaces all marks. A mark
    contains control characters, which `markup.esc` removes, so no text can look like one.
    """

    def __init__(self) -> None:
        self._images: list[np.ndarray] = []

    def add(self, image_HWC: np.ndarray) -> str:
        """Adds an image, uint8 [H, W, 3], and returns its mark."""
        self._images.append(image_HWC)
        return f"\x00{len(self._images) - 1}\x00"

    def fill(self, page: str) -> str:
        """Replaces marks by data URLs; the page has at most about `PAGE_BYTES` bytes of UTF-8.

        Only a page of more than roughly 8,000 images can be larger, because thumbnails do not
        shrink below 64 px and quality 20.
        """
        left = PAGE_BYTES - len(page.encode("utf-8"))
        thumbnails = Thumbnails(left // max(len(self._images), 1))
        return re.sub(
            r"\x00(\d+)\x00", lambda mark: thumbnails.data_url(self._images[int(mark[1])]), page
        )


@dataclasses.dataclass(frozen=True)
class Thumbnails:
    """Encodes each image within a number of characters.

    Every thumbnail of a page has the same longest side: shrinking averages noise away, so a
    corrupted image shown smaller than its clean version would look less corrupted than it is. Only
    the JPEG quality depends on the image. With up to about 450 images the side is 336 px, with
    1,000 it is 224 px, and with 2,000 (1,000 pairs with answers of 100 words) 144 px, with
    photographs at quality 56 to 84 and pure noise at 44.

    Attributes:
        share: base64 characters that the page has for each image.
    """

    share: int

    @property
    def chars_per_image(self) -> int:
        """Base64 characters that an image may take."""
        return min(MAX_IMAGE_CHARS, self.share)

    @property
    def side(self) -> int:
        """Longest side of a thumbnail in pixels."""
        pixels = max(0, int(self.chars_per_image / NOISE_CHARS_PER_PIXEL))
        fitting = math.isqrt(pixels) // 16 * 16
        return max(MIN_SIDE, min(MAX_SIDE, fitting))

    def data_url(self, image_HWC: np.ndarray) -> str:
        """Returns a `data:` URL of an image.

        Args:
            image_HWC: uint8 [H, W, 3]. An image of up to 64 px is kept exactly, as PNG, if that
                fits; any other becomes a JPEG thumbnail.
        """
        image = Image.fromarray(np.ascontiguousarray(image_HWC))
        if is_tiny(image_HWC):
            url = _encode(image, "PNG", optimize=True)
            if len(url) <= self.chars_per_image:
                return url
        image.thumbnail((self.side, self.side), Image.Resampling.LANCZOS)
        for quality in QUALITIES:
            url = _encode(image, "JPEG", quality=quality, optimize=True)
            if len(url) <= self.chars_per_image:
                break
        return url


def is_tiny(image_HWC: np.ndarray) -> bool:
    """Returns whether an image is so small (at most 64 px) that its pixels should stay visible."""
    return max(image_HWC.shape[:2]) <= MIN_SIDE


def _encode(image: Image.Image, kind: str, **options: object) -> str:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    payload = base64.b64encode(buffer.getvalue()).decode("ascii")
    return f"data:image/{kind.lower()};base64,{payload}"
