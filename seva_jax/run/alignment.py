"""Alignment: trains the adapters and other parts with the objective, or reads the result."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from seva_jax.batches.pipeline import ComparisonRows, num_steps
from seva_jax.models import abstract_variables, init_variables
from seva_jax.run.context import RunContext
from seva_jax.run.fitting import checkpoint_facts, fit_stage
from seva_jax.run.further import earlier_training, forget_copy, recorded, steps_of
from seva_jax.run.weights import trained_variables
from seva_jax.sharding import variable_shardings
from seva_jax.training.step import Variables, merge, split_params
from seva_jax.training.task import Task


def caches_reference(ctx: RunContext) -> bool:
    """Returns whether reference log-probs are computed before training."""
    config = ctx.config
    return config.objective.needs_reference and config.train.reference == "cached"


def alignment_steps(ctx: RunContext, num_comparisons: int) -> int:
    """Returns the number of optimiser steps of alignment."""
    return steps_of(ctx.config, num_comparisons, recorded(ctx.workdir.path))


def planned_steps(ctx: RunContext, num: int, num_held_out: int) -> str:
    """Returns how long alignment will be, and why, before it begins.

    Args:
        ctx: the run.
        num: comparisons that are trained on.
        num_held_out: comparisons that are held out.
    """
    train = ctx.config.train
    steps, size = alignment_steps(ctx, num), train.batch_size
    whole = num_steps(num, size, train.epochs, train.repeat, 0)
    pairs = f"{num:,} pairs" + f" ({num_held_out:,} held out)" * (num_held_out > 0)
    passes = f"{train.epochs:,} epoch{'s' * (train.epochs > 1)}"
    copies = f" of {train.repeat} copies" * (train.repeat > 1)
    if train.max_steps > steps:
        epochs = -(-train.max_steps * size // (num * train.repeat))
        return (
            f"{pairs}, so {steps:,} steps instead of {train.max_steps:,} (train.max_steps): that "
            f"is {passes}{copies} in batches of {size:,}; --train.epochs {epochs} would reach it"
        )
    if steps < whole:
        share = steps * size / (num * train.repeat)
        passes = f"{share:,.3g} of {passes}, up to train.max_steps"
    return f"{pairs}, so {steps:,} step{'s' * (steps > 1)}: {passes}{copies} in batches of {size:,}"


def align(
    ctx: RunContext,
    reference: Variables,
    start: Variables,
    rows: ComparisonRows,
    held_out: ComparisonRows | None = None,
) -> Variables:
    """Trains, or resumes training, to the last step.

    Args:
        ctx: the run.
        reference: variables of the reference policy.
        start: the policy before alignment.
        rows: the comparisons, with reference log-probs if these are cached.
        held_out: comparisons that are evaluated and not trained on; None if there are none.

    Returns:
        The aligned model's variables.
    """
    task, trained = _task(ctx, rows, held_out), ctx.config.train.trained
    frozen = _frozen(ctx, task, reference)
    _, parts = split_params(start["params"], trained, task.reference_in_step)
    # Copies: the training state is donated step by step, the base model stays.
    to_float32 = jax.jit(lambda x: jax.tree.map(lambda y: y.astype(jnp.float32) + 0.0, x))
    trainable: dict[str, Any] = {"params": to_float32(parts)}
    if "lora" in trained:
        shardings = variable_shardings(ctx.mesh, abstract_variables(ctx.policy_model)["lora"])
        trainable["lora"] = (
            to_float32(start["lora"])
            if "lora" in start
            else init_variables(ctx.policy_model, "lora", shardings, ctx.config.seed)
        )
    aligned = merge(frozen, fit_stage(ctx, task, frozen, trainable, reference.get("lora")))
    forget_copy(ctx)
    return aligned


def load_aligned(
    ctx: RunContext,
    reference: Variables,
    rows: ComparisonRows,
    held_out: ComparisonRows | None = None,
) -> Variables:
    """Reads the aligned model's variables from the checkpoint that training kept for it.

    Args:
        ctx: the run, whose alignment is finished.
        reference: variables of the reference policy.
        rows: the comparisons it was trained on.
        held_out: those that were held out; None if there are none.

    Raises:
        DataError: the checkpoint is missing, damaged, or of another run.
    """
    task = _task(ctx, rows, held_out)
    frozen = _frozen(ctx, task, reference)
    trained = trained_variables(
        ctx.config, ctx.assets.config, ctx.mesh, steps=task.steps,
        facts=checkpoint_facts(ctx, task, frozen, reference.get("lora")),
    )  # fmt: skip
    return merge(frozen, trained)


def _frozen(ctx: RunContext, task: Task, reference: Variables) -> Variables:
    """Returns the variables that do not change; all of the reference's if the step needs it."""
    in_step = task.reference_in_step
    frozen, _ = split_params(reference["params"], ctx.config.train.trained, in_step)
    adapters = {"lora": reference["lora"]} if in_step and "lora" in reference else {}
    return {"params": frozen} | adapters


def _task(ctx: RunContext, rows: ComparisonRows, held_out: ComparisonRows | None) -> Task:
    config = ctx.config
    in_step = config.objective.needs_reference and not caches_reference(ctx)
    return Task(
        "align", ctx.policy_model, config.objective, config.optim, config.train,
        alignment_steps(ctx, len(rows)), rows, in_step, held_out,
        earlier_training(ctx.workdir.path),
    )  # fmt: skip
