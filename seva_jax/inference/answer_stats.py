"""What the model makes of given answers: each token's log-prob, and the attention to image tokens.

What lives here: the pass. What does not: the weights of a layer's attention (`models/probe.py`),
log-probs (`training/step.py`), and what the numbers are used for (`seva_jax/pairs`).
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from seva_jax.batches.pipeline import ComparisonRows
from seva_jax.inference.passes import PassLayout, run_pass
from seva_jax.models import Llava, attention_weights, layer_heads, window_mask, windowed
from seva_jax.training.step import (
    StepOptions,
    Variables,
    image_features,
    tree_hidden,
    tree_inputs,
    tree_logps,
    tree_mask,
)
from seva_jax.types import TEXT, TreeBatch

_QUERIES = 32  # answer tokens of a row whose attention weights exist at one time


class TokenStats(NamedTuple):
    """Statistics of one answer of T tokens.

    Attributes:
        index: index of the comparison.
        logp_T: log-prob of each answer token.
        best_logp_T: log-prob of the likeliest token at each position.
        attention_P: attention that each image token gets at the chosen layer from all tokens of
            the answer but the last, which is the end token: summed over these and averaged over
            heads; images in order. Empty if no layer was chosen.
    """

    index: int
    logp_T: np.ndarray
    best_logp_T: np.ndarray
    attention_P: np.ndarray


def image_attention(
    model: Llava, variables: Variables, batch: TreeBatch, layer: int, input_BSD: jax.Array
) -> jax.Array:
    """Returns the attention that image tokens get from answers at one layer.

    The last token of an answer does not ask: while an answer is generated, as in MIA-DPO's release,
    generation ends with the end token, and nothing is computed from it.

    Args:
        model: the module.
        variables: its variables.
        batch: the rows; every tree has one branch, and every comparison one tree.
        layer: index of the layer.
        input_BSD: hidden states that enter it.

    Returns:
        float32 [B, C, S], a sum over answer tokens but the last, and a mean over heads; 0 at text.
    """
    positions_BS, length = batch.positions_BS, batch.tokens_BS.shape[1]
    key_BSGQ = layer_heads(model, variables, layer, "k_proj", input_BSD, positions_BS)
    # With one branch per tree, an answer token stands right after the token that predicts it.
    # Slots without an answer token belong to no comparison.
    index_C = jnp.arange(batch.mask_BCKT.shape[1])
    slots_BA = batch.slot_BCKT.reshape(len(input_BSD), -1)
    row_BA = jnp.take_along_axis(batch.source_BA, slots_BA, axis=1) + 1
    asks_BCT = jnp.pad(batch.mask_BCKT[:, :, 0, 1:], ((0, 0), (0, 0), (0, 1)))  # a token follows
    owner_BA = jnp.where(asks_BCT > 0, index_C[:, None], -1).reshape(slots_BA.shape)
    row_BA = jnp.minimum(row_BA, length - 1)
    num = slots_BA.shape[1]

    def chunks(x_BA: jax.Array, fill: int) -> jax.Array:
        padded_BA = jnp.pad(x_BA, ((0, 0), (0, -num % _QUERIES)), constant_values=fill)
        return padded_BA.reshape(len(x_BA), -1, _QUERIES).swapaxes(0, 1)

    def at(x_BS: jax.Array, row_BA: jax.Array) -> jax.Array:
        more = (1,) * (x_BS.ndim - 2)  # positions may have three axes
        return jnp.take_along_axis(x_BS, row_BA.reshape(*row_BA.shape, *more), axis=1)

    def add(total_BCS: jax.Array, chunk: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        row_BA, owner_BA = chunk
        x_BAD = jnp.take_along_axis(input_BSD, row_BA[..., None], axis=1)
        query = layer_heads(model, variables, layer, "q_proj", x_BAD, at(positions_BS, row_BA))
        weight_BAS = attention_weights(query, key_BSGQ, visible(row_BA))
        is_owner_BCA = (owner_BA[:, None] == index_C[:, None]).astype(jnp.float32)
        # At full precision: accelerators would round the weights to bfloat16.
        return total_BCS + jnp.einsum(
            "bca,bas->bcs", is_owner_BCA, weight_BAS, precision=jax.lax.Precision.HIGHEST
        ), None

    text = model.config.text
    near_BSS = window_mask(text, positions_BS, positions_BS)
    mask_BSS = windowed(text, tree_mask(batch.tree_BS, batch.branch_BS), near_BSS, layer)

    def visible(row_BA: jax.Array) -> jax.Array:
        return jnp.take_along_axis(mask_BSS, row_BA[..., None], axis=1)

    zero = jnp.zeros((len(input_BSD), len(index_C), length), jnp.float32)
    total_BCS, _ = jax.lax.scan(add, zero, (chunks(row_BA, 0), chunks(owner_BA, -1)))
    return total_BCS * (batch.patch_BS != TEXT)[:, None]


def answer_stats(
    model: Llava,
    variables: Variables,
    rows: ComparisonRows,
    layout: PassLayout,
    options: StepOptions,
    layer: int | None,
    start: int = 0,
) -> Iterator[list[TokenStats | None]]:
    """Yields the statistics of answers in order, on every process; None where images do not decode.

    Args:
        model: the module.
        variables: its variables.
        rows: comparisons of one answer each.
        layout: the layout of the pass.
        options: of the computation.
        layer: the layer whose attention is measured; None measures none.
        start: the first comparison wanted.
    """
    compute = functools.partial(_compute, model, options, layer)
    batches = layout.batches(rows, first=start // layout.batch_size)
    for members, out in run_pass(compute, variables, batches, layout.mesh):
        by_index = {stats.index: stats for stats in _split(*out)}
        yield [by_index.get(index) for index in members if index >= start]


def _compute(
    model: Llava, options: StepOptions, layer: int | None, variables: Variables, batch: TreeBatch
) -> tuple[jax.Array | None, ...]:
    """Returns what `_split` takes, of one batch."""
    features_BPE = image_features(model, variables, batch)
    attention_BCS = None
    if layer is None:
        hidden_BSD = tree_hidden(model, variables, batch, features_BPE)
    else:
        both: Any = model.apply(
            variables, **tree_inputs(batch, features_BPE), layer=layer, method="hidden_and_input"
        )
        hidden_BSD, input_BSD = both
        attention_BCS = image_attention(model, variables, batch, layer, input_BSD)
    stats = tree_logps(model, variables, batch, options, hidden_BSD, frozenset({"best_other"}))
    assert stats.best_other_NKT is not None
    shape = batch.mask_BCKT.shape
    logp_BCT = stats.logp_NKT.reshape(shape)[:, :, 0]
    best_logp_BCT = jnp.maximum(logp_BCT, stats.best_other_NKT.reshape(shape)[:, :, 0])
    length_BC = batch.mask_BCKT[:, :, 0].sum(-1)
    tree_BS = jnp.where(batch.patch_BS != TEXT, batch.tree_BS, 0)
    return logp_BCT, best_logp_BCT, length_BC, batch.index_BC, tree_BS, attention_BCS


def _split(
    logp_BCT: np.ndarray,
    best_logp_BCT: np.ndarray,
    length_BC: np.ndarray,
    index_BC: np.ndarray,
    tree_BS: np.ndarray,
    attention_BCS: Any,
) -> Iterator[TokenStats]:
    """Yields the statistics of each comparison; `tree_BS` is 0 except at image tokens."""
    for b, c in np.argwhere(index_BC >= 0):
        length = int(length_BC[b, c])
        attention_P = np.zeros(0, np.float32)
        if attention_BCS is not None:
            attention_P = attention_BCS[b, c, tree_BS[b] == c + 1]
        yield TokenStats(
            int(index_BC[b, c]), logp_BCT[b, c, :length], best_logp_BCT[b, c, :length], attention_P
        )
