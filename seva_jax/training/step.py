"""READ FIRST: from a batch of trees to log-probs, loss, gradient and update.

Top to bottom: the tree attention mask (`tree_mask`), the log-probs of all answers (`tree_logps`,
by way of `token_stats.py`), the weighted loss (`batch_loss`), one optimiser step (`TrainStep`) and
the reference pass (`make_logps`). Everything is a pure function. Read next: `loop.py`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from seva_jax.models import Llava
from seva_jax.objectives import NOTHING, Metrics, Need, Objective
from seva_jax.training.dropout import tile_keys, token_keys
from seva_jax.training.token_stats import answer_statistics
from seva_jax.types import BranchLogps, TreeBatch

Variables = Mapping[str, Any]  # {"params": {...}, "lora": {...}}


class TrainState(NamedTuple):
    """What training changes; with the data position, all that a checkpoint needs.

    Attributes:
        step: int32 scalar, completed optimiser steps. It is the whole random state: what dropout
            draws follows from the seed, the step and the tokens (`dropout.py`).
        trainable: the trained part of the variables, float32.
        opt_state: the optimiser's state.
    """

    step: jax.Array
    trainable: Any
    opt_state: optax.OptState


@dataclasses.dataclass(frozen=True)
class StepOptions:
    """How the step computes; results differ only by rounding.

    Attributes:
        head_chunk: answer positions of a row whose logits exist at one time.
    """

    head_chunk: int = 128


def split_params(
    params: Mapping[str, Any], trained: Sequence[str], reference_in_step: bool
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the parts of a "params" collection that stay frozen, and those that are trained.

    Args:
        params: the base model's parameters.
        trained: see `TrainOptions.trained`.
        reference_in_step: the reference is computed from the frozen parts, so all of them stay.
    """
    frozen = {p: x for p, x in params.items() if reference_in_step or p not in trained}
    return frozen, {p: x for p, x in params.items() if p in trained}


def merge(frozen: Variables, trainable: Variables) -> Variables:
    """Returns the policy's variables: the frozen ones, overridden by the trained parts."""
    merged = {name: dict(collection) for name, collection in frozen.items()}
    for name, collection in trainable.items():
        merged.setdefault(name, {}).update(collection)
    return merged


def tree_mask(tree_BS: jax.Array, branch_BS: jax.Array) -> jax.Array:
    """Returns the mask [B, S, S]: a token sees its tree's trunk and its own branch, causally."""
    length = tree_BS.shape[1]
    causal_SU = jnp.arange(length)[:, None] >= jnp.arange(length)
    same_tree = tree_BS[:, :, None] == tree_BS[:, None]
    visible = (branch_BS[:, None] == 0) | (branch_BS[:, :, None] == branch_BS[:, None])
    return causal_SU & same_tree & visible


def image_features(
    model: Llava, variables: Variables, batch: TreeBatch, keys_BI: jax.Array | None = None
) -> Any:
    """Returns the vision tower's features of the images of a batch, [B, I * P, E].

    Args:
        model: the module.
        variables: its variables.
        batch: the rows.
        keys_BI: random keys for the dropout of adapters, one for each tile; None drops nothing.
    """
    return model.apply(variables, batch.images_BIX, batch.place_BI5, keys_BI, method="features")


def tree_inputs(batch: TreeBatch, features_BPE: Any) -> dict[str, Any]:
    """Returns the keyword arguments of `Llava.hidden` for the rows of a batch.

    Args:
        batch: the rows.
        features_BPE: image features, see `image_features`.
    """
    mask_BSS = tree_mask(batch.tree_BS, batch.branch_BS)
    return {
        "tokens_BS": batch.tokens_BS,
        "positions_BS": batch.positions_BS,
        "mask_BSU": mask_BSS,
        "patch_BS": batch.patch_BS,
        "features_BPE": features_BPE,
        "blend": batch.blend,
    }


