"""The model that a run starts from: trained on the spot, or read from files."""

from __future__ import annotations

import dataclasses
from typing import Any

from seva_jax.batches.encoded import encode_together
from seva_jax.config import TrainedBase
from seva_jax.data import AnsweredPrompts
from seva_jax.data.collect import counted
from seva_jax.models import abstract_stored, abstract_variables, init_variables, quantise_all
from seva_jax.objectives import Supervised
from seva_jax.run.context import RunContext
from seva_jax.run.fitting import fit_stage
from seva_jax.run.weights import reference_adapters, reference_params, start_variables
from seva_jax.runtime.processes import say
from seva_jax.sharding import variable_shardings
from seva_jax.training.step import Variables
from seva_jax.training.task import Task


def train_base(ctx: RunContext, base: TrainedBase) -> Any:
    """Trains a small base model from scratch, supervised, by the ordinary loop.

    Returns:
        The "params" collection as the run stores it, sharded.
    """
    boxed, compute = abstract_variables(ctx.base_model)["params"], ctx.config.compute
    shardings = variable_shardings(ctx.mesh, boxed)
    fresh = {"params": init_variables(ctx.base_model, "params", shardings, ctx.config.seed)}
    data = AnsweredPrompts(base.prompts).open()
    answered = data.comparisons
    options = dataclasses.replace(
        ctx.config.train,
        batch_size=base.batch_size,
        micro_batches=1,
        epochs=-(-base.steps * base.batch_size // len(answered)),
        repeat=1,
    )
    objective, encoder = Supervised(), ctx.encoder(ctx.config.text.train, data.image_size)
    encoded = encode_together(answered, encoder)
    if drops := data.drops + encoded.drops:
        say(f"  base: {drops.total():,} examples left out: {counted(drops)}")
    rows = ctx.rows(encoded, ctx.pixels(data), objective)
    task = Task("base", ctx.base_model, objective, base.optim, options, base.steps, rows)
    trained = fit_stage(ctx, task, {}, fresh)["params"]
    stored = abstract_stored(boxed, compute.base_weights, compute.param_dtype)
    return quantise_all(trained, compute.base_weights, variable_shardings(ctx.mesh, stored))


def load_base(ctx: RunContext) -> Any:
    """Reads the parameters of the reference policy from files, sharded.

    Raises:
        DataError: a file is missing or damaged, or a run it depends on is not finished.
    """
    return reference_params(ctx.config, ctx.assets.config, ctx.mesh)


def load_reference(ctx: RunContext, base: Any) -> Variables:
    """Returns the variables of the reference policy.

    Args:
        ctx: the run.
        base: their "params" collection.

    Raises:
        DataError: the adapters of the base, which are trained further, cannot be read.
    """
    adapters = reference_adapters(ctx.config, ctx.assets.config, ctx.mesh)
    return {"params": base} | ({"lora": adapters} if adapters else {})


def load_start(ctx: RunContext, reference: Variables) -> Variables:
    """Returns the policy before alignment, see `weights.start_variables`.

    Args:
        ctx: the run.
        reference: variables of the reference policy.
    """
    return start_variables(ctx.config, ctx.assets.config, ctx.mesh, reference)
