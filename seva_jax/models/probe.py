"""Attention weights of a few queries at one decoder layer, computed next to the forward pass.

The attention kernels do not return their weights, and returning them from every layer would be
slow. Here the queries and keys of one layer are recomputed from the input of that layer
(`Llava.hidden_and_input`).
"""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp

from seva_jax.models.attention import MASKED
from seva_jax.models.layers import LORA, Linear, RMSNorm
from seva_jax.models.llama import rotary, rotate
from seva_jax.models.llava import Llava
from seva_jax.sharding import constrain


def layer_heads(
    model: Llava,
    variables: Any,
    layer: int,
    which: Literal["q_proj", "k_proj"],
    x_BAD: jax.Array,
    positions_BA: jax.Array,
) -> jax.Array:
    """Returns the rotated queries [B, A, H, Q] or keys [B, A, G, Q] of a decoder layer.

    Args:
        model: the module.
        variables: its variables, with or without adapters.
        layer: which layer, from 0.
        which: whether to compute queries or keys.
        x_BAD: input of the layer at some positions of each row.
        positions_BA: rotary positions of the same.
    """
    cfg, dtype = model.config.text, model.dtype

    def own(name: str) -> Any:
        language = variables.get(name, {}).get("language", {})
        if not model.stacked:
            return language.get(f"layers_{layer}", {})
        return jax.tree.map(lambda x: x[layer], language.get("layers", {}))

    params, adapters = own("params"), own(LORA)
    y: Any = RMSNorm(cfg.norm_eps, dtype).apply({"params": params["input_layernorm"]}, x_BAD)
    num, name = {"q_proj": (cfg.num_heads, "heads"), "k_proj": (cfg.num_kv_heads, "kv_heads")}[
        which
    ]
    lora = model.lora.of(which) if model.lora else None
    linear = Linear(num * cfg.head_dim, ("embed", name), cfg.qkv_bias, lora, dtype)
    collections = {"params": params[which]}
    if which in adapters:
        collections[LORA] = adapters[which]
    y = linear.apply(collections, y)
    y = constrain(y.reshape(*x_BAD.shape[:2], num, -1), "batch", "length", "heads", "head_dim")
    if cfg.qk_norm:
        own_norm = {"params": params[which.replace("proj", "norm")]}
        y = RMSNorm(cfg.norm_eps, dtype).apply(own_norm, y)
    return rotate(y, *rotary(positions_BA, cfg))


def attention_weights(query_BAHQ: jax.Array, key_BUGQ: jax.Array, mask_BAU: jax.Array) -> jax.Array:
    """Returns float32 attention weights [B, A, U], averaged over heads; they sum to 1 over U.

    Args:
        query_BAHQ: queries.
        key_BUGQ: keys; H is divisible by G.
        mask_BAU: True where a query attends to a key.
    """
    rows, num, num_heads, width = query_BAHQ.shape
    query = query_BAHQ.reshape(rows, num, key_BUGQ.shape[2], -1, width)
    score = jnp.einsum("baghq,bugq->baghu", query, key_BUGQ, preferred_element_type=jnp.float32)
    score = jnp.where(mask_BAU[:, :, None, None], score * width**-0.5, MASKED)
    weight = jax.nn.softmax(score, axis=-1)
    return weight.reshape(rows, num, num_heads, -1).mean(axis=2)
