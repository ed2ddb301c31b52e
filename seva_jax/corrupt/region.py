"""Noise in a region of an image and nowhere else (MMedPO, arXiv 2412.06141).

What lives here: which pixels belong to the region, and what is written there. What does not: where
masks and heat maps come from, and the pairs (`seva_jax/data/regions.py`). It is no `Corruption`: it
needs a map of the image beside the image, and it leaves every other pixel exactly as it is.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

import jax
import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter

from seva_jax.corrupt.diffusion import NUM_STEPS, diffusion_schedule
from seva_jax.ranges import FROM_0, Range


@dataclasses.dataclass(frozen=True)
class RegionNoise:
    """Noise where a mask or a heat map says so.

    Attributes:
        region: "heat" blurs the map and takes what is above its mean minus its standard deviation,
            as released. "mask" takes what is above one half.
            # MMedPO: the rule is generous: of a small spot on a map that is 0 elsewhere, mean minus
            # deviation is below 0, and the region is the whole image.
        noise: "pixels" writes values of a normal distribution with mean 0, as released, so nearly
            black. "diffusion" is the paper's formula, `sqrt(abar_t) x + sigma_t eps` on pixels in
            [0, 1], clipped.
        std: of "pixels", in levels of 255.
        step: t of "diffusion", 0 to 999; the schedule is SeVa's.
        blur: of "heat", radius of the Gaussian as a share of the longer side of the image; its
            published size is not known to us.
    """

    region: Literal["heat", "mask"] = "heat"
    noise: Literal["pixels", "diffusion"] = "pixels"
    std: Annotated[float, FROM_0] = 10.0
    step: Annotated[int, Range(0, NUM_STEPS - 1)] = 500
    blur: Annotated[float, Range(0, 1)] = 0.02

    def inside(self, map_HW: np.ndarray, height: int, width: int) -> np.ndarray:
        """Which pixels of an image belong to the region, bool [height, width].

        Args:
            map_HW: finite, of any size and shape; resized bilinearly.
            height: of the image.
            width: of the image.
        """
        whole = Image.fromarray(np.asarray(map_HW, np.float32))
        if whole.size != (width, height):
            whole = whole.resize((width, height), Image.Resampling.BILINEAR)
        if self.region == "mask":
            return np.asarray(whole) > 0.5
        sigma = self.blur * max(height, width)
        heat_HW = gaussian_filter(np.asarray(whole, np.float64), sigma, mode="nearest", truncate=3)
        return heat_HW > heat_HW.mean() - heat_HW.std()

    def __call__(self, key: jax.Array, image_HWC: np.ndarray, map_HW: np.ndarray) -> np.ndarray:
        """Writes noise into the region.

        Args:
            key: a typed PRNG key; every random number follows from it.
            image_HWC: uint8 RGB.
            map_HW: see `inside`.

        Returns:
            uint8 RGB of the same size; equal to `image_HWC` outside of the region.
        """
        height, width, _ = image_HWC.shape
        # NumPy's own generator: sizes differ from image to image, and each would compile anew.
        rng = np.random.default_rng(np.asarray(jax.random.key_data(key)).tolist())
        noise_HWC = rng.standard_normal(image_HWC.shape)
        if self.noise == "pixels":
            levels_HWC = self.std * noise_HWC
        else:
            root_abar, sigma = diffusion_schedule()
            levels_HWC = root_abar[self.step] * image_HWC + 255 * sigma[self.step] * noise_HWC
        noised_HWC = np.round(levels_HWC.clip(0, 255)).astype(np.uint8)
        return np.where(self.inside(map_HW, height, width)[..., None], noised_HWC, image_HWC)