def tree_hidden(
    model: Llava,
    variables: Variables,
    batch: TreeBatch,
    features_BPE: Any,
    keys_BS: jax.Array | None = None,
    keys_BI: jax.Array | None = None,
) -> jax.Array:
    """Returns the last hidden states of the rows, [B, S, D]; one pass serves all branches.

    Args:
        model: the module.
        variables: its variables.
        batch: the rows.
        features_BPE: image features, see `image_features`.
        keys_BS: random keys for the dropout of adapters; None drops nothing.
        keys_BI: the same for each tile, see `image_features`.
    """
    inputs = tree_inputs(batch, features_BPE)
    hidden_BSD, _ = model.apply(
        variables, **inputs, keys_BS=keys_BS, keys_BI=keys_BI, method="hidden"
    )
    return hidden_BSD


def tree_logps(
    model: Llava,
    variables: Variables,
    batch: TreeBatch,
    options: StepOptions,
    hidden_BSD: jax.Array,
    needs: frozenset[Need] = NOTHING,
    reference: tuple[Variables, jax.Array] | None = None,
) -> BranchLogps:
    """Returns log-probs of every answer token of every branch, [B * C, K, T] in float32.

    Logits exist only at answer positions, `options.head_chunk` of them at a time.

    Args:
        model: the module.
        variables: its variables.
        batch: the rows.
        options: how to compute.
        hidden_BSD: see `tree_hidden`.
        needs: optional fields of `BranchLogps` to fill.
        reference: variables and hidden states of the reference, for "kl".
    """
    rows, blank = len(hidden_BSD), blank_logps(batch, needs)

    def statistics(source_BA: jax.Array, target_BA: jax.Array, needs: frozenset[Need]) -> Any:
        return answer_statistics(
            model, variables, hidden_BSD, source_BA, target_BA, options.head_chunk, needs, reference
        )

    def at(x_BA: jax.Array, slots: jax.Array) -> jax.Array:
        return jnp.take_along_axis(x_BA, slots.reshape(rows, -1), axis=1)

    stats = statistics(batch.source_BA, batch.target_BA, needs)
    fields = {
        f"{name}_NKT": at(x_BA, batch.slot_BCKT).reshape(blank.mask_NKT.shape) * blank.mask_NKT
        for name, x_BA in stats.items()
        if name != "argmax"
    }
    if "last_argmax" in needs:
        first_BCT, last_BCT = batch.slot_BCKT[:, :, 0], batch.slot_BCKT[:, :, -1]
        tokens_BA = at(stats["argmax"], last_BCT)
        last = statistics(at(batch.source_BA, first_BCT), tokens_BA, NOTHING)
        mask_NT = blank.mask_NKT[:, 0] * blank.mask_NKT[:, -1]
        fields["last_argmax_NT"] = last["logp"].reshape(mask_NT.shape) * mask_NT
    return blank._replace(logp_NKT=fields.pop("logp_NKT"), **fields)


def blank_logps(batch: TreeBatch, needs: frozenset[Need] = NOTHING) -> BranchLogps:
    """Returns what the data say of every branch; the log-probs are those stored in the batch."""
    shape = (-1, *batch.mask_BCKT.shape[2:])
    return BranchLogps(
        batch.ref_BCKT.reshape(shape),
        batch.mask_BCKT.reshape(shape),
        batch.weight_BC.reshape(-1),
        scores_NK=batch.scores_BCK.reshape(shape[:2]) if "scores" in needs else None,
        spans_NKT=batch.spans_BCKT.reshape(shape) if "spans" in needs else None,
    )


def batch_loss(
    objective: Objective,
    policy: BranchLogps,
    reference: BranchLogps | None,
    weight_N: jax.Array,
    total_weight: jax.Array,
) -> tuple[jax.Array, Metrics]:
    """Returns sum(weight * loss) / total_weight over comparisons, and metrics averaged alike."""
    loss_N, metrics = objective(policy, reference)
    share_N = weight_N / total_weight

    def mean(value_N: jax.Array) -> jax.Array:
        # where, not multiplication: a comparison of weight 0 must not turn the sum into NaN.
        return jnp.where(share_N > 0, share_N * value_N, 0.0).sum()

    loss = mean(loss_N)
    return loss, {"loss": loss} | {name: mean(value) for name, value in metrics.items()}


