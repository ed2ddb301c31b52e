"""A pass over answers: what the model thinks of each token, and where one layer looks meanwhile.

What lives here: the pass. What does not: the weights of a layer's attention (`models/probe.py`),
log-probs (`step.py`), and what is made of them (`pairs/`).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from seva_jax.batches.pipeline import Batches, ComparisonRows, RowShapes, in_order
from seva_jax.models import Llava, attention_weights, layer_heads
from seva_jax.runtime import shutdown
from seva_jax.sharding import process_row_share, put_batch, replicated, row_multiple
from seva_jax.training.step import (
    StepOptions,
    Variables,
    image_features,
    tree_hidden,
    tree_logps,
    tree_mask,
)
from seva_jax.types import TreeBatch

_QUERIES = 32  # answer tokens of a row whose attention weights exist at one time


class TokenStats(NamedTuple):
    """How the model reads one answer. T answer tokens.

    Attributes:
        index: of the comparison.
        logp_T: log-prob of each answer token.
        best_logp_T: log-prob of the likeliest token at each place.
        attention_P: attention that image tokens get from the answer's tokens at the layer asked
            for, a sum over these and a mean over heads; images in order. Empty where no layer was
            asked for.
    """

    index: int
    logp_T: np.ndarray
    best_logp_T: np.ndarray
    attention_P: np.ndarray


def image_attention(
    model: Llava, variables: Variables, batch: TreeBatch, layer: int, input_BSD: jax.Array
) -> jax.Array:
    """Attention that each position with an image token gets from answers at one layer.

    Args:
        model: the module.
        variables: its variables.
        batch: the rows; every tree has one branch, and every comparison one tree.
        layer: which layer.
        input_BSD: what it reads.

    Returns:
        float32 [B, C, S], a sum over answer tokens and a mean over heads; 0 at text.
    """
    positions_BS, length = batch.positions_BS, batch.tokens_BS.shape[1]
    key_BSGQ = layer_heads(model, variables, layer, "k_proj", input_BSD, positions_BS)
    # With one branch a tree, the token after the one that predicts an answer token is this token.
    # Places without an answer token belong to no comparison.
    index_C = jnp.arange(batch.mask_BCKT.shape[1])
    slots_BX = batch.slot_BCKT.reshape(len(input_BSD), -1)
    row_BX = jnp.take_along_axis(batch.source_BA, slots_BX, axis=1) + 1
    mask_BCT = batch.mask_BCKT[:, :, 0]
    owner_BX = jnp.where(mask_BCT > 0, index_C[:, None], -1).reshape(slots_BX.shape)
    row_BX = jnp.minimum(row_BX, length - 1)
    num = slots_BX.shape[1]

    def chunks(x_BX: jax.Array, fill: int) -> jax.Array:
        padded_BX = jnp.pad(x_BX, ((0, 0), (0, -num % _QUERIES)), constant_values=fill)
        return padded_BX.reshape(len(x_BX), -1, _QUERIES).swapaxes(0, 1)

    def at(x_BS: jax.Array, row_BX: jax.Array) -> jax.Array:
        return jnp.take_along_axis(x_BS, row_BX, axis=1)

    def add(total_BCS: jax.Array, chunk: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        row_BX, owner_BX = chunk
        x_BXD = jnp.take_along_axis(input_BSD, row_BX[..., None], axis=1)
        query = layer_heads(model, variables, layer, "q_proj", x_BXD, at(positions_BS, row_BX))
        weight_BXS = attention_weights(query, key_BSGQ, visible(row_BX))
        is_owner_BCX = (owner_BX[:, None] == index_C[:, None]).astype(jnp.float32)
        # At full precision: accelerators would round the weights to bfloat16.
        return total_BCS + jnp.einsum(
            "bcx,bxs->bcs", is_owner_BCX, weight_BXS, precision=jax.lax.Precision.HIGHEST
        ), None

    mask_BSS = tree_mask(batch.tree_BS, batch.branch_BS)

    def visible(row_BX: jax.Array) -> jax.Array:
        return jnp.take_along_axis(mask_BSS, row_BX[..., None], axis=1)

    zero = jnp.zeros((len(input_BSD), len(index_C), length), jnp.float32)
    total_BCS, _ = jax.lax.scan(add, zero, (chunks(row_BX, 0), chunks(owner_BX, -1)))
    return total_BCS * (batch.patch_BS >= 0)[:, None]


@dataclasses.dataclass(frozen=True)
class Reader:
    """Reads answers with a model.

    Attributes:
        model: the module.
        variables: its variables; the base model's.
        mesh: where it lives.
        batch_size: answers read together, over all devices.
        shapes: of the rows.
        options: of the computation.
    """

    model: Llava
    variables: Variables
    mesh: jax.sharding.Mesh
    batch_size: int
    shapes: RowShapes
    options: StepOptions

    def __call__(
        self, rows: ComparisonRows, layer: int | None, start: int = 0
    ) -> Iterator[list[TokenStats | None]]:
        """Readings in order, on every process; None where images do not decode.

        Args:
            rows: comparisons of one answer each.
            layer: where attention is looked at; None nowhere.
            start: the first comparison wanted.
        """
        one = functools.partial(_pass, self.model, self.options, layer)
        pass_fn = jax.jit(one, out_shardings=replicated(self.mesh))
        schedule, unit = in_order(rows, self.batch_size), row_multiple(self.mesh)
        batches = Batches.chosen(
            rows, schedule, self.batch_size, process_row_share(self.mesh), unit, self.shapes
        )
        # Batches are those of all comparisons: who resumes computes what who does not computes.
        first = start // self.batch_size
        data = batches.iterate()
        if first:
            data.set_state({"next_index": first})
        for number in range(first, len(batches)):
            shutdown.raise_if_stopping()  # what was given is on disk
            with jax.set_mesh(self.mesh):
                out = pass_fn(self.variables, put_batch(self.mesh, next(data)))
            found = {reading.index: reading for reading in _readings(*jax.device_get(out))}
            yield [found.get(index) for index in schedule[number] if index >= start]


def _pass(
    model: Llava, options: StepOptions, layer: int | None, variables: Variables, batch: TreeBatch
) -> tuple[jax.Array | None, ...]:
    """What `_readings` takes."""
    features_BPE = image_features(model, variables, batch)
    attention_BCS = None
    if layer is None:
        hidden_BSD = tree_hidden(model, variables, batch, features_BPE)
    else:
        both: Any = model.apply(
            variables,
            batch.tokens_BS,
            batch.positions_BS,
            tree_mask(batch.tree_BS, batch.branch_BS),
            batch.patch_BS,
            features_BPE,
            layer,
            method="hidden_and_input",
        )
        hidden_BSD, input_BSD = both
        attention_BCS = image_attention(model, variables, batch, layer, input_BSD)
    found = tree_logps(model, variables, batch, options, hidden_BSD, frozenset({"best_other"}))
    assert found.best_other_NKT is not None
    shape = batch.mask_BCKT.shape
    logp_BCT = found.logp_NKT.reshape(shape)[:, :, 0]
    best_logp_BCT = jnp.maximum(logp_BCT, found.best_other_NKT.reshape(shape)[:, :, 0])
    length_BC = batch.mask_BCKT[:, :, 0].sum(-1)
    tree_BS = jnp.where(batch.patch_BS >= 0, batch.tree_BS, 0)
    return logp_BCT, best_logp_BCT, length_BC, batch.index_BC, tree_BS, attention_BCS


def _readings(
    logp_BCT: np.ndarray,
    best_logp_BCT: np.ndarray,
    length_BC: np.ndarray,
    index_BC: np.ndarray,
    tree_BS: np.ndarray,
    attention_BCS: Any,
) -> Iterator[TokenStats]:
    """By comparison; `tree_BS` is 0 where there is no image token."""
    for b, c in np.argwhere(index_BC >= 0):
        length = int(length_BC[b, c])
        attention_P = np.zeros(0, np.float32)
        if attention_BCS is not None:
            attention_P = attention_BCS[b, c, tree_BS[b] == c + 1]
        yield TokenStats(
            int(index_BC[b, c]), logp_BCT[b, c, :length], best_logp_BCT[b, c, :length], attention_P
        )
