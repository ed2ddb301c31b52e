"""CLIP vision tower, up to the hidden state that LLaVA reads. SeVa keeps it frozen.

What lives here: the tower, and what other towers share with it: patches, layers with full
attention, the scan over them. The layers above that state and the post-layernorm do not influence
LLaVA and are not built. In the towers' files P counts the class token too.
"""

from __future__ import annotations

import typing
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from seva_jax.models.attention import plain
from seva_jax.models.config import (
    LlavaConfig,
    LoraConfig,
    SiglipConfig,
    TowerConfig,
    VisionConfig,
    VisionTarget,
)
from seva_jax.models.layers import (
    LayerNorm,
    Linear,
    Remat,
    drawing,
    place_keys,
    rematerialised,
)
from seva_jax.sharding import constrain

VISION_TARGETS: tuple[VisionTarget, ...] = typing.get_args(VisionTarget)


def cut_patches(pixels_NHWC: jax.Array, config: TowerConfig) -> jax.Array:
    """Cuts tiles into the inputs of the patch embedding.

    A convolution whose stride equals its kernel size is a linear layer on patches.

    Args:
        pixels_NHWC: normalised pixels [N, H, W, 3].
        config: the tower.

    Returns:
        [N, patches, patch_size * patch_size * 3], row by row.
    """
    num, p = pixels_NHWC.shape[0], config.patch_size
    side = config.image_size // p
    patches = pixels_NHWC[:, : side * p, : side * p].reshape(num, side, p, side, p, 3)
    return patches.transpose(0, 1, 3, 2, 4, 5).reshape(num, side * side, p * p * 3)


def with_class_token(x_NPE: jax.Array, cls_E: jax.Array, position_PE: jax.Array) -> jax.Array:
    """Puts the class token before the patches and adds the learned positions of all.

    Args:
        x_NPE: embedded patches, in the compute dtype, which the result has too.
        cls_E: the class token.
        position_PE: position embeddings, that of the class token first.
    """
    cls_N1E = jnp.broadcast_to(cls_E.astype(x_NPE.dtype), (len(x_NPE), 1, x_NPE.shape[-1]))
    return jnp.concatenate([cls_N1E, x_NPE], axis=1) + position_PE.astype(x_NPE.dtype)


def apply_layers(
    layer: type[nn.Module],
    x_NPE: jax.Array,
    config: LlavaConfig,
    dtype: jnp.dtype,
    remat: Remat,
    lora: LoraConfig | None,
    keys_N: jax.Array | None,
) -> jax.Array:
    """Applies the layers that LLaVA needs; called inside a tower, whose variables they become.

    Args:
        layer: the module of a layer, made from the tower's config, a dtype and `lora`.
        x_NPE: the input of the first layer.
        config: the architecture.
        dtype: compute dtype.
        remat: see `layers.rematerialised`.
        lora: config of adapters; None for none, also where they are not on the tower.
        keys_N: a random key for each tile, from which the dropout of adapters draws; None drops
            nothing.
    """
    if not config.tower_depth:
        return x_NPE
    stack = nn.scan(
        rematerialised(layer, remat),
        variable_axes={"params": 0, "lora": 0},
        split_rngs={"params": True},
        in_axes=(0, nn.broadcast),  # pyright: ignore[reportArgumentType]
        length=config.tower_depth,
        metadata_params={nn.PARTITION_NAME: "layers"},
    )
    keys_NP = None if keys_N is None else place_keys(keys_N, x_NPE.shape[1])
    layers = stack(config.vision, dtype, lora, name="layers")
    x_NPE, _ = layers(x_NPE, jnp.arange(config.tower_depth), keys_NP)
    return x_NPE


def tower_linear(
    name: str,
    target: VisionTarget,
    features: int,
    dims: tuple[str, str],
    bias: bool,
    dtype: jnp.dtype,
    lora: LoraConfig | None,
    layer: jax.Array,
    keys_NP: jax.Array | None,
) -> Callable[..., jax.Array]:
    """Returns a linear layer of a tower, with an adapter if it is a target.

    Args:
        name: of the module.
        target: what `LoraConfig.vision_targets` calls it.
        features: output width.
        dims: see `Linear`.
        bias: whether there is a bias.
        dtype: compute dtype.
        lora: see `apply_layers`.
        layer: which layer of the tower it belongs to.
        keys_NP: a random key for each place of its input; None drops nothing.
    """
    adapter = lora.of("vision") if lora and target in lora.vision_targets else None
    module = Linear(features, dims, bias, adapter, dtype, name=name)
    return drawing(module, keys_NP, layer * len(VISION_TARGETS) + VISION_TARGETS.index(target))


class VisionLayer(nn.Module):
    """Pre-norm transformer layer with full attention, MLP and biases."""

    config: VisionConfig | SiglipConfig
    dtype: jnp.dtype
    lora: LoraConfig | None

    @nn.compact
    def __call__(self, x_NPE: jax.Array, layer: jax.Array, keys_NP: Any) -> tuple[jax.Array, None]:
        """Applies the layer: [N, P, E] -> ([N, P, E], None), as `nn.scan` expects."""
        cfg = self.config
        x_NPE = constrain(x_NPE, "batch", "length", "width")
        heads = (*x_NPE.shape[:2], cfg.num_heads, cfg.hidden_size // cfg.num_heads)

        def linear(
            name: VisionTarget, features: int, dims: tuple[str, str]
        ) -> Callable[..., jax.Array]:
            return tower_linear(
                name, name, features, dims, True, self.dtype, self.lora, layer, keys_NP
            )

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
            y = nn.gelu(y, approximate=cfg.activation == "gelu_pytorch_tanh")
        x = x + linear("fc2", cfg.hidden_size, ("vision_mlp", "vision_embed"))(y)
        return constrain(x, "batch", "length", "width"), None


class VisionTower(nn.Module):
    """Maps pixels to the patch features of the configured layer."""

    config: LlavaConfig
    dtype: jnp.dtype
    remat: Remat
    lora: LoraConfig | None = None

    @nn.compact
    def __call__(self, pixels_NHWC: jax.Array, keys_N: jax.Array | None = None) -> jax.Array:
        """Maps normalised pixels [N, H, W, 3] to features [N, features of a tile, E]."""
        cfg = self.config.vision
        width = cfg.hidden_size
        x = Linear(width, ("patch", "vision_embed"), dtype=self.dtype, name="patch_embedding")(
            cut_patches(pixels_NHWC, cfg)
        )

        init = nn.initializers.normal(0.02)
        cls: Any = self.param(
            "class_embedding", nn.with_logical_partitioning(init, ("norm",)), (width,)
        )
        position: Any = self.param(
            "position_embedding",
            nn.with_logical_partitioning(init, ("position", "vision_embed")),
            (cfg.num_patches + 1, width),
        )
        x = with_class_token(x, cls, position)
        x = LayerNorm(cfg.norm_eps, self.dtype, name="pre_layernorm")(x)
        x = apply_layers(VisionLayer, x, self.config, self.dtype, self.remat, self.lora, keys_N)
        return x if self.config.feature_select == "full" else x[:, 1:]
