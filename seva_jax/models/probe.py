"""Attention weights of a few queries at one decoder layer, computed beside the forward pass.

Attention itself never makes its weights visible, and making them so in every layer would be slow.
Here queries and keys of one layer are computed again from what the layer reads
(`Llava.hidden_and_input`).
"""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp

from seva_jax.models.layers import LORA, Linear, RMSNorm
from seva_jax.models.llama import rotary, rotate
from seva_jax.models.llava import Llava
from seva_jax.sharding import constrain

_MASKED = -1e30


def layer_heads(
    model: Llava,
    variables: Any,
    layer: int,
    which: Literal["q_proj", "k_proj"],
    x_BXD: jax.Array,
    positions_BX: jax.Array,
) -> jax.Array:
    """Rotated queries or keys [B, X, heads, Q] of a decoder layer.

    Args:
        model: the module.
        variables: its variables, with adapters or without.
        layer: which layer, from 0.
        which: queries or keys.
        x_BXD: what the layer reads, at some positions.
        positions_BX: rotary positions of those.
    """
    cfg, dtype = model.config.text, model.dtype
    params = jax.tree.map(lambda x: x[layer], variables["params"]["language"]["layers"])
    y: Any = RMSNorm(cfg.norm_eps, dtype).apply({"params": params["input_layernorm"]}, x_BXD)
    num, name = {"q_proj": (cfg.num_heads, "heads"), "k_proj": (cfg.num_kv_heads, "kv_heads")}[
        which
    ]
    linear = Linear(num * cfg.head_dim, ("embed", name), lora=model.lora, dtype=dtype)
    collections = {"params": params[which]}
    adapters = variables.get(LORA, {}).get("language", {}).get("layers", {})
    if which in adapters:
        collections[LORA] = jax.tree.map(lambda x: x[layer], adapters[which])
    y = linear.apply(collections, y)
    y = constrain(y.reshape(*x_BXD.shape[:2], num, -1), "batch", "length", "heads", "head_dim")
    return rotate(y, *rotary(positions_BX, cfg.head_dim, cfg.rope_base))


def attention_weights(query_BXHQ: jax.Array, key_BUGQ: jax.Array, mask_BXU: jax.Array) -> jax.Array:
    """Attention weights [B, X, U], float32, mean over heads; rows of a query sum to 1.

    Args:
        query_BXHQ: queries, H heads.
        key_BUGQ: keys, G heads (H divisible by G).
        mask_BXU: True where a query may see a key.
    """
    rows, num, num_heads, width = query_BXHQ.shape
    query = query_BXHQ.reshape(rows, num, key_BUGQ.shape[2], -1, width)
    score = jnp.einsum("bxghq,bugq->bxghu", query, key_BUGQ, preferred_element_type=jnp.float32)
    score = jnp.where(mask_BXU[:, :, None, None], score * width**-0.5, _MASKED)
    weight = jax.nn.softmax(score, axis=-1)
    return weight.reshape(rows, num, num_heads, -1).mean(axis=2)