def accumulate(
    loss_fn: Callable[[Any, Any], tuple[jax.Array, Metrics]], trainable: Any, batch: Any
) -> tuple[Any, Metrics]:
    """Returns the sums of the gradients and of the metrics of micro-batches.

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

    def loss_of(scanned: Any, rest: Any, micro: Any) -> tuple[jax.Array, Metrics]:
        whole = scanned | rest
        return loss_fn(tree.unflatten(whole[number] for number in range(len(whole))), micro)

    def add(carry: Any, micro: Any) -> tuple[Any, None]:
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


def in_micro_batches(batch: TreeBatch, num: int) -> TreeBatch:
    """Returns a batch with leaves [M, B, ...] for one with leaves [M * B, ...]."""
    return jax.tree.map(lambda x: x.reshape(num, -1, *x.shape[1:]), batch)


@dataclasses.dataclass(frozen=True, eq=False)
class TrainStep:
    """One optimiser step over a batch of M micro-batches.

    Attributes:
        model: the module.
        objective: what to minimise.
        optimizer: how to minimise it.
        options: see `StepOptions`.
        reference_in_step: compute the reference's log-probs in the step from the frozen
            variables (which then hold the untrained copy of every trained part) instead of
            taking them from the batch.
        seed: seed of the dropout of adapters.
    """

    model: Llava
    objective: Objective
    optimizer: optax.GradientTransformation
    options: StepOptions
    reference_in_step: bool
    seed: int = 0

    __name__ = "train_step"  # of the compiled program, in traces

    def __call__(
        self, state: TrainState, frozen: Variables, batch: TreeBatch
    ) -> tuple[TrainState, Metrics]:
        """Returns the next state and the metrics of this step.

        The gradient is that of the mean over all comparisons of the global batch, whatever M, B
        and the layout. Where the loss or the gradient is not finite, parameters and optimiser
        state stay as they are, bit for bit; only the step counter advances, and the metric
        "nonfinite" is true.

        Args:
            state: the state before the step.
            frozen: variables that do not change.
            batch: leaves [M, B, ...].
        """
        total = jnp.maximum(batch.weight_BC.sum(), jnp.finfo(jnp.float32).tiny)
        coupled = self.objective.whole_batch and len(batch.weight_BC) > 1
        gradient_of = self._gradient_of_whole_batch if coupled else self._gradient_by_micro_batch
        gradient, metrics = gradient_of(state, frozen, batch, total)
        updates, opt_state = self.optimizer.update(gradient, state.opt_state, state.trainable)
        trainable = optax.apply_updates(state.trainable, updates)
        norm = optax.tree.norm(gradient)
        finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(norm)
        # The choice is one operation of each update, so it needs no second state; the counter
        # advances, since it is the position in the data.
        trainable, opt_state = jax.tree.map(
            lambda new, old: jnp.where(finite, new, old),
            (trainable, opt_state),
            (state.trainable, state.opt_state),
        )
        metrics |= {
            "grad_norm": norm,
            "nonfinite": ~finite,
            "pairs": (batch.weight_BC > 0).sum(),
            "tokens": (batch.tree_BS > 0).sum(),
        }
        return TrainState(state.step + 1, trainable, opt_state), metrics

    def evaluate(self, trainable: Any, frozen: Variables, batch: TreeBatch) -> Metrics:
        """Returns the metrics of a batch that is not trained on, and its "weight".

        Nothing is dropped. The loss is the one that training minimises; its mean over batches,
        each with its weight, is that over all comparisons.

        Args:
            trainable: the trained variables.
            frozen: variables that do not change.
            batch: leaves [M, B, ...].
        """
        total = jnp.maximum(batch.weight_BC.sum(), jnp.finfo(jnp.float32).tiny)
        logps = jax.lax.map(lambda micro: self._logps(trainable, frozen, micro), batch)
        policy, reference = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), logps)
        weight_N = batch.weight_BC.reshape(-1)
        _, metrics = batch_loss(self.objective, policy, reference, weight_N, total)
        return metrics | {"weight": weight_N.sum(), "pairs": (weight_N > 0).sum()}

    def _gradient_by_micro_batch(
        self, state: TrainState, frozen: Variables, batch: TreeBatch, total: jax.Array
    ) -> tuple[Any, Metrics]:
        """Returns gradient and metrics where the loss of a comparison depends on no other."""

        def loss_fn(trainable: dict[str, Any], micro: TreeBatch) -> tuple[jax.Array, Metrics]:
            policy, reference = self._logps(trainable, frozen, micro, state.step)
            weight_N = micro.weight_BC.reshape(-1)
            return batch_loss(self.objective, policy, reference, weight_N, total)

        return accumulate(loss_fn, state.trainable, batch)

    def _gradient_of_whole_batch(
        self, state: TrainState, frozen: Variables, batch: TreeBatch, total: jax.Array
    ) -> tuple[Any, Metrics]:
        """Returns gradient and metrics where the loss of a comparison depends on others.

        The gradient with respect to the log-probs of the whole batch comes first; a second
        forward pass, micro-batch by micro-batch, carries it back to the parameters.
        """
        logps = jax.lax.map(
            lambda micro: self._logps(state.trainable, frozen, micro, state.step), batch
        )
        policy, reference = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), logps)

        def loss_of(policy: BranchLogps) -> tuple[jax.Array, Metrics]:
            weight_N = logps[0].weight_N.ravel()
            return batch_loss(self.objective, policy, reference, weight_N, total)

        slope, metrics = jax.grad(loss_of, has_aux=True)(policy)
        slope = jax.tree.map(lambda x, like: x.reshape(like.shape), slope, logps[0])

        def linear(trainable: dict[str, Any], micro: Any) -> tuple[jax.Array, Metrics]:
            batch, slope = micro
            policy, _ = self._logps(trainable, frozen, batch, state.step)
            products = jax.tree.map(lambda x, by: (x * by).sum(), policy, slope)
            return jnp.stack(jax.tree.leaves(products)).sum(), {}

        gradient, _ = accumulate(linear, state.trainable, (batch, slope))
        return gradient, metrics

    def _logps(
        self, trainable: Any, frozen: Variables, batch: TreeBatch, step: jax.Array | None = None
    ) -> tuple[BranchLogps, BranchLogps | None]:
        """Returns log-probs under the policy, and those under the reference if there is one.

        With a step, the policy's adapters drop inputs if they have dropout; the reference's never.
        """
        model, options, needs = self.model, self.options, self.objective.needs
        keys_BS = keys_BI = None
        if model.lora is not None and model.lora.dropout > 0 and step is not None:
            keys_BS = token_keys(self.seed, step, batch)
            if model.lora.vision or model.lora.connector:
                keys_BI = tile_keys(self.seed, step, batch, model.config.tile_features)
        variables = merge(frozen, trainable)
        features_BPE = image_features(model, variables, batch, keys_BI)
        hidden_BSD = tree_hidden(model, variables, batch, features_BPE, keys_BS, keys_BI)
        if not self.objective.needs_reference:
            return tree_logps(model, variables, batch, options, hidden_BSD, needs), None
        if not self.reference_in_step:
            assert not self.objective.computes_reference, "a run asks for the reference in the step"
            policy = tree_logps(model, variables, batch, options, hidden_BSD, needs)
            return policy, blank_logps(batch)
        if any("vision" in collection for collection in trainable.values()):
            features_BPE = image_features(model, frozen, batch)
        before_BSD = jax.lax.stop_gradient(tree_hidden(model, frozen, batch, features_BPE))
        policy = tree_logps(
            model, variables, batch, options, hidden_BSD, needs, (frozen, before_BSD)
        )
        same = needs - {"kl"} if self.objective.computes_reference else NOTHING
        reference = tree_logps(model, frozen, batch, options, before_BSD, same)
        return policy, jax.lax.stop_gradient(reference)


def make_logps(model: Llava, options: StepOptions) -> Callable[[Variables, TreeBatch], jax.Array]:
    """Returns the reference pass: (variables, batch with leaves [B, ...]) -> [B, C, K, T]."""

    def logps(variables: Variables, batch: TreeBatch) -> jax.Array:
        features_BPE = image_features(model, variables, batch)
        hidden_BSD = tree_hidden(model, variables, batch, features_BPE)
        branches = tree_logps(model, variables, batch, options, hidden_BSD)
        return branches.logp_NKT.reshape(batch.mask_BCKT.shape)

    return logps
