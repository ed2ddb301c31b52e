"""CLIP vision tower, up to the hidden state that LLaVA reads. SeVa keeps it frozen.

The layers above that state and the post-layernorm do not influence LLaVA and are not built. In
this file P counts the CLS token too.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from seva_jax.models.attention import plain
from seva_jax.models.config import LlavaConfig, VisionConfig
from seva_jax.models.layers import LayerNorm, Linear, Remat, rematerialised
from seva_jax.sharding import constrain


class VisionLayer(nn.Module):
    """Pre-norm transformer layer with full attention, MLP and biases."""

    config: VisionConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x_NPE: jax.Array, _: None = None) -> tuple[jax.Array, None]:
        """Applies the layer: [N, P, E] -> ([N, P, E], None), as `nn.scan` expects."""
        cfg = self.config
        x_NPE = constrain(x_NPE, "batch", "length", "width")
        heads = (*x_NPE.shape[:2], cfg.num_heads, cfg.hidden_size // cfg.num_heads)

        def linear(name: str, features: int, dims: tuple[str, str]) -> Linear:
            return Linear(features, dims, bias=True, dtype=self.dtype, name=name)

        y = LayerNorm(cfg.norm_eps, self.dtype, name="layer_norm1")(x_NPE)
        q = linear("q_proj", cfg.hidden_size, ("vision_embed", "vision_heads"))(y).reshape(heads)
        k = linear("k_proj", cfg.hidden_size, ("vision_embed", "vision_heads"))(y).reshape(heads)
        v = linear("v_proj", cfg.hidden_size, ("vision_embed", "vision_heads"))(y).reshape(heads)
        y = plain(q, k, v, None).reshape(x_NPE.shape)
        x = x_NPE + linear("out_proj", cfg.hidden_size, ("vision_heads", "vision_embed"))(y)

        y = LayerNorm(cfg.norm_eps, self.dtype, name="layer_norm2")(x)
        y = linear("fc1", cfg.mlp_size, ("vision_embed", "vision_mlp"))(y)
        if cfg.activation == "quick_gelu":
            y = y * nn.sigmoid(1.702 * y)
        else:
            y = nn.gelu(y, approximate=False)
        x = x + linear("fc2", cfg.hidden_size, ("vision_mlp", "vision_embed"))(y)
        return constrain(x, "batch", "length", "width"), None


class VisionTower(nn.Module):
    """Maps pixels to the patch features of the configured layer."""

    config: LlavaConfig
    dtype: jnp.dtype
    remat: Remat

    @nn.compact
    def __call__(self, pixels_NHWC: jax.Array) -> jax.Array:
        """Maps normalised pixels [N, H, W, 3] to features [N, tokens per image, E]."""
        cfg = self.config.vision
        num, width, p = pixels_NHWC.shape[0], cfg.hidden_size, cfg.patch_size
        side = cfg.image_size // p
        # A convolution whose stride equals its kernel size is a linear layer on patches.
        patches = pixels_NHWC[:, : side * p, : side * p].reshape(num, side, p, side, p, 3)
        patches = patches.transpose(0, 1, 3, 2, 4, 5).reshape(num, side * side, p * p * 3)
        x = Linear(width, ("patch", "vision_embed"), dtype=self.dtype, name="patch_embedding")(
            patches
        )

        init = nn.initializers.normal(0.02)
        cls: Any = self.param(
            "class_embedding", nn.with_logical_partitioning(init, ("norm",)), (width,)
        )
        position: Any = self.param(
            "position_embedding",
            nn.with_logical_partitioning(init, ("position", "vision_embed")),
            (side * side + 1, width),
        )
        cls = jnp.broadcast_to(cls.astype(self.dtype), (num, 1, width))
        x = jnp.concatenate([cls, x], axis=1) + position.astype(self.dtype)
        x = LayerNorm(cfg.norm_eps, self.dtype, name="pre_layernorm")(x)

        depth = self.config.tower_depth
        if depth:
            layer = rematerialised(VisionLayer, self.remat)
            stack = nn.scan(
                layer,
                variable_axes={"params": 0},
                split_rngs={"params": True},
                length=depth,
                metadata_params={nn.PARTITION_NAME: "layers"},
            )
            x, _ = stack(cfg, self.dtype, name="layers")(x, None)
        return x if self.config.feature_select == "full" else x[:, 1:]
