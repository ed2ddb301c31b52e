"""Noise in a region of an image and nowhere else (MMedPO, arXiv 2412.06141).

What lives here: `RegionNoise`, which decides which pixels belong to the region and overwrites them.
It is not a `Corruption`: it also needs a map of the image, and it never changes any other pixel.
What does not: the source of masks and heat maps, and the pairs (`seva_jax/data/regions.py`).
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

import jax
import numpy as np
from PIL import Image

from seva_jax.corrupt.base import numpy_generator
from seva_jax.corrupt.diffusion import NUM_STEPS, diffusion_schedule
from seva_jax.ranges import FROM_0, Range


@dataclasses.dataclass(frozen=True)
class RegionNoise:
    """Noise in the region given by a mask or a heat map.

    Attributes:
        region: how a map becomes a region. "heat" blurs it and takes the pixels above its mean
            minus its standard deviation, as released. For a small spot on a map that is 0
            elsewhere that is the whole image. "mask" takes the pixels above one half.
        noise: "pixels" replaces pixels by normally distributed levels of mean 0, as released.
            "diffusion" is the paper's formula, `sqrt(abar_t) x + sigma_t eps` on pixels in [0, 1].
        std: standard deviation of "pixels", in levels of 255; released: 10.
        step: t of "diffusion", from 0 (hardly any noise) to 999; the schedule is SeVa's.
        blur: for "heat", standard deviation of the Gaussian blur in pixels of the image. Released:
            OpenCV's for a kernel of 15 x 15, which is 2.6.
        overflow: what becomes of levels outside of 0 to 255. "clip" takes the nearer bound, so
            "pixels" are nearly black. "wrap" drops the fraction and keeps the lowest 8 bits, so
            half of them are nearly white.
            # MMedPO: wraps, because the conversion of an array to bytes does.
    """

    region: Literal["heat", "mask"] = "heat"
    noise: Literal["pixels", "diffusion"] = "pixels"
    std: Annotated[float, FROM_0] = 10.0
    step: Annotated[int, Range(0, NUM_STEPS - 1)] = 500
    blur: Annotated[float, Range(0, 1000)] = 2.6
    overflow: Literal["clip", "wrap"] = "clip"

    def inside(self, map_HW: np.ndarray, height: int, width: int) -> np.ndarray:
        """Returns which pixels of an image belong to the region, bool [height, width].

        Args:
            map_HW: finite numbers, of any height and width; resized bilinearly.
            height: height of the image.
            width: width of the image.
        """
        from scipy.ndimage import gaussian_filter

        resized = Image.fromarray(np.asarray(map_HW, np.float32))
        if resized.size != (width, height):
            resized = resized.resize((width, height), Image.Resampling.BILINEAR)
        if self.region == "mask":
            return np.asarray(resized) > 0.5
        heat_HW = np.asarray(resized, np.float64)
        # OpenCV: mirrors at the edges; the kernel for 2.6 reaches 7 pixels.
        heat_HW = gaussian_filter(heat_HW, self.blur, mode="mirror", truncate=2.7)
        # MMedPO: mean minus deviation is below 0 for a small spot on a map that is 0 elsewhere.
        return heat_HW > heat_HW.mean() - heat_HW.std()

    def __call__(self, key: jax.Array, image_HWC: np.ndarray, map_HW: np.ndarray) -> np.ndarray:
        """Replaces the region by noise.

        Args:
            key: a typed PRNG key, the only source of randomness.
            image_HWC: uint8 RGB.
            map_HW: see `inside`.

        Returns:
            uint8 RGB of the same size; equal to `image_HWC` outside of the region.
        """
        height, width, _ = image_HWC.shape
        # NumPy's generator, because JAX would compile again for every size of image.
        noise_HWC = numpy_generator(key).standard_normal(image_HWC.shape)
        if self.noise == "pixels":
            levels_HWC = self.std * noise_HWC
        else:
            root_abar, sigma = diffusion_schedule()
            levels_HWC = root_abar[self.step] * image_HWC + 255 * sigma[self.step] * noise_HWC
        if self.overflow == "wrap":
            levels_HWC = np.trunc(levels_HWC) % 256
        noised_HWC = np.round(levels_HWC.clip(0, 255)).astype(np.uint8)
        return np.where(self.inside(map_HW, height, width)[..., None], noised_HWC, image_HWC)
