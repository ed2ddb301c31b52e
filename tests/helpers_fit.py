"""The smallest training stage: a random base, made-up pairs, and the ordinary loop."""

import dataclasses
from unittest import mock

import numpy as np
from helpers_devices import limited_devices

from seva_jax.batches.encoded import encode_comparisons
from seva_jax.config.command_line import load_experiment
from seva_jax.models import abstract_variables, init_variables
from seva_jax.objectives import DPO
from seva_jax.run.context import RunContext
from seva_jax.run.fitting import fit_stage
from seva_jax.run.workdir import StageMetrics
from seva_jax.sharding import variable_shardings
from seva_jax.training.task import Task
from seva_jax.types import Comparison

ARGS = """
--base.steps 4 --base.batch-size 4 --base.prompts.num 16 --prompts.num 12 --seed 3
--rollout.batch-size 4 --train.batch-size 4 --train.log-every 2 --train.save-every 2
--lora.rank 2 --lora.alpha 4 --compute.row-shapes 1
--base.model.vision.hidden-size 16 --base.model.vision.num-layers 2
--base.model.vision.mlp-size 32 --base.model.text.hidden-size 16 --base.model.text.num-layers 1
--base.model.text.num-heads 2 --base.model.text.head-dim 8 --base.model.text.mlp-size 32
"""


def tiny_run(workdir, *argv):
    """Opens a run of the default config, shrunk, on one device; returns its context."""
    experiment, _ = load_experiment("test", [*ARGS.split(), "--workdir", str(workdir), *argv])
    with limited_devices(1):
        return RunContext.open(experiment)


def random_base(ctx):
    """Returns parameters of a base model that was not trained."""
    shardings = variable_shardings(ctx.mesh, abstract_variables(ctx.base_model))["params"]
    return init_variables(ctx.base_model, "params", shardings, 0)


def fit(ctx, steps, reference=-2.0, weights=None, epochs=1000, write=None, held_out=0):
    """Trains adapters with DPO on made-up pairs.

    Args:
        ctx: see `tiny_run`.
        steps: how many.
        reference: log-prob of all answer tokens, or a list with a number for each pair.
        weights: weights of the pairs, by default 1.
        epochs: at least as many as the steps need.
        write: called after every row of metrics, with step and values.
        held_out: number of the last pairs that are not trained on. With train.eval_fraction 0 they
            are not evaluated either.
    """
    prompts = ctx.config.prompts.open()
    weights = weights or [1.0] * len(prompts.prompts)
    pairs = [
        Comparison(p, ("red", "blue"), w) for p, w in zip(prompts.prompts, weights, strict=True)
    ]
    encoded = encode_comparisons(pairs, ctx.encoder(ctx.config.text.train))
    values = np.broadcast_to(np.asarray(reference, np.float32), len(pairs))
    logps = [
        tuple(np.full(len(b), value) for b in x.trees[0][1])
        for x, value in zip(encoded.encoded, values, strict=True)
    ]
    shardings = variable_shardings(ctx.mesh, abstract_variables(ctx.policy_model))
    lora = init_variables(ctx.policy_model, "lora", shardings["lora"], 0)
    indices = range(len(pairs) - held_out), range(len(pairs) - held_out, len(pairs))
    rows, others = (
        ctx.rows(encoded.select(part), ctx.pixels(prompts), DPO(), [logps[i] for i in part])
        for part in indices
    )
    options = dataclasses.replace(
        ctx.config.train, batch_size=4, micro_batches=1, epochs=epochs, repeat=1
    )
    task = Task(
        "align", ctx.policy_model, DPO(), ctx.config.optim, options, steps, rows,
        held_out=others if options.eval_fraction else None,
    )  # fmt: skip
    append = StageMetrics.write

    def both(self, step, values):
        append(self, step, values)
        if write:
            write(step, values)

    with mock.patch.object(StageMetrics, "write", both):
        return fit_stage(ctx, task, {"params": random_base(ctx)}, {"lora": lora})
