"""InternViT, the vision tower of InternVL, with the joining of neighbouring patches behind it.

Its features are what the connector reads: each is `pool` x `pool` neighbouring patches of the last
layer, one after another, and the class token is dropped.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from seva_jax.models.attention import plain
from seva_jax.models.clip import apply_layers, cut_patches, tower_linear, with_class_token
from seva_jax.models.config import InternConfig, LlavaConfig, LoraConfig, VisionTarget
from seva_jax.models.layers import LayerNorm, Linear, Remat, RMSNorm
from seva_jax.sharding import constrain

_QK_EPS = 1e-6  # no config names it


class InternAttention(nn.Module):
    """Full attention, whose queries and keys may be normalised over all heads together."""

    config: InternConfig
    dtype: jnp.dtype
    lora: LoraConfig | None

    @nn.compact
    def __call__(self, x_NPE: jax.Array, layer: jax.Array, keys_NP: Any) -> jax.Array:
        """Maps normalised inputs [N, P, E] to [N, P, E]."""
        cfg, adapters = self.config, (self.dtype, self.lora, layer, keys_NP)
        heads = (*x_NPE.shape[:2], cfg.num_heads, cfg.hidden_size // cfg.num_heads)

        def split(name: VisionTarget) -> jax.Array:
            dims = ("vision_embed", "vision_heads")
            return tower_linear(name, name, cfg.hidden_size, dims, cfg.attention_bias, *adapters)(
                x_NPE
            )

        q, k, v = split("q_proj"), split("k_proj"), split("v_proj")
        if cfg.qk_norm:
            q = RMSNorm(_QK_EPS, self.dtype, name="q_norm")(q)
            k = RMSNorm(_QK_EPS, self.dtype, name="k_norm")(k)
        y = plain(q.reshape(heads), k.reshape(heads), v.reshape(heads), None).reshape(x_NPE.shape)
        dims = ("vision_heads", "vision_embed")
        out = tower_linear("projection_layer", "out_proj", cfg.hidden_size, dims, True, *adapters)
        return out(y)


class InternMLP(nn.Module):
    """Two linear layers with exact GELU between them."""

    config: InternConfig
    dtype: jnp.dtype
    lora: LoraConfig | None

    @nn.compact
    def __call__(self, x_NPE: jax.Array, layer: jax.Array, keys_NP: Any) -> jax.Array:
        """Maps normalised inputs [N, P, E] to [N, P, E]."""

        def linear(
            name: VisionTarget, features: int, dims: tuple[str, str]
        ) -> Callable[..., jax.Array]:
            return tower_linear(
                name, name, features, dims, True, self.dtype, self.lora, layer, keys_NP
            )

        y = linear("fc1", self.config.mlp_size, ("vision_embed", "vision_mlp"))(x_NPE)
        y = nn.gelu(y, approximate=False)
        return linear("fc2", self.config.hidden_size, ("vision_mlp", "vision_embed"))(y)


class InternLayer(nn.Module):
    """Pre-norm transformer layer, both of whose residual branches have learned scales."""

    config: InternConfig
    dtype: jnp.dtype
    lora: LoraConfig | None

    @nn.compact
    def __call__(self, x_NPE: jax.Array, layer: jax.Array, keys_NP: Any) -> tuple[jax.Array, None]:
        """Applies the layer: [N, P, E] -> ([N, P, E], None), as `nn.scan` expects."""
        cfg = self.config

        def scaled(name: str, y_NPE: jax.Array) -> jax.Array:
            init = nn.with_logical_partitioning(nn.initializers.constant(0.1), ("norm",))
            scale: Any = self.param(name, init, (cfg.hidden_size,))
            return y_NPE * scale.astype(self.dtype)

        x_NPE = constrain(x_NPE, "batch", "length", "width")
        attention = InternAttention(cfg, self.dtype, self.lora, name="attention")
        mlp = InternMLP(cfg, self.dtype, self.lora, name="mlp")
        y = LayerNorm(cfg.norm_eps, self.dtype, name="layernorm_before")(x_NPE)
        x = x_NPE + scaled("lambda_1", attention(y, layer, keys_NP))
        y = LayerNorm(cfg.norm_eps, self.dtype, name="layernorm_after")(x)
        x = x + scaled("lambda_2", mlp(y, layer, keys_NP))
        return constrain(x, "batch", "length", "width"), None


class InternTower(nn.Module):
    """Maps pixels to the joined patch features of the configured layer."""

    config: LlavaConfig
    dtype: jnp.dtype
    remat: Remat
    lora: LoraConfig | None = None

    @nn.compact
    def __call__(self, pixels_NHWC: jax.Array, keys_N: jax.Array | None = None) -> jax.Array:
        """Maps normalised pixels [N, H, W, 3] to features [N, features of a tile, E]."""
        cfg = self.config.vision
        num, width = pixels_NHWC.shape[0], cfg.hidden_size
        embedding = Linear(
            width, ("patch", "vision_embed"), True, dtype=self.dtype, name="patch_embeddings"
        )
        x_NPE = embedding(cut_patches(pixels_NHWC, cfg))
        init = nn.initializers.normal(0.02)
        cls: Any = self.param("cls_token", nn.with_logical_partitioning(init, ("norm",)), (width,))
        position: Any = self.param(
            "position_embeddings",
            nn.with_logical_partitioning(init, ("position", "vision_embed")),
            (cfg.num_patches + 1, width),
        )
        x_NPE = with_class_token(x_NPE, cls, position)
        x_NPE = apply_layers(
            InternLayer, x_NPE, self.config, self.dtype, self.remat, self.lora, keys_N
        )
        pool, side = cfg.merged, cfg.image_size // cfg.patch_size
        x = x_NPE[:, 1:].reshape(num, side // pool, pool, side // pool, pool, width)
        x = x.transpose(0, 1, 3, 2, 4, 5)
        return x.reshape(num, (side // pool) ** 2, pool * pool * width)
