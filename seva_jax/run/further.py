"""Training a finished run further: which alignment a run continues, from where, and how.

If a run that `take_from` names has the same alignment except for its length (`train.epochs`,
`train.max_steps`), a longer run continues its training instead of beginning at step 1. It starts
from the last checkpoint: trained variables, moments of the optimiser, number of steps. The
comparisons follow in the order of the longer run, which begins with that of the shorter one, from
the first that was not trained on; where the last batch of the shorter run was a small one, it stays
a step of its own. The learning rate is that of the longer run's schedule over all its steps, also
those before, so it does not begin with another warm-up; with `cosine` and `linear` it jumps up from
where the shorter run had ended. The result is therefore bit for bit that of an uninterrupted run if
the schedule is constant without warm-up and batches divide an epoch. It has a fingerprint of its
own, so it is never taken for the result of an uninterrupted run.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from seva_jax.batches.pipeline import num_steps
from seva_jax.config import Experiment
from seva_jax.run.context import RunContext
from seva_jax.run.leaves import Leaves
from seva_jax.run.taken import copy_rows, covered_differences
from seva_jax.runtime.copies import copy_whole
from seva_jax.runtime.files import read_json, write_json
from seva_jax.runtime.paths import hide_home
from seva_jax.runtime.processes import on_first_process, say
from seva_jax.runtime.run_records import read_stages
from seva_jax.runtime.stores import as_path, remove
from seva_jax.training.checkpoint import read_facts
from seva_jax.training.earlier import Earlier
from seva_jax.types import DataError

RECORD = "further.json"  # in the work directory
_CHECKPOINTS, _COPY = "checkpoints/align", "checkpoints/earlier"
_LENGTH = {"train.epochs", "train.max_steps"}
_CONTINUES = "continues"  # the name of the fact about it in checkpoints


class Continued(NamedTuple):
    """The training that a run continues, as `further.json` has it.

    Attributes:
        source: work directory of the other run.
        fingerprint: that of its alignment.
        step: its last step.
        planned: number of steps that it had planned; larger if it stopped early.
        ends: how many comparisons had been trained on when it ended; before that, the same of the
            training that it had continued itself, if any.
        before: fingerprint of that training; "" if there was none.
    """

    source: str
    fingerprint: str
    step: int
    planned: int
    ends: Sequence[int]
    before: str


def recorded(workdir: Path) -> Continued | None:
    """Returns the training that the run in a work directory continued; None if there is none."""
    file = workdir / RECORD
    return Continued(**read_json(file)) if file.exists() else None


def continued_alignment(ctx: RunContext, pairs: str) -> list[str]:
    """Returns the fingerprint of the alignment that this run continues, or nothing.

    Args:
        ctx: the run.
        pairs: fingerprint of its pairs.
    """
    return on_first_process(lambda: _find(ctx, pairs)[1:])


def _find(ctx: RunContext, pairs: str) -> list[str]:
    """Returns the directory of the run whose alignment is continued, and its fingerprint."""
    own = ctx.workdir.path
    if (earlier := recorded(own)) is not None:
        return [earlier.source, earlier.fingerprint]
    begun = "align" in read_stages(own) or (own / _CHECKPOINTS).exists()
    if begun or not ctx.config.take_training:
        return []
    for path in ctx.workdir.named:
        there = read_stages(path)
        if there.get("pairs", {}).get("fingerprint") != pairs or "align" not in there:
            continue
        differing = covered_differences(path, "align", ctx.workdir.config, ctx.config)
        earlier = recorded(path)
        if not differing and earlier is not None:
            return [str(path), earlier.fingerprint]  # the same training in parts: taken as it is
        if (
            differing
            and differing.keys() <= _LENGTH
            and _is_longer(ctx.config, read_json(_config(path)))
        ):
            return [str(path), there["align"]["fingerprint"]]
    return []


def _config(path: Path) -> Path:
    return path / "config.json"


def _is_longer(config: Experiment, there: dict[str, Any]) -> bool:
    """Returns whether a run is longer than another one, for any number of comparisons."""
    train, endless = config.train, float("inf")
    return train.epochs >= there["train.epochs"] and (train.max_steps or endless) >= (
        there["train.max_steps"] or endless
    )


def take_training(ctx: RunContext, num: int) -> None:
    """Copies the training that this run continues, if there is one, and says what follows.

    Args:
        ctx: the run.
        num: comparisons that are trained on.

    Raises:
        DataError: the checkpoint is missing or damaged, or there is nothing more to train.
    """
    path = ctx.workdir.path
    if line := on_first_process(lambda: "" if recorded(path) else _copy(ctx, num)):
        say(line)


def _copy(ctx: RunContext, num: int) -> str:
    own, config = ctx.workdir.path, ctx.config
    chosen = _find(ctx, read_stages(own)["pairs"]["fingerprint"])
    if not chosen:
        return ""
    source, train = as_path(chosen[0]), config.train
    done, leaves = read_stages(source)["align"], Leaves(source)
    otherwise = "put back a copy, or give --no-take-training to train from the start"
    lost = leaves.missing([_CHECKPOINTS], done.get("step"))
    if lost or (lost := leaves.damage([_CHECKPOINTS], done.get("step"))):
        raise DataError(f"the training of {source} cannot be continued: {lost}; {otherwise}")
    step = done.get("step") or max(leaves.steps(_CHECKPOINTS))
    checkpoint, before = source / _CHECKPOINTS / str(step), recorded(source)
    start, first = (before.ends[-1], before.step) if before else (0, 0)
    in_all = num * train.repeat * read_json(_config(source))["train.epochs"]
    end = min(start + (step - first) * train.batch_size, in_all)
    earlier = Continued(
        hide_home(str(source)), chosen[1], step, read_facts(checkpoint).get("steps", step),
        [*(before.ends if before else ()), end], before.fingerprint if before else "",
    )  # fmt: skip
    steps = steps_of(config, num, earlier)
    if steps <= step:
        raise DataError(
            f"{source} was trained for {step:,} steps, and this config stops at {steps:,}; raise "
            "train.epochs or train.max_steps to train its model further"
        )
    remove(own / _COPY)
    copy_whole(checkpoint, own / _COPY / str(step))
    copy_rows(source, own, ["align", "held-out"])
    write_json(own / RECORD, earlier._asdict())
    rate, last = config.optim.learning_rate(steps), config.optim.learning_rate(earlier.planned)
    return (
        f"align: continues the training of {source}: steps {step + 1:,} to {steps:,} of {steps:,}; "
        f"the learning rate is that of a {config.optim.schedule} schedule of {steps:,} steps, "
        f"{np.asarray(rate(step)).item():.3g} at step {step + 1:,} ({source} had ended at "
        f"{np.asarray(last(step - 1)).item():.3g})"
    )


def steps_of(config: Experiment, num: int, earlier: Continued | None) -> int:
    """Returns the number of optimiser steps of alignment, with those that are continued.

    Args:
        config: the run's config.
        num: comparisons that are trained on.
        earlier: what the run continues, if anything.
    """
    train, done = config.train, (earlier.step, earlier.ends[-1]) if earlier else (0, 0)
    return num_steps(
        num, train.batch_size, train.epochs, train.repeat, train.max_steps, *done
    )  # fmt: skip


def earlier_training(workdir: Path) -> Earlier | None:
    """Returns what the training loop needs of the training that a run continues."""
    earlier = recorded(workdir)
    if earlier is None:
        return None
    facts = {"steps": earlier.planned, _CONTINUES: earlier.before or None}
    own = {_CONTINUES: earlier.fingerprint}
    return Earlier(workdir / _COPY, facts, own, tuple(earlier.ends), earlier.step)


def forget_copy(ctx: RunContext) -> None:
    """Removes the copied checkpoint once training has one of its last step."""
    if ctx.workdir.writes:
        remove(ctx.workdir.path / _COPY)
