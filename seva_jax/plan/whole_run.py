"""The time of a whole run, stage by stage: rollouts, reference, training, evaluation."""

from __future__ import annotations

import dataclasses
import math

import jax

from seva_jax.batches.pipeline import num_steps
from seva_jax.batches.trees import RowShape
from seva_jax.config import Experiment
from seva_jax.models import LlavaConfig, LoraConfig, Remat
from seva_jax.plan.answering import Answering
from seva_jax.plan.chips import Chip
from seva_jax.plan.roofline import Kind, Work, slowed
from seva_jax.plan.step import gathered_weights, step_weights
from seva_jax.training.flops import forward


@dataclasses.dataclass(frozen=True)
class Amounts:
    """How much a run has of everything.

    Attributes:
        prompts: prompts that the model answers, each on its clean image and on every corrupted one.
        pairs: pairs that these give, or that the data have.
        answer: tokens of an answer, on average.
        questions: questions of evaluations, asked of the model before and after alignment.
        short_answer: tokens of an answer to such a question.
    """

    prompts: int
    pairs: int
    answer: int
    questions: int
    short_answer: int


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage of a run.

    Attributes:
        name: such as "rollouts".
        what: how much of what it does, in words.
        parts: the work of a chip in its programs, each with its kind; they run in turns.
    """

    name: str
    what: str
    parts: tuple[tuple[Kind, Work], ...]

    def seconds(self, chip: Chip) -> float:
        """Returns a lower bound of the time, at the chip's peak rates."""
        return sum(work.seconds(chip) for _, work in self.parts)

    def measured_seconds(self, chip: Chip) -> float | None:
        """Returns the time at the rates that were measured on the chip; None without any."""
        total = 0.0
        for kind, work in self.parts:
            slower = slowed(chip, kind)
            if slower is None:
                return None
            total += work.seconds(slower)
        return total


def rollouts(counted: Answering, answers: int, tokens: int) -> Stage:
    """Returns the stage that answers every prompt."""
    what = f"{answers:,} answers of {tokens} tokens"
    return Stage("rollouts", what, _answered(counted, answers, tokens, adapted=False))


def evaluation(counted: Answering, amounts: Amounts) -> Stage:
    """Returns the stages that ask the model before and after alignment, as one."""
    asked = (amounts.questions, amounts.short_answer)
    before = _answered(counted, *asked, adapted=False)
    after = _answered(counted, *asked, adapted=True)
    what = f"{amounts.questions:,} questions before and after, answers of {amounts.short_answer}"
    return Stage("evaluation", f"{what} tokens", before + after)


def reference(
    experiment: Experiment,
    config: LlavaConfig,
    mesh: jax.sharding.Mesh,
    shape: RowShape,
    pairs: int,
) -> Stage | None:
    """Returns the stage that computes reference log-probs; None if the step does or none are.

    Args:
        experiment: the run.
        config: architecture.
        mesh: of training; the pass uses it too.
        shape: sizes of a row.
        pairs: pairs, each of which is computed once.
    """
    train = experiment.train
    if not experiment.objective.needs_reference or train.reference == "in_step":
        return None
    rows = train.batch_size // train.micro_batches
    batches = math.ceil(pairs / rows)
    once = forward(config, LoraConfig(rank=0), shape)
    flops = batches * rows * (once.tower + once.projector + once.language) / mesh.size
    weights = batches * step_weights(experiment, config, mesh)
    network = batches * gathered_weights(experiment, config, mesh)
    return Stage("reference", f"{pairs:,} pairs", (("forward", Work(flops, weights, network)),))


def training(step: Work, remat: Remat, experiment: Experiment, pairs: int) -> Stage:
    """Returns the stage of all steps.

    Args:
        step: work of a chip in a step.
        remat: what the step recomputes.
        experiment: the run.
        pairs: pairs, before they are repeated.
    """
    kind: Kind = "training" if remat == "layers" else "training_kept"
    train = experiment.train
    steps = num_steps(pairs, train.batch_size, train.epochs, train.repeat, train.max_steps)
    what = f"{steps:,} steps of {train.batch_size:,} pairs"
    return Stage("training", what, ((kind, step * steps),))


def _answered(
    counted: Answering, answers: int, tokens: int, *, adapted: bool
) -> tuple[tuple[Kind, Work], ...]:
    """Returns the work to answer prompts, with adapters or without."""
    if not answers:
        return ()
    none = Work(0, 0, 0)
    token, prefill = counted.adapters if adapted else (none, none)
    return (
        ("forward", (counted.prefill + prefill) * counted.prefills(answers)),
        (counted.kind, (counted.token + token) * counted.token_steps(answers, tokens)),
    )
