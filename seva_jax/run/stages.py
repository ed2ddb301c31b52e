"""What each stage of a run does; `seva_jax/train.py` has the table of stages.

A stage takes its inputs from `Outputs`, calls the function that does the work, assigns what was
made, and returns a one-line summary.
"""

from __future__ import annotations

import jax

from seva_jax.config import PriorRun, TrainedBase
from seva_jax.config.prior_run import continuation_problems, prior_answers
from seva_jax.models import num_parameters
from seva_jax.pairs import build_pairs
from seva_jax.run import reference, rollouts
from seva_jax.run.alignment import align, alignment_steps, planned_steps
from seva_jax.run.base import train_base
from seva_jax.run.context import RunContext
from seva_jax.run.evaluations import evaluate_all
from seva_jax.run.fitting import remat_in_words
from seva_jax.run.further import take_training
from seva_jax.run.outputs import Outputs
from seva_jax.run.recorded_model import RecordedModel
from seva_jax.run.weights import held_out_result
from seva_jax.runtime.processes import say
from seva_jax.types import DataError


def run_base(ctx: RunContext, out: Outputs) -> str:
    """Trains the base model."""
    assert isinstance(ctx.config.base, TrainedBase)
    out.base = train_base(ctx, ctx.config.base)
    return (
        f"{num_parameters(ctx.base_model):,} parameters, {ctx.config.base.steps} supervised steps"
        + remat_in_words(ctx, "base")
    )


def run_takeover(ctx: RunContext, out: Outputs) -> str:
    """Takes over the model that an earlier run made."""
    base = ctx.config.base
    assert isinstance(base, PriorRun)
    if problems := continuation_problems(ctx.config, base.earlier()):
        raise DataError("this run cannot start from " + "\n  ".join([base.workdir, *problems]))
    jax.block_until_ready(out.base)
    what = "merged: the reference" if base.merge else "trained further, with its reference"
    return f"what {base.workdir} trained, {what}"


def run_rollouts(ctx: RunContext, out: Outputs) -> str:
    """Answers every prompt on its clean image and on every corrupted copy."""
    rollouts.roll_out(ctx, out.prompts, ctx.engine(out.start, out.reference))
    return f"{len(out.prompts.prompts):,} prompts, {1 + len(ctx.config.corrupt)} answers each"


def run_pairs(ctx: RunContext, out: Outputs) -> str:
    """Keeps the comparisons that can be trained on, and counts why others are dropped."""
    config = ctx.config
    answered = [] if config.prompts.has_answers else rollouts.read_rollouts(ctx.workdir.path)
    built = build_pairs(
        out.prompts, answered, config.pairs, ctx.encoder(config.text.train, out.prompts.image_size),
        RecordedModel(ctx, out.prompts, lambda: out.start, lambda: out.reference),
    )  # fmt: skip
    if ctx.workdir.writes:
        built.write(ctx.workdir.path)
    out.comparisons = built.encoded
    return built.describe()


def run_reference(ctx: RunContext, out: Outputs) -> str:
    """Computes per-token log-probs of every answer under the reference policy."""
    rows = ctx.rows(out.comparisons, out.images, ctx.config.objective)
    logps = reference.compute_reference(ctx, out.reference, rows)
    out.reference_logps = list(map(tuple, logps))
    missing = sum(not branches for branches in logps)
    return (
        f"{sum(len(x) for branches in logps for x in branches):,} answer tokens"
        + f"; {missing:,} pairs left out, whose images do not decode" * (missing > 0)
    )


def run_alignment(ctx: RunContext, out: Outputs) -> str:
    """Trains the policy with the objective."""
    rows, held_out = out.training_rows, out.held_out_rows
    take_training(ctx, len(rows))
    say(f"align: {planned_steps(ctx, len(rows), len(held_out or ()))}")
    out.aligned = align(ctx, out.reference, out.start, rows, held_out)
    metrics = (r for r in ctx.workdir.read_metrics() if r["stage"] == "align")
    missing, num = round(sum(r.get("unreadable", 0) for r in metrics)), len(rows)
    result = held_out_result(ctx.config)
    steps = result.last_step if result else alignment_steps(ctx, num)
    return (
        f"{steps:,} step{'s' * (steps != 1)} on {num:,} pairs"
        + (f", {result.pairs:,} held out: {result}" if result else "")
        + f"; {missing:,} times an image did not decode and its pair counted 0" * (missing > 0)
        + remat_in_words(ctx, "align")
    )


def evaluate_base(ctx: RunContext, out: Outputs) -> str:
    """Asks the policy before alignment every evaluation question."""
    engine, earlier = ctx.engine(out.start, out.reference), prior_answers(ctx.config)
    return evaluate_all(engine, ctx.config.evals, "base", ctx.workdir, earlier)


def evaluate_aligned(ctx: RunContext, out: Outputs) -> str:
    """Asks the aligned model every evaluation question."""
    engine = ctx.engine(out.aligned, out.reference)
    return evaluate_all(engine, ctx.config.evals, "aligned", ctx.workdir)
