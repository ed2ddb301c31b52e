"""LLaVA: image features take the place of image tokens in the input of the language model.

What lives here: `Llava`, the module that the rest of the package calls, above all
`seva_jax/training/step.py` and `seva_jax/inference/sampler.py`. `apply({"params": base, "lora":
adapters}, ...)` is the policy; the same call without "lora" is the model without adapters.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from seva_jax.models.attention import Attention
from seva_jax.models.clip import VisionTower
from seva_jax.models.config import (
    InternConfig,
    LlavaConfig,
    LoraConfig,
    SiglipConfig,
    TowerConfig,
    VisionConfig,
)
from seva_jax.models.intern import InternTower
from seva_jax.models.layers import (
    PROJECTOR_ADAPTERS,
    LayerNorm,
    Linear,
    Remat,
    drawing,
    place_keys,
)
from seva_jax.models.llama import Cache, LayerCache, Llama
from seva_jax.models.qwen import QwenMerger, QwenTower
from seva_jax.models.qwen_config import (
    Qwen2VisionConfig,
    Qwen3VisionConfig,
    Qwen25VisionConfig,
)
from seva_jax.models.siglip import SiglipTower
from seva_jax.sharding import constrain
from seva_jax.types import NEWLINE, TEXT, Blend, DataError

CacheKind = Literal["exact", "int8"]

_TOWERS: Mapping[type[TowerConfig], type[nn.Module]] = {
    VisionConfig: VisionTower,
    SiglipConfig: SiglipTower,
    InternConfig: InternTower,
    Qwen2VisionConfig: QwenTower,
    Qwen25VisionConfig: QwenTower,
    Qwen3VisionConfig: QwenTower,
}
_PROJECTOR_EPS = 1e-5  # of InternVL's norm; no config names it


class Projector(nn.Module):
    """Two linear layers with exact GELU between them (LLaVA-1.5's mlp2x_gelu), and the newline.

    InternVL's has LayerNorm before them.
    """

    config: LlavaConfig
    dtype: jnp.dtype
    lora: LoraConfig | None = None

    def setup(self) -> None:
        """Declares the layers and, where the model has them, the norm and the newline."""
        width, bias = self.config.text.hidden_size, self.config.projector_bias
        lora = self.lora and self.lora.of("connector")
        if self.config.projector_norm:
            self.layer_norm = LayerNorm(_PROJECTOR_EPS, self.dtype)
        self.linear_1 = Linear(width, ("vision_embed", "embed"), bias, lora, self.dtype)
        self.linear_2 = Linear(width, ("embed_in", "embed"), bias, lora, self.dtype)
        if self.config.newline:
            init = nn.with_logical_partitioning(nn.initializers.normal(width**-0.5), ("norm",))
            self.image_newline: Any = self.param("image_newline", init, (width,))

    def __call__(self, features_BPE: jax.Array, keys_BI: jax.Array | None = None) -> jax.Array:
        """Maps image features [B, P, E] to the width of the language model, [B, P, D].

        Args:
            features_BPE: the features of I tiles, one tile after another.
            keys_BI: see `Llava.features`.
        """
        keys_BP = None
        if keys_BI is not None:
            keys_NP = place_keys(keys_BI.reshape(-1), features_BPE.shape[1] // keys_BI.shape[1])
            keys_BP = keys_NP.reshape(features_BPE.shape[:2])
        x = self.layer_norm(features_BPE) if self.config.projector_norm else features_BPE
        x = drawing(self.linear_1, keys_BP, PROJECTOR_ADAPTERS)(x)
        x = constrain(nn.gelu(x, approximate=False), "batch", "length", "width")
        x = drawing(self.linear_2, keys_BP, PROJECTOR_ADAPTERS + 1)(x)
        return constrain(x, "batch", "length", "width")

    def deep(self, features_BPE: jax.Array, keys_BI: jax.Array | None = None) -> None:
        """Returns what is added after the first layers of the language model: nothing."""

    def newline(self) -> jax.Array:
        """Returns the vector that ends a row of an image, [D]."""
        return self.image_newline.astype(self.dtype)


class Llava(nn.Module):
    """Vision tower, projector and language model.

    Attributes:
        config: the architecture.
        lora: config of the adapters; None for no adapters.
        dtype: compute dtype; parameters keep the dtype they are stored in.
        remat: what the backward pass recomputes, see `layers.rematerialised`.
        attention: which kernel computes attention, see `attention.attend`.
        stacked: whether the variables of all decoder layers are stacked, and the layers scanned.
            A cache needs separate layers, see `seva_jax/models/unstacked.py`.
    """

    config: LlavaConfig
    lora: LoraConfig | None = None
    dtype: jnp.dtype = jnp.float32
    remat: Remat = "none"
    attention: Attention = "auto"
    stacked: bool = True

    def setup(self) -> None:
        """Declares the three parts."""
        lora = self.lora if self.lora and self.lora.rank else None
        tower: Any = _TOWERS[type(self.config.vision)]
        in_tower, in_projector = lora and lora.vision, lora and lora.connector
        names = self.config.vision.linear_sizes
        if lora and in_tower and not names.keys() & {*lora.vision_targets}:
            raise DataError(
                f"lora.vision_targets names {', '.join(lora.vision_targets)}, but the linear "
                f"layers of this tower are {', '.join(names)}; choose some of these"
            )
        projector: Any = QwenMerger if self.config.vision.native else Projector
        self.vision = tower(self.config, self.dtype, self.remat, lora if in_tower else None)
        self.projector = projector(self.config, self.dtype, lora if in_projector else None)
        self.language = Llama(
            self.config.text, lora, self.dtype, self.remat, self.attention, self.stacked
        )

    def features(
        self,
        images_BIX: jax.Array,
        place_BI5: jax.Array | None = None,
        keys_BI: jax.Array | None = None,
    ) -> jax.Array:
        """Returns the tower's features of all tiles.

        They are constant while the tower is frozen and has no adapters.

        Args:
            images_BIX: preprocessed tiles [B, I, H, W, 3], or their features [B, I, P, E]; I may
                be 0.
            place_BI5: see `TreeBatch.place_BI5`.
            keys_BI: a random key for each tile, from which the dropout of adapters draws; None
                drops nothing.

        Returns:
            [B, I * P, E], the input of the projector.
        """
        num, images = images_BIX.shape[:2]
        width = self.config.feature_width
        if not images:
            return jnp.zeros((num, 0, width), self.dtype)
        if images_BIX.ndim == 4:
            return images_BIX.reshape(num, -1, width).astype(self.dtype)
        if self.config.vision.native:
            assert place_BI5 is not None, "towers of native resolution need the places of tiles"
            return self.vision(images_BIX, place_BI5, keys_BI)
        keys_N = None if keys_BI is None else keys_BI.reshape(-1)
        features = self.vision(images_BIX.reshape(-1, *images_BIX.shape[2:]), keys_N)
        return features.reshape(num, -1, width)

    @property
    def feature_kind(self) -> tuple[tuple[int, int], jnp.dtype]:
        """Shape [P, E] and dtype of the features of a tile."""
        return (self.config.tile_features, self.config.feature_width), self.dtype

    def embed(
        self,
        tokens_BS: jax.Array,
        patch_BS: jax.Array,
        features_BPE: jax.Array,
        blend: Blend | None = None,
        keys_BI: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array | None]:
        """Returns token embeddings, with projected image features at image positions.

        Args:
            tokens_BS: token ids.
            patch_BS: see `TreeBatch.patch_BS`.
            features_BPE: image features of each row, see `features`.
            blend: see `TreeBatch.blend`.
            keys_BI: see `features`.

        Returns:
            [B, S, D]; and what is added after the first layers of the language model, see `Llama`.
        """
        # The id of the image token may be outside the vocabulary.
        text_BSD = self.language.embed(jnp.where(patch_BS == TEXT, tokens_BS, 0))
        if not features_BPE.shape[1]:
            return text_BSD, None
        image_BPD = self.projector(features_BPE, keys_BI)

        def taken(from_BPD: jax.Array, index_BS: jax.Array) -> jax.Array:
            return jnp.take_along_axis(from_BPD, jnp.maximum(index_BS, 0)[..., None], axis=1)

        if blend is None:
            image_BSD = taken(image_BPD, patch_BS)
        else:
            weight_BSM = blend.weight_BSM.astype(self.dtype)
            image_BSD = sum(
                weight_BSM[..., m, None] * taken(image_BPD, blend.index_BSM[..., m])
                for m in range(weight_BSM.shape[-1])
            )
        x_BSD = jnp.where(patch_BS[..., None] >= 0, image_BSD, text_BSD)
        if self.config.newline:
            x_BSD = jnp.where(patch_BS[..., None] == NEWLINE, self.projector.newline(), x_BSD)
        deep_NBPD = self.projector.deep(features_BPE, keys_BI)
        if deep_NBPD is None:
            return x_BSD, None
        deep_NBSD = jax.vmap(taken, (0, None))(deep_NBPD, patch_BS)
        return x_BSD, jnp.where(patch_BS[..., None] >= 0, deep_NBSD, 0)

    def hidden(
        self,
        tokens_BS: jax.Array,
        positions_BS: jax.Array,
        mask_BSU: jax.Array,
        patch_BS: jax.Array,
        features_BPE: jax.Array,
        cache: Cache | None = None,
        slot: jax.Array | None = None,
        keys_BS: jax.Array | None = None,
        blend: Blend | None = None,
        keys_BI: jax.Array | None = None,
    ) -> tuple[jax.Array, Cache | None]:
        """Returns the final hidden states [B, S, D] and the updated cache, see `Llama`."""
        x_BSD, deep_NBSD = self.embed(tokens_BS, patch_BS, features_BPE, blend, keys_BI)
        return self.language(
            x_BSD, positions_BS, mask_BSU, cache, slot, keys_BS, deep_NBSD=deep_NBSD
        )

    def hidden_and_input(
        self,
        tokens_BS: jax.Array,
        positions_BS: jax.Array,
        mask_BSU: jax.Array,
        patch_BS: jax.Array,
        features_BPE: jax.Array,
        layer: int,
        blend: Blend | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        """Returns the final hidden states and the input of a decoder layer, both [B, S, D]."""
        x_BSD, deep_NBSD = self.embed(tokens_BS, patch_BS, features_BPE, blend)
        return self.language.with_input(x_BSD, positions_BS, mask_BSU, layer, deep_NBSD)

    def decode(
        self,
        tokens_BS: jax.Array,
        positions_BS: jax.Array,
        mask_BSU: jax.Array,
        cache: Cache,
        slot: jax.Array,
        key_positions_BU: jax.Array,
    ) -> tuple[jax.Array, Cache]:
        """Returns float32 logits [B, S, V] of text tokens after the cache, and the new cache."""
        x_BSD = self.language.embed(tokens_BS)
        hidden_BSD, new_cache = self.language(
            x_BSD, positions_BS, mask_BSU, cache, slot, key_positions_BU=key_positions_BU
        )
        assert new_cache is not None
        return self.head(hidden_BSD), new_cache

    def head(self, hidden: jax.Array) -> jax.Array:
        """Maps hidden states [..., D] to float32 logits [..., V]."""
        return self.language.head(hidden)

    def __call__(
        self,
        tokens_BS: jax.Array,
        positions_BS: jax.Array,
        mask_BSU: jax.Array,
        patch_BS: jax.Array,
        pixels_BIHWC: jax.Array,
        blend: Blend | None = None,
        place_BI5: jax.Array | None = None,
    ) -> jax.Array:
        """Returns logits [B, S, V] at every position; for initialisation and small inputs."""
        features_BPE = self.features(pixels_BIHWC, place_BI5)
        hidden_BSD, _ = self.hidden(
            tokens_BS, positions_BS, mask_BSU, patch_BS, features_BPE, blend=blend
        )
        return self.head(hidden_BSD)

    def empty_cache(self, num_rows: int, num_slots: int, kind: CacheKind = "exact") -> Cache:
        """Returns a cache filled with zeros.

        Args:
            num_rows: rows, B.
            num_slots: positions of each row, U.
            kind: "exact" keeps keys and values in the compute dtype; "int8" rounds them to 8 bits,
                with a scale for each head of each position, and takes about half the memory of
                bfloat16.
        """
        cfg = self.config.text
        shape = (num_slots, cfg.num_kv_heads, num_rows, cfg.head_dim)
        names = ("length", "heads", "batch", "head_dim")

        def empty(dtype: jnp.dtype, dims: int = 4) -> jax.Array:
            return constrain(jnp.zeros(shape[:dims], dtype), *names[:dims])

        def layer() -> LayerCache:
            if kind == "exact":
                return LayerCache(empty(self.dtype), empty(self.dtype))
            int8, float32 = jnp.dtype(jnp.int8), jnp.dtype(jnp.float32)
            return LayerCache(empty(int8), empty(int8), empty(float32, 3), empty(float32, 3))

        return tuple(layer() for _ in range(cfg.num_layers))
