"""SigLIP vision tower of LLaVA-OneVision, up to the hidden state that is read.

It differs from CLIP's: patches have a bias, there is no class token and no norm before the layers.
Its norm after the last layer and its pooling head are not built, because the hidden states of
`LlavaConfig.feature_layer` -1 are those before that norm.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from seva_jax.models.clip import VisionLayer, apply_layers, cut_patches
from seva_jax.models.config import LlavaConfig, LoraConfig
from seva_jax.models.layers import Linear, Remat


class SiglipTower(nn.Module):
    """Maps pixels to the patch features of the configured layer."""

    config: LlavaConfig
    dtype: jnp.dtype
    remat: Remat
    lora: LoraConfig | None = None

    @nn.compact
    def __call__(self, pixels_NHWC: jax.Array, keys_N: jax.Array | None = None) -> jax.Array:
        """Maps normalised pixels [N, H, W, 3] to features [N, patches, E]."""
        cfg = self.config.vision
        embedding = Linear(
            cfg.hidden_size, ("patch", "vision_embed"), True, dtype=self.dtype,
            name="patch_embedding",
        )  # fmt: skip
        x_NPE = embedding(cut_patches(pixels_NHWC, cfg))
        position: Any = self.param(
            "position_embedding",
            nn.with_logical_partitioning(
                nn.initializers.normal(cfg.hidden_size**-0.5), ("position", "vision_embed")
            ),
            (cfg.num_patches, cfg.hidden_size),
        )
        x_NPE = x_NPE + position.astype(self.dtype)
        return apply_layers(
            VisionLayer, x_NPE, self.config, self.dtype, self.remat, self.lora, keys_N
        )
