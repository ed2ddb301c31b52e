"""Decoder of Llama, Mistral and Qwen: grouped-query attention, rotary positions, KV cache.

The attention mask is an argument, so the same decoder computes tree rows, padded batches, prefill
and single-token decoding; a sliding window narrows it by the positions of queries and keys. The
cache is an argument and a result, not hidden state. Layers are stacked and scanned for training,
and separate for answering, see `seva_jax/models/unstacked.py`.
"""

from __future__ import annotations

import typing
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from seva_jax.models.attention import Attention, attend, attend_cached
from seva_jax.models.config import LoraConfig, Target, TextConfig
from seva_jax.models.layers import Linear, Remat, RMSNorm, drawing, rematerialised
from seva_jax.sharding import constrain, constrain_logits, uneven
from seva_jax.types import DataError

TARGETS: tuple[Target, ...] = typing.get_args(Target)


class LayerCache(NamedTuple):
    """KV cache of one layer, in the order in which a token step of a TPU reads it.

    In another order XLA lays the cache out anew when a decode loop begins and when it ends.

    Attributes:
        key_UGBQ: rotated keys in U slots; in the compute dtype or int8.
        value_UGBQ: values, likewise.
        key_scale_UGB: float32, what int8 keys are to be multiplied by; None for others.
        value_scale_UGB: the same for values.
    """

    key_UGBQ: jax.Array
    value_UGBQ: jax.Array
    key_scale_UGB: jax.Array | None = None
    value_scale_UGB: jax.Array | None = None

    def write(self, slot: jax.Array, key_BSGQ: jax.Array, value_BSGQ: jax.Array) -> LayerCache:
        """Returns the cache with keys and values written from `slot` on."""

        def put(
            old_UGBQ: jax.Array, scale_UGB: jax.Array | None, new_BSGQ: jax.Array
        ) -> tuple[jax.Array, jax.Array | None]:
            new_SGBQ = new_BSGQ.transpose(1, 2, 0, 3)
            if scale_UGB is not None:
                new_SGBQ = new_SGBQ.astype(jnp.float32)
                scale_SGB = jnp.maximum(jnp.abs(new_SGBQ).max(-1), 1e-20) / 127
                new_SGBQ = jnp.round(new_SGBQ / scale_SGB[..., None]).astype(jnp.int8)
                scale_UGB = jax.lax.dynamic_update_slice(scale_UGB, scale_SGB, (slot, 0, 0))
            return jax.lax.dynamic_update_slice(old_UGBQ, new_SGBQ, (slot, 0, 0, 0)), scale_UGB

        key, key_scale = put(self.key_UGBQ, self.key_scale_UGB, key_BSGQ)
        value, value_scale = put(self.value_UGBQ, self.value_scale_UGB, value_BSGQ)
        return LayerCache(key, value, key_scale, value_scale)


Cache = tuple[LayerCache, ...]  # of all layers


class Input(NamedTuple):
    """The input of one layer, kept while the layers are applied.

    Attributes:
        layer: int32 scalar, which layer.
        x_BSD: the residual stream before that layer.
    """

    layer: jax.Array
    x_BSD: jax.Array


Carry = tuple[jax.Array, LayerCache | None, Input | None]


def rotary(positions_BS: jax.Array, config: TextConfig) -> tuple[jax.Array, jax.Array]:
    """Returns cosines and sines [B, S, 1, Q] in float32, in Hugging Face's half-split layout.

    Args:
        positions_BS: positions; or [B, S, 3], those of the three axes of `rope_sections`.
        config: the architecture.
    """
    rope = config.rope
    frequency = jnp.asarray(rope.frequencies(config.rope_base, config.head_dim))
    if positions_BS.ndim == 3:
        place = jnp.take(positions_BS, jnp.array(config.rope_axes, jnp.int32), axis=-1)
    else:
        place = positions_BS[..., None]
    angle = place.astype(jnp.float32) * frequency
    angle = jnp.concatenate([angle, angle], axis=-1)[:, :, None]
    return jnp.cos(angle) * rope.amplitude, jnp.sin(angle) * rope.amplitude


