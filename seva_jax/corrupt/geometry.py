"""Crops, flips and warps, with the same meaning as in torchvision on PIL images.

Positions follow PIL: the pixel in column x has its centre at x + 0.5, a warp computes the source
position of every output centre, and sources outside the image are black.

What lives here: operations that move pixels, as pure functions whose parameters may be traced,
and the classes that draw the parameters. What does not: changes of colours (`colour.py`,
`sharpness.py`). Read next: `auto.py`, which reuses the warps.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
from typing_extensions import override

from seva_jax.corrupt.base import (
    Corruption,
    Number,
    RandomlyApplied,
    require,
    require_field,
    require_range,
)
from seva_jax.types import Array


def _centres(image_HWC: Array) -> tuple[jax.Array, jax.Array]:
    """Returns x and y of all pixel centres, [1, W] and [H, 1]."""
    height, width = image_HWC.shape[:2]
    return jnp.arange(width)[None, :] + 0.5, jnp.arange(height)[:, None] + 0.5


def _inside(image_HWC: Array, x_HW: jax.Array, y_HW: jax.Array) -> jax.Array:
    height, width = image_HWC.shape[:2]
    return ((x_HW >= 0) & (x_HW < width) & (y_HW >= 0) & (y_HW < height))[..., None]


def _take(image_HWC: Array, column_HW: jax.Array, row_HW: jax.Array) -> jax.Array:
    height, width = image_HWC.shape[:2]
    row_HW = jnp.clip(row_HW.astype(jnp.int32), 0, height - 1)
    column_HW = jnp.clip(column_HW.astype(jnp.int32), 0, width - 1)
    return jnp.asarray(image_HWC)[row_HW, column_HW]


def warp_nearest(image_HWC: Array, x_HW: jax.Array, y_HW: jax.Array) -> jax.Array:
    """Takes the pixel that contains each source position (x, y); black outside."""
    taken_HWC = _take(image_HWC, jnp.floor(x_HW), jnp.floor(y_HW))
    return jnp.where(_inside(image_HWC, x_HW, y_HW), taken_HWC, 0.0)


def warp_bilinear(image_HWC: Array, x_HW: jax.Array, y_HW: jax.Array) -> jax.Array:
    """Interpolates bilinearly at each source position (x, y); black outside, no soft border."""
    left_HW, top_HW = jnp.floor(x_HW - 0.5), jnp.floor(y_HW - 0.5)
    dx_HW1 = (x_HW - 0.5 - left_HW)[..., None]
    dy_HW1 = (y_HW - 0.5 - top_HW)[..., None]
    upper_HWC, lower_HWC = (
        _take(image_HWC, left_HW, row_HW) * (1 - dx_HW1)
        + _take(image_HWC, left_HW + 1, row_HW) * dx_HW1
        for row_HW in (top_HW, top_HW + 1)
    )
    mixed_HWC = upper_HWC * (1 - dy_HW1) + lower_HWC * dy_HW1
    return jnp.where(_inside(image_HWC, x_HW, y_HW), mixed_HWC, 0.0)


def affine(
    image_HWC: Array,
    *,
    degrees: Number = 0.0,
    translate: tuple[Number, Number] = (0.0, 0.0),
    scale: Number = 1.0,
) -> jax.Array:
    """Turns **clockwise** and scales about the centre, then shifts. Nearest pixel, black outside.

    Args:
        image_HWC: values in [0, 1].
        degrees: clockwise angle, as in torchvision's `affine`.
        translate: shift to the right and down, in pixels.
        scale: above 1 enlarges.
    """
    # Not dm_pix.affine_transform: it computes positions by a product of matrices, which a TPU
    # rounds to bfloat16, and it blurs the border of the image.
    height, width = image_HWC.shape[:2]
    x, y = _centres(image_HWC)
    dx, dy = x - width / 2 - translate[0], y - height / 2 - translate[1]
    cosine, sine = jnp.cos(jnp.deg2rad(degrees)) / scale, jnp.sin(jnp.deg2rad(degrees)) / scale
    return warp_nearest(
        image_HWC,
        cosine * dx + sine * dy + width / 2,
        -sine * dx + cosine * dy + height / 2,
    )


def rotate(image_HWC: Array, degrees: Number) -> jax.Array:
    """Turns **counter-clockwise** about the centre, as `PIL.Image.rotate`; keeps the size."""
    return affine(image_HWC, degrees=-jnp.asarray(degrees))


def shear(image_HWC: Array, horizontal: Number, vertical: Number) -> jax.Array:
    """Shears about the top left corner: (x, y) comes from (x + horizontal y, y + vertical x)."""
    x, y = _centres(image_HWC)
    return warp_nearest(image_HWC, x + horizontal * y, y + vertical * x)


def perspective(image_HWC: Array, corners_42: Array) -> jax.Array:
    """Moves the corner pixels of the image to `corners_42`. Bilinear, black outside.

    Args:
        image_HWC: values in [0, 1].
        corners_42: new positions (x, y) of the top left, top right, bottom right and bottom left
            pixel, in pixel indices.
    """
    height, width = image_HWC.shape[:2]
    corners_42 = jnp.asarray(corners_42, jnp.float32)
    (x0, y0), (x1, y1), (x2, y2), (x3, y3) = corners_42
    # The homography from the unit square to the corners in closed form (Heckbert 1989), because
    # solving the 8 x 8 system in pixels loses too much in float32. Then its adjugate, which maps
    # back.
    sum_x, sum_y = x0 - x1 + x2 - x3, y0 - y1 + y2 - y3
    det = (x1 - x2) * (y3 - y2) - (x3 - x2) * (y1 - y2)
    g = (sum_x * (y3 - y2) - (x3 - x2) * sum_y) / det
    h = ((x1 - x2) * sum_y - sum_x * (y1 - y2)) / det
    a, b = x1 - x0 + g * x1, x3 - x0 + h * x3
    d, e = y1 - y0 + g * y1, y3 - y0 + h * y3
    x, y = _centres(image_HWC)
    # Positions relative to the first corner keep the numbers small.
    x, y = x - x0, y - y0
    a, b, d, e = a - g * x0, b - h * x0, d - g * y0, e - h * y0
    weight_HW = (d * h - e * g) * x + (b * g - a * h) * y + (a * e - b * d)
    return warp_bilinear(
        image_HWC,
        (e * x - b * y) / weight_HW * (width - 1),
        (a * y - d * x) / weight_HW * (height - 1),
    )


def _resize_weights(size: int, start: jax.Array, length: jax.Array, out: int) -> jax.Array:
    """Returns weights [out, size] that resize `length` samples from `start` on to `out` samples."""
    step = length / out
    centre = start + (jnp.arange(out)[:, None] + 0.5) * step
    position = jnp.arange(size)[None, :] + 0.5
    weight = jnp.maximum(1 - jnp.abs(position - centre) / jnp.maximum(step, 1.0), 0)
    weight = jnp.where((position > start) & (position < start + length), weight, 0)
    return weight / weight.sum(1, keepdims=True)


def resized_crop(
    image_HWC: Array, top: Number, left: Number, height: Number, width: Number, size: int
) -> jax.Array:
    """Crops a box and resizes it to `size` x `size`: bilinear, with antialiasing when it shrinks.

    Args:
        image_HWC: values in [0, 1].
        top: first row of the box. All four are whole numbers and may be traced.
        left: first column of the box.
        height: rows of the box.
        width: columns of the box.
        size: side of the result.
    """
    # Not jax.image.scale_and_translate: pixels outside the box would enter the result, while
    # torchvision crops before it resizes.
    rows = _resize_weights(image_HWC.shape[0], jnp.asarray(top), jnp.asarray(height), size)
    columns = _resize_weights(image_HWC.shape[1], jnp.asarray(left), jnp.asarray(width), size)
    with jax.default_matmul_precision("highest"):
        wide_HWC = jnp.einsum("hH,HWC->hWC", rows, image_HWC)
        return jnp.clip(jnp.einsum("wW,hWC->hwC", columns, wide_HWC), 0, 1)


@dataclasses.dataclass(frozen=True)
class Pad(Corruption):
    """A black frame. No randomness.

    Attributes:
        padding: width of the frame in pixels, on each side.
    """

    padding: int = 50

    def __post_init__(self) -> None:
        require(self.padding >= 0, f"Pad.padding={self.padding!r}: give an integer from 0.")

    @override
    def __call__(self, key: jax.Array, image_HWC: Array) -> jax.Array:
        """Returns [H + 2 padding, W + 2 padding, C]."""
        del key
        frame = (self.padding, self.padding)
        return jnp.pad(jnp.asarray(image_HWC), (frame, frame, (0, 0)))


@dataclasses.dataclass(frozen=True)
class _SquareCrop(Corruption):
    """A square of the image.

    Attributes:
        size: side of the result in pixels.
    """

    size: int = 224

    def __post_init__(self) -> None:
        name = type(self).__name__
        require(self.size >= 1, f"{name}.size={self.size!r}: give an integer from 1.")


@dataclasses.dataclass(frozen=True)
class CenterCrop(_SquareCrop):
    """The middle of the image; a smaller image is first padded with black. No randomness.

    Attributes:
        size: side of the result in pixels.
    """

    size: int = 128

    @override
    def __call__(self, key: jax.Array, image_HWC: Array) -> jax.Array:
        """Returns [size, size, C]."""
        del key
        import dm_pix

        padded_HWC = jnp.asarray(dm_pix.pad_to_size(jnp.asarray(image_HWC), self.size, self.size))
        # Not dm_pix.center_crop: for some odd remainders it is one pixel off.
        top, left = (round((side - self.size) / 2) for side in padded_HWC.shape[:2])
        return padded_HWC[top : top + self.size, left : left + self.size]


@dataclasses.dataclass(frozen=True)
class RandomCrop(_SquareCrop):
    """A random square of the image.

    torchvision refuses an image that is too small. Here it is padded on both sides with as much
    black as is missing, as torchvision does with `pad_if_needed=True`.

    Attributes:
        size: side of the result in pixels.
    """

    @override
    def __call__(self, key: jax.Array, image_HWC: Array) -> jax.Array:
        """Returns [size, size, C]."""
        import dm_pix

        missing = [max(self.size - side, 0) for side in image_HWC.shape[:2]]
        padded_HWC = jnp.pad(jnp.asarray(image_HWC), (*((m, m) for m in missing), (0, 0)))
        crop_sizes = (self.size, self.size, image_HWC.shape[2])
        return jnp.asarray(dm_pix.random_crop(key, padded_HWC, crop_sizes))


@dataclasses.dataclass(frozen=True)
class RandomResizedCrop(_SquareCrop):
    """A random box of the image, resized to a square.

    Ten boxes are drawn, and the first that fits is used; if none fits, the largest central box
    within the range of ratios.

    Attributes:
        size: side of the result in pixels.
        scale: range of the box's area as a share of the image's, drawn uniformly.
        ratio: range of the box's width over its height; the logarithm is drawn uniformly.
    """

    scale: tuple[float, float] = (0.36, 0.64)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)

    def __post_init__(self) -> None:
        super().__post_init__()
        require_range("RandomResizedCrop.scale", self.scale, 1e-6, 1.0)
        require_range("RandomResizedCrop.ratio", self.ratio, 1e-3, 1e3)

    def central_box(self, height: int, width: int) -> tuple[int, int, int, int]:
        """Returns `top, left, height, width` of the largest central box of an allowed ratio."""
        ratio = min(max(width / height, self.ratio[0]), self.ratio[1])
        box_height, box_width = min(height, round(width / ratio)), min(width, round(height * ratio))
        return (height - box_height) // 2, (width - box_width) // 2, box_height, box_width

    def box(
        self, key: jax.Array, height: int, width: int
    ) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        """Draws `top, left, height, width` of a box in an image of the given size, int32."""
        # One draw for all four: every separate draw costs compile time for each image size.
        area, ratio, top, left = jax.random.uniform(key, (4, 10))
        area = height * width * (self.scale[0] + (self.scale[1] - self.scale[0]) * area)
        low, high = math.log(self.ratio[0]), math.log(self.ratio[1])
        ratio = jnp.exp(low + (high - low) * ratio)
        widths = jnp.round(jnp.sqrt(area * ratio)).astype(jnp.int32)
        heights = jnp.round(jnp.sqrt(area / ratio)).astype(jnp.int32)
        fits = (widths > 0) & (widths <= width) & (heights > 0) & (heights <= height)
        tops = jnp.floor(top * (height - heights + 1)).astype(jnp.int32)
        lefts = jnp.floor(left * (width - widths + 1)).astype(jnp.int32)
        drawn = jnp.stack([tops, lefts, heights, widths])[:, jnp.argmax(fits)]
        box = jnp.where(fits.any(), drawn, jnp.array(self.central_box(height, width)))
        return box[0], box[1], box[2], box[3]

    @override
    def __call__(self, key: jax.Array, image_HWC: Array) -> jax.Array:
        """Returns [size, size, C]."""
        top, left, height, width = self.box(key, image_HWC.shape[0], image_HWC.shape[1])
        return resized_crop(image_HWC, top, left, height, width, self.size)


@dataclasses.dataclass(frozen=True)
class RandomHorizontalFlip(RandomlyApplied):
    """The mirror image, left and right exchanged, with probability `p`."""

    @override
    def apply(self, image_HWC: Array) -> jax.Array:
        import dm_pix

        return jnp.asarray(dm_pix.flip_left_right(jnp.asarray(image_HWC)))


@dataclasses.dataclass(frozen=True)
class RandomPerspective(Corruption):
    """The image seen from another angle.

    Attributes:
        distortion: each corner moves inwards by at most this share of half a side, 0 to 1.
        p: probability of applying it.
    """

    distortion: float = 0.6
    p: float = 1.0

    def __post_init__(self) -> None:
        require_field(self, "distortion", 0, 1)
        require_field(self, "p", 0, 1)

    def corners(self, key: jax.Array, height: int, width: int) -> jax.Array:
        """Draws the corners for `perspective`, int32 [4, 2]."""
        reach = jnp.array([int(self.distortion * (side // 2)) for side in (width, height)])
        inwards_42 = jax.random.randint(key, (4, 2), 0, reach + 1)
        far = jnp.array([[0, 0], [1, 0], [1, 1], [0, 1]])
        last = jnp.array([width - 1, height - 1])
        return jnp.where(far == 1, last - inwards_42, inwards_42)

    @override
    def __call__(self, key: jax.Array, image_HWC: Array) -> jax.Array:
        coin_key, corner_key = jax.random.split(key)
        corners_42 = self.corners(corner_key, image_HWC.shape[0], image_HWC.shape[1])
        apply = jax.random.bernoulli(coin_key, self.p)
        return jnp.where(apply, perspective(image_HWC, corners_42), image_HWC)


@dataclasses.dataclass(frozen=True)
class RandomRotation(Corruption):
    """A random turn about the centre; see `rotate`.

    Attributes:
        degrees: range of the counter-clockwise angle, drawn uniformly.
    """

    degrees: tuple[float, float] = (0.0, 180.0)

    def __post_init__(self) -> None:
        require_range("RandomRotation.degrees", self.degrees, -360.0, 360.0)

    @override
    def __call__(self, key: jax.Array, image_HWC: Array) -> jax.Array:
        low, high = self.degrees
        return rotate(image_HWC, jax.random.uniform(key, minval=low, maxval=high))


@dataclasses.dataclass(frozen=True)
class RandomAffine(Corruption):
    """A random turn, shift and scale; see `affine`.

    Attributes:
        degrees: range of the clockwise angle, drawn uniformly.
        translate: largest shift in either direction as a share of (width, height); drawn
            uniformly, rounded to whole pixels.
        scale: range of the scale, drawn uniformly; below 1 the image shrinks.
    """

    degrees: tuple[float, float] = (30.0, 70.0)
    translate: tuple[float, float] = (0.1, 0.3)
    scale: tuple[float, float] = (0.5, 0.75)

    def __post_init__(self) -> None:
        require_range("RandomAffine.degrees", self.degrees, -360.0, 360.0)
        require_range("RandomAffine.scale", self.scale, 1e-3, 1e3)
        require(
            len(self.translate) == 2 and all(0 <= share <= 1 for share in self.translate),
            f"RandomAffine.translate={self.translate!r}: give two shares from 0 to 1.",
        )

    @override
    def __call__(self, key: jax.Array, image_HWC: Array) -> jax.Array:
        height, width = image_HWC.shape[:2]
        degrees_key, shift_key, scale_key = jax.random.split(key, 3)
        low, high = self.degrees
        degrees = jax.random.uniform(degrees_key, minval=low, maxval=high)
        reach = jnp.array([self.translate[0] * width, self.translate[1] * height])
        shift = jnp.round(jax.random.uniform(shift_key, (2,), minval=-reach, maxval=reach))
        low, high = self.scale
        scale = jax.random.uniform(scale_key, minval=low, maxval=high)
        return affine(image_HWC, degrees=degrees, translate=(shift[0], shift[1]), scale=scale)
