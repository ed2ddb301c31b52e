"""READ FIRST: from a batch of trees to log-probs, loss, gradient and update.

Top to bottom: who may see whom in a row (`tree_mask`), the log-probs of all answers
(`tree_logps`), the weighted loss (`batch_loss`), one optimiser step (`make_train_step`) and the
reference pass (`make_logps`). Everything is a pure function; `seva_jax/train.py` owns the loop.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from seva_jax.models import Llava
from seva_jax.objectives import Metrics, Objective
from seva_jax.types import BranchLogps, TreeBatch

Variables = Mapping[str, Any]  # {"params": {...}, "lora": {...}}


class TrainState(NamedTuple):
    """What training changes, and all that a checkpoint of a step needs besides the data position.

    Attributes:
        step: int32 scalar, completed optimiser steps. Training draws no random numbers of its
            own, so the step is the whole random state.
        trainable: the trained part of the variables, float32.
        opt_state: the optimiser's state.
    """

    step: jax.Array
    trainable: Any
    opt_state: optax.OptState


@dataclasses.dataclass(frozen=True)
class StepOptions:
    """How the step computes what it computes; results differ only by rounding.

    Attributes:
        head_chunk: answer positions whose logits exist at one time, for each row.
    """

    head_chunk: int = 128


def split_params(
    params: Mapping[str, Any], trained: Sequence[str], reference_in_step: bool
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The parts of a "params" collection that stay frozen, and those that are trained.

    Args:
        params: the base model's.
        trained: see `TrainOptions.trained`.
        reference_in_step: the reference is computed from the frozen parts, so all of them stay.
    """
    frozen = {p: x for p, x in params.items() if reference_in_step or p not in trained}
    return frozen, {p: x for p, x in params.items() if p in trained}


def merge(frozen: Variables, trainable: Variables) -> Variables:
    """The policy's variables: the frozen ones with every trained part laid over them."""
    merged = {name: dict(collection) for name, collection in frozen.items()}
    for name, collection in trainable.items():
        merged.setdefault(name, {}).update(collection)
    return merged


def tree_mask(tree_BS: jax.Array, branch_BS: jax.Array) -> jax.Array:
    """[B, S, S]: a token sees its own tree's trunk and its own branch, causally."""
    length = tree_BS.shape[1]
    causal_SU = jnp.arange(length)[:, None] >= jnp.arange(length)
    same_tree = tree_BS[:, :, None] == tree_BS[:, None]
    visible = (branch_BS[:, None] == 0) | (branch_BS[:, :, None] == branch_BS[:, None])
    return causal_SU & same_tree & visible


def image_features(model: Llava, variables: Variables, batch: TreeBatch) -> Any:
    """What the vision tower makes of the images of a batch, [B, I * P, vision width]."""
    return model.apply(variables, batch.images_BIX, method="features")


def tree_logps(
    model: Llava,
    variables: Variables,
    batch: TreeBatch,
    options: StepOptions,
    features_BPV: Any,
) -> BranchLogps:
    """Log-probs of every answer token of every branch, [B * C, K, T] in float32.

    One pass over the rows serves all branches: trunk and images are computed once. Logits exist
    only at answer positions, `options.head_chunk` of them at a time, and are recomputed in the
    backward pass.

    Args:
        model: the module.
        variables: its variables.
        batch: the rows.
        options: how to compute.
        features_BPV: of the images, see `image_features`.
    """
    hidden_BSD, _ = model.apply(
        variables,
        batch.tokens_BS,
        batch.positions_BS,
        tree_mask(batch.tree_BS, batch.branch_BS),
        batch.patch_BS,
        features_BPV,
        method="hidden",
    )
    rows, num = batch.source_BA.shape
    chunk = min(options.head_chunk, num)
    pad = -num % chunk
    source_BA = jnp.pad(batch.source_BA, ((0, 0), (0, pad)))
    target_BA = jnp.pad(batch.target_BA, ((0, 0), (0, pad)))

    @jax.checkpoint
    def chunk_logps(carry: None, indices: tuple[jax.Array, jax.Array]) -> tuple[None, jax.Array]:
        source_BX, target_BX = indices
        hidden_BXD = jnp.take_along_axis(hidden_BSD, source_BX[..., None], axis=1)
        logits_BXV: Any = model.apply(variables, hidden_BXD, method="head")
        picked_BX = jnp.take_along_axis(logits_BXV, target_BX[..., None], axis=-1)[..., 0]
        return carry, picked_BX - jax.nn.logsumexp(logits_BXV, axis=-1)

    def chunks(x_BA: jax.Array) -> jax.Array:
        return x_BA.reshape(rows, -1, chunk).swapaxes(0, 1)

    _, logps = jax.lax.scan(chunk_logps, None, (chunks(source_BA), chunks(target_BA)))
    logps_BA = logps.swapaxes(0, 1).reshape(rows, -1)
    slots_BA = batch.slot_BCKT.reshape(rows, -1)
    shape = (-1, *batch.mask_BCKT.shape[2:])
    mask_NKT = batch.mask_BCKT.reshape(shape)
    logps_NKT = jnp.take_along_axis(logps_BA, slots_BA, axis=1).reshape(shape)
    return BranchLogps(logps_NKT * mask_NKT, mask_NKT)