def rotate(x_BSHQ: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Applies rotary position embeddings (RoFormer, arXiv 2104.09864) to queries or keys."""
    first, second = jnp.split(x_BSHQ.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([-second, first], axis=-1)
    return (x_BSHQ * cos + turned * sin).astype(x_BSHQ.dtype)


def window_mask(
    config: TextConfig, positions_BS: jax.Array, key_positions_BU: jax.Array
) -> jax.Array | None:
    """Returns whether a key is in the sliding window of a query, [B, S, U].

    None if there is no window, or if it holds all of U positions.

    Args:
        config: the architecture.
        positions_BS: positions of the queries.
        key_positions_BU: positions of the keys, all below U.
    """
    if not 0 < config.window < key_positions_BU.shape[1]:
        return None
    return positions_BS[:, :, None] - key_positions_BU[:, None] < config.window


def windowed(
    config: TextConfig, mask_BSU: jax.Array, near_BSU: jax.Array | None, layer: jax.Array | int
) -> jax.Array:
    """Returns the attention mask of one layer.

    Args:
        config: the architecture.
        mask_BSU: the mask without a sliding window.
        near_BSU: see `window_mask`.
        layer: which layer.
    """
    if near_BSU is None:
        return mask_BSU
    full = jnp.isin(layer, jnp.array(config.full_layers, jnp.int32))
    return mask_BSU & (near_BSU | full)


class DecoderLayer(nn.Module):
    """Pre-norm decoder layer: attention and gated MLP."""

    config: TextConfig
    lora: LoraConfig | None
    dtype: jnp.dtype
    attention: Attention

    @nn.compact
    def __call__(
        self,
        carry: Carry,
        layer: jax.Array | int,
        rope: tuple[jax.Array, jax.Array],
        mask_BSU: jax.Array,
        slot: Any,
        keys_BS: Any = None,
        near_BSU: Any = None,
        deep_NBSD: Any = None,
    ) -> tuple[Carry, None]:
        """Applies the layer.

        Args:
            carry: the residual stream x [B, S, D]; the cache of this layer, or None; the input of
                the layer to be kept, or None.
            layer: which layer this is.
            rope: cosines and sines of the positions of x, see `rotary`.
            mask_BSU: True where a query attends to a key. The keys are those of x, or of the cache
                where there is a cache and S = 1.
            slot: scalar, first cache slot for the keys and values of x; None without a cache.
            keys_BS: random keys for the dropout of adapters; None drops nothing.
            near_BSU: see `window_mask`.
            deep_NBSD: what is added after each of the first N layers (DeepStack), or None.

        Returns:
            The updated carry and None, as `nn.scan` expects.
        """
        x_BSD, cache, kept = carry
        if kept is not None:
            kept = kept._replace(x_BSD=jnp.where(layer == kept.layer, x_BSD, kept.x_BSD))
        cfg = self.config

        def linear(
            name: Target, features: int, dims: tuple[str, str], bias: bool = False
        ) -> Callable[..., jax.Array]:
            adapters = self.lora.of(name) if self.lora and name in self.lora.targets else None
            module = Linear(features, dims, bias, adapters, self.dtype, name=name)
            return drawing(module, keys_BS, layer * len(TARGETS) + TARGETS.index(name))

        def heads(name: Target, num: int, dim: str) -> jax.Array:
            x = linear(name, num * cfg.head_dim, ("embed", dim), cfg.qkv_bias)(y)
            x = x.reshape(*x.shape[:2], num, cfg.head_dim)
            return constrain(x, "batch", "length", "heads", "head_dim")

        x_BSD = constrain(x_BSD, "batch", "length", "width")
        mask_BSU = windowed(cfg, mask_BSU, near_BSU, layer)
        y = RMSNorm(cfg.norm_eps, self.dtype, name="input_layernorm")(x_BSD)
        q = heads("q_proj", cfg.num_heads, "heads")
        k = heads("k_proj", cfg.num_kv_heads, "kv_heads")
        v = heads("v_proj", cfg.num_kv_heads, "kv_heads")
        if cfg.qk_norm:
            q = RMSNorm(cfg.norm_eps, self.dtype, name="q_norm")(q)
            k = RMSNorm(cfg.norm_eps, self.dtype, name="k_norm")(k)
        q, k = rotate(q, *rope), rotate(k, *rope)
        if cache is not None:
            cache = cache.write(slot, k, v)
        if cache is not None and x_BSD.shape[1] == 1:
            y = attend_cached(q, *cache, mask_B1U=mask_BSU)
        else:
            y = attend(q, k, v, mask_BSU, self.attention)
        y = y.reshape(*x_BSD.shape[:2], -1)
        y = constrain(y, "batch", "length", "heads")
        x = x_BSD + linear("o_proj", cfg.hidden_size, ("heads", "embed"))(y)
        x = constrain(x, "batch", "length", "width")

        y = RMSNorm(cfg.norm_eps, self.dtype, name="post_attention_layernorm")(x)
        gate = nn.silu(linear("gate_proj", cfg.mlp_size, ("embed", "mlp"))(y))
        y = constrain(
            gate * linear("up_proj", cfg.mlp_size, ("embed", "mlp"))(y), "batch", "length", "mlp"
        )
        x = x + linear("down_proj", cfg.hidden_size, ("mlp", "embed"))(y)
        if deep_NBSD is not None:
            last = len(deep_NBSD) - 1
            added = jax.lax.dynamic_index_in_dim(deep_NBSD, jnp.minimum(layer, last), 0, False)
            x = x + jnp.where(layer <= last, added, 0)
        return (constrain(x, "batch", "length", "width"), cache, kept), None


class Llama(nn.Module):
    """Embedding, decoder layers, final norm and head of a language model.

    Attributes:
        config: the architecture.
        lora: see `Llava`.
        dtype: see `Llava`.
        remat: see `Llava`; of no effect on layers that are not stacked.
        attention: see `Llava`.
        stacked: see `Llava`.
    """

    config: TextConfig
    lora: LoraConfig | None
    dtype: jnp.dtype
    remat: Remat
    attention: Attention
    stacked: bool

    def setup(self) -> None:
        """Declares the embedding table, the layers, the norm and the head."""
        cfg = self.config
        init = nn.with_logical_partitioning(nn.initializers.normal(0.02), ("vocab", "embed"))
        self.embedding: Any = self.param("embedding", init, (cfg.vocab_size, cfg.hidden_size))
        options = (cfg, self.lora, self.dtype, self.attention)
        if self.stacked:
            self.layers: Any = nn.scan(
                rematerialised(DecoderLayer, self.remat),
                variable_axes={"params": 0, "lora": 0},
                split_rngs={"params": True},
                in_axes=(0, *[nn.broadcast] * 6),  # pyright: ignore[reportArgumentType]
                length=cfg.num_layers,
                metadata_params={nn.PARTITION_NAME: "layers"},
            )(*options)
        else:
            self.layers = [DecoderLayer(*options) for _ in range(cfg.num_layers)]
        self.norm = RMSNorm(cfg.norm_eps, self.dtype)
        if not cfg.tied_head:
            init = nn.with_logical_partitioning(nn.initializers.lecun_normal(), ("embed", "vocab"))
            self.head_kernel: Any = self.param("head", init, (cfg.hidden_size, cfg.vocab_size))

    def embed(self, tokens_BS: jax.Array) -> jax.Array:
        """Returns token embeddings [B, S, D] in the compute dtype."""
        # The table is looked up with whole rows: with rows split over fsdp, XLA would replicate
        # the result.
        part = "width_part" if uneven(self.config.vocab_size) else "width"
        table_VD = constrain(self.embedding, "vocab", part)
        x_BSD = jnp.take(table_VD, tokens_BS, axis=0).astype(self.dtype)
        return constrain(x_BSD, "batch", "length", "width")

    def __call__(
        self,
        x_BSD: jax.Array,
        positions_BS: jax.Array,
        mask_BSU: jax.Array,
        cache: Cache | None = None,
        slot: jax.Array | None = None,
        keys_BS: jax.Array | None = None,
        key_positions_BU: jax.Array | None = None,
        deep_NBSD: jax.Array | None = None,
    ) -> tuple[jax.Array, Cache | None]:
        """Returns the final hidden states [B, S, D] of embeddings, and the updated cache.

        With a cache, x is either whole prompts, which start at slot 0, or one token per row, and
        layers are not stacked. Adapters drop inputs only where there are `keys_BS` to draw from.
        `key_positions_BU` are the positions of what the cache holds where x is one token per row,
        which a sliding window needs; of other keys the positions are those of x. `deep_NBSD` is
        added after the first N layers.
        """
        keys = positions_BS if key_positions_BU is None else key_positions_BU
        rope, near_BSU = self._positions(positions_BS, keys)
        shared = (rope, mask_BSU, slot, keys_BS, near_BSU, deep_NBSD)
        x, cache, _ = self._apply(x_BSD, cache, None, *shared)
        return self.norm(x), cache

    def with_input(
        self,
        x_BSD: jax.Array,
        positions_BS: jax.Array,
        mask_BSU: jax.Array,
        layer: int,
        deep_NBSD: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        """Returns the final hidden states and the input of one layer, both [B, S, D]; no cache."""
        kept = Input(jnp.int32(layer), jnp.zeros_like(x_BSD))
        rope, near_BSU = self._positions(positions_BS, positions_BS)
        shared = (rope, mask_BSU, None, None, near_BSU, deep_NBSD)
        x, _, kept = self._apply(x_BSD, None, kept, *shared)
        assert kept is not None
        return self.norm(x), kept.x_BSD

    def _positions(
        self, positions_BS: jax.Array, key_positions_BU: jax.Array
    ) -> tuple[tuple[jax.Array, jax.Array], jax.Array | None]:
        """Returns what layers take of positions: `rotary` of queries, and `window_mask`.

        Raises:
            DataError: rows are longer than the rotary frequencies allow.
        """
        most, length = self.config.rope.most_positions, key_positions_BU.shape[1]
        if most is not None and length > most:
            raise DataError(
                f"rows of {length} tokens are longer than the context of the language model, "
                f"{most} (max_position_embeddings of its config.json), and its rope_type "
                '"dynamic" is supported up to there: lower text.max_length, or the number of '
                "tokens to generate"
            )
        near_BSU = window_mask(self.config, positions_BS, key_positions_BU)
        return rotary(positions_BS, self.config), near_BSU

    def _apply(
        self, x: jax.Array, cache: Cache | None, kept: Input | None, *shared: Any
    ) -> tuple[jax.Array, Cache | None, Input | None]:
        """Applies all layers; `shared` are the arguments of `DecoderLayer` that they share."""
        num = self.config.num_layers
        if self.stacked:
            assert cache is None, "stacked layers have no cache; see models/unstacked.py"
            (x, _, kept), _ = self.layers((x, None, kept), jnp.arange(num), *shared)
            return x, None, kept
        written = []
        for i, layer in enumerate(self.layers):
            own = cache[i] if cache is not None else None
            (x, own, kept), _ = layer((x, own, kept), i, *shared)
            written.append(own)
        return x, tuple(written) if cache is not None else None, kept

    def head(self, hidden: jax.Array) -> jax.Array:
        """Maps hidden states [..., D] to logits [..., V] in float32."""
        kernel = self.embedding.T if self.config.tied_head else self.head_kernel
        if uneven(self.config.vocab_size):
            # Every device adds the products of its part of the width.
            kernel = constrain(kernel, "width_part", "vocab")
        logits = jnp.matmul(
            constrain(hidden, "batch", "length", "width").astype(self.dtype),
            kernel.astype(self.dtype),
            preferred_element_type=jnp.float32,
        )
        return constrain_logits(logits)