def batch_loss(
    objective: Objective,
    policy: BranchLogps,
    reference: BranchLogps | None,
    batch: TreeBatch,
    total_weight: jax.Array,
) -> tuple[jax.Array, Metrics]:
    """Sum over comparisons of weight * loss / total_weight, and metrics averaged the same way."""
    loss_N, metrics = objective(policy, reference)
    share_N = batch.weight_BC.reshape(-1) / total_weight

    def mean(value_N: jax.Array) -> jax.Array:
        # where, not multiplication: a comparison of weight 0 must not turn the sum into NaN.
        return jnp.where(share_N > 0, share_N * value_N, 0.0).sum()

    loss = mean(loss_N)
    return loss, {"loss": loss} | {name: mean(value) for name, value in metrics.items()}


def accumulate(
    loss_fn: Callable[[Any, TreeBatch], tuple[jax.Array, Metrics]], trainable: Any, batch: TreeBatch
) -> tuple[Any, Metrics]:
    """Sum of the gradients and of the metrics of micro-batches.

    Backward passes add to the gradients of scanned layers in place, layer by layer: there is
    never a second set of them, as large as the weights, beside the sum.

    Args:
        loss_fn: (trainable, micro-batch) -> loss and metrics.
        trainable: what to differentiate by.
        batch: leaves [M, B, ...].
    """
    leaves, tree = jax.tree.flatten_with_path(trainable)
    scanned, rest = {}, {}
    for number, (path, leaf) in enumerate(leaves):
        part = scanned if jax.tree_util.DictKey("layers") in path else rest
        part[number] = leaf

    def loss_of(scanned: Any, rest: Any, micro: TreeBatch) -> tuple[jax.Array, Metrics]:
        whole = scanned | rest
        return loss_fn(tree.unflatten(whole[number] for number in range(len(whole))), micro)

    def add(carry: Any, micro: TreeBatch) -> tuple[Any, None]:
        loss, backward, metrics = jax.vjp(
            lambda scanned, rest: loss_of(scanned, rest, micro), scanned, rest, has_aux=True
        )
        _, gradient = backward.with_refs(sums, rest)(jnp.ones_like(loss))
        return jax.tree.map(jnp.add, carry, (gradient, metrics)), None

    sums = jax.tree.map(lambda x: jax.new_ref(jnp.zeros_like(x)), scanned)
    like = jax.eval_shape(loss_of, scanned, rest, jax.tree.map(lambda x: x[0], batch))[1]
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (rest, like))
    (gradient, metrics), _ = jax.lax.scan(add, zeros, batch)
    whole = jax.tree.map(jax.freeze, sums) | gradient
    return tree.unflatten(whole[number] for number in range(len(whole))), metrics


def make_train_step(
    model: Llava,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    options: StepOptions,
    reference_in_step: bool,
) -> Callable[[TrainState, Variables, TreeBatch], tuple[TrainState, Metrics]]:
    """One optimiser step over a batch of M micro-batches.

    Args:
        model: the module.
        objective: what to minimise.
        optimizer: how.
        options: see `StepOptions`.
        reference_in_step: compute the reference's log-probs in the step from the frozen
            variables (which then hold the untrained copy of every trained part) instead of
            taking them from the batch.

    Returns:
        step(state, frozen, batch) with batch leaves [M, B, ...]. The gradient is that of the
        mean over all comparisons of the global batch, whatever M, B and the layout.
    """

    def loss_fn(
        trainable: dict[str, Any], frozen: Variables, batch: TreeBatch, total: jax.Array
    ) -> tuple[jax.Array, Metrics]:
        variables = merge(frozen, trainable)
        features_BPV = image_features(model, variables, batch)
        policy = tree_logps(model, variables, batch, options, features_BPV)
        reference = None
        if objective.needs_reference and reference_in_step:
            if "vision" in trainable.get("params", {}):
                features_BPV = image_features(model, frozen, batch)
            reference = jax.lax.stop_gradient(
                tree_logps(model, frozen, batch, options, features_BPV)
            )
        elif objective.needs_reference:
            shape = (-1, *batch.mask_BCKT.shape[2:])
            reference = BranchLogps(batch.ref_BCKT.reshape(shape), batch.mask_BCKT.reshape(shape))
        return batch_loss(objective, policy, reference, batch, total)

    def step(state: TrainState, frozen: Variables, batch: TreeBatch) -> tuple[TrainState, Metrics]:
        total = jnp.maximum(batch.weight_BC.sum(), jnp.finfo(jnp.float32).tiny)
        gradient, metrics = accumulate(
            lambda trainable, micro: loss_fn(trainable, frozen, micro, total),
            state.trainable,
            batch,
        )
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.trainable)
        trainable = optax.apply_updates(state.trainable, updates)
        metrics |= {
            "grad_norm": optax.tree.norm(gradient),
            "pairs": (batch.weight_BC > 0).sum(),
            "tokens": (batch.tree_BS > 0).sum(),
        }
        return TrainState(state.step + 1, trainable, opt_state), metrics

    return step


def make_logps(model: Llava, options: StepOptions) -> Callable[[Variables, TreeBatch], jax.Array]:
    """The reference pass: (variables, batch with leaves [B, ...]) -> log-probs [B, C, K, T]."""

    def logps(variables: Variables, batch: TreeBatch) -> jax.Array:
        features_BPV = image_features(model, variables, batch)
        found = tree_logps(model, variables, batch, options, features_BPV)
        return found.tokens_NKT.reshape(batch.mask_BCKT.shape)

    return logps
