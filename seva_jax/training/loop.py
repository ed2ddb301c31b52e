"""The training loop, the same for the base model and for alignment.

Resumes from the newest intact checkpoint, never waits for the device between log lines, saves by
the clock or when it is told to stop (`shutdown.py`), and ends with a checkpoint of the last step. A
run that was interrupted, in whatever way, ends with the parameters and the rows of metrics of one
that was not.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from seva_jax.batches.pipeline import Batches, ComparisonRows, RowShapes, shuffled
from seva_jax.models import Llava
from seva_jax.objectives import Objective
from seva_jax.runtime import shutdown
from seva_jax.runtime.processes import gather, say
from seva_jax.runtime.progress import Progress
from seva_jax.sharding import (
    check_batch,
    process_row_share,
    put_batch,
    replicated,
    row_multiple,
    state_shardings,
)
from seva_jax.training.checkpoint import Checkpoints
from seva_jax.training.health import Health, NotFinite, trainable_share
from seva_jax.training.memory import warn_if_too_large
from seva_jax.training.save_schedule import SaveDecision, SaveSchedule
from seva_jax.training.step import StepOptions, TrainState, Variables, make_train_step
from seva_jax.types import Comparison

# What the progress of training shows, by metric.
_LIVE = {"loss": "loss", "rewards/margins": "margin", "rewards/accuracies": "accuracy"}


@dataclasses.dataclass(frozen=True)
class Loop:
    """What to fit, on what, for how long.

    Attributes:
        name: shown by the progress bar.
        directory: of the checkpoints.
        facts: see `Checkpoints`.
        mesh: where arrays live.
        model: the module.
        objective: what is minimised.
        optimizer: how.
        options: of the step.
        reference_in_step: see `make_train_step`.
        rows: the data.
        shapes: of the rows.
        batch_size: comparisons in a step, over all processes.
        micro_batches: parts a batch is computed in.
        steps: optimiser steps.
        epochs: passes over the data.
        repeat: see `TrainOptions`.
        seed: of the order of the data.
        save_every: see `TrainOptions`.
        save_every_s: see `TrainOptions`.
        log_every: steps between rows of metrics.
        processes: see `TrainOptions.read_processes`.
        learning_rate: schedule, for the log.
    """

    name: str
    directory: Path
    facts: Mapping[str, Any]
    mesh: jax.sharding.Mesh
    model: Llava
    objective: Objective
    optimizer: optax.GradientTransformation
    options: StepOptions
    reference_in_step: bool
    rows: ComparisonRows
    shapes: RowShapes
    batch_size: int
    micro_batches: int
    steps: int
    epochs: int
    repeat: int
    seed: int
    save_every: int
    save_every_s: float
    log_every: int
    processes: int
    learning_rate: optax.Schedule


def _first_state(optimizer: optax.GradientTransformation, trainable: Variables) -> TrainState:
    return TrainState(jnp.zeros((), jnp.int32), trainable, optimizer.init(trainable))


def state_like(
    optimizer: optax.GradientTransformation, mesh: jax.sharding.Mesh, trainable: Variables
) -> TrainState:
    """Shapes and shardings of a state: optimiser moments lie where their parameters lie.

    Args:
        optimizer: the optimiser.
        mesh: where the state lies.
        trainable: arrays or `jax.ShapeDtypeStruct`s with shardings.
    """
    parameter_shardings = jax.tree.map(lambda x: x.sharding, trainable)
    abstract = jax.eval_shape(functools.partial(_first_state, optimizer), trainable)
    shardings = abstract._replace(
        step=replicated(mesh),
        trainable=parameter_shardings,
        opt_state=state_shardings(mesh, abstract.opt_state, parameter_shardings),
    )
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, shardings
    )


def init_state(
    optimizer: optax.GradientTransformation, mesh: jax.sharding.Mesh, trainable: Variables
) -> TrainState:
    """Step 0, every leaf placed."""
    shardings = jax.tree.map(lambda x: x.sharding, state_like(optimizer, mesh, trainable))
    first = functools.partial(_first_state, optimizer)
    return jax.jit(first, out_shardings=shardings)(trainable)


def jit_step(
    model: Llava,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    options: StepOptions,
    reference_in_step: bool,
    shardings: TrainState,
) -> Any:
    """The compiled step (state, frozen, batch) -> (state, metrics); the old state is given up.

    Args:
        model: the module.
        objective: what is minimised.
        optimizer: how.
        options: of the step.
        reference_in_step: see `make_train_step`.
        shardings: of the state.
    """
    step = make_train_step(model, objective, optimizer, options, reference_in_step)
    return jax.jit(step, out_shardings=(shardings, None), donate_argnums=0)


def fit(
    loop: Loop,
    frozen: Variables,
    trainable: Variables,
    write_metrics: Callable[[int, dict[str, float]], None],
    starts_after: Callable[[int], None],
    health: Health,
) -> Variables:
    """Trains to the last step and returns the trained variables.

    Args:
        loop: see `Loop`.
        frozen: variables that do not change.
        trainable: variables at step 0; replaced by those of the newest checkpoint, if any.
        write_metrics: receives (step, means since the last row; pairs, tokens, seconds and
            unreadable, the comparisons left out for their images, are sums; see also `Health`).
        starts_after: receives the last step whose metrics are written, before others are: what
            was written of later ones was lost with an interrupted process.
        health: looks for steps that are not as they should be.

    Raises:
        DataError: the batch does not divide by processes, micro-batches and mesh, there is nothing
            to train on, or checkpoints cannot be read or written.
        NotFinite: too many steps in a row were not finite.
        Stopped: a signal came; the last step is saved.
    """
    check_batch(loop.mesh, loop.batch_size, loop.micro_batches)
    state = init_state(loop.optimizer, loop.mesh, trainable)
    checkpoints = Checkpoints(loop.directory, loop.facts)
    schedule = shuffled(loop.rows, loop.batch_size, loop.steps, loop.epochs, loop.repeat, loop.seed)
    unit = row_multiple(loop.mesh) * loop.micro_batches
    batches = Batches.chosen(
        loop.rows, schedule, loop.batch_size, process_row_share(loop.mesh), unit, loop.shapes
    )
    say(f"{loop.name}: {batches.packer.describe()}; {trainable_share(loop.rows)}")
    data = batches.iterate(loop.processes)
    restored = checkpoints.restore(state)
    waiting: list[dict[str, Any]] = []  # metrics since the last row
    in_a_row = 0
    if restored is not None:
        state, position = restored
        waiting += position.pop("waiting", [])
        in_a_row = position.pop("nonfinite", 0)
        data.set_state(position)
    step_fn = jit_step(
        loop.model, loop.objective, loop.optimizer, loop.options, loop.reference_in_step,
        jax.tree.map(lambda x: x.sharding, state),
    )  # fmt: skip
    first = int(state.step)
    starts_after(first - len(waiting))
    health.resume(first - len(waiting), in_a_row)
    compiled: set[tuple[int, ...]] = set()
    clock, save_schedule = time.monotonic(), SaveSchedule(loop.save_every_s)

    def comparisons(step: int) -> list[Comparison]:
        return [loop.rows.comparisons[i] for i in schedule[step - 1]]

    progress = Progress(loop.name, loop.steps, "step", first, jax.process_index() == 0)
    for step in range(first + 1, loop.steps + 1):
        batch = jax.tree.map(lambda x: x.reshape(loop.micro_batches, -1, *x.shape[1:]), next(data))
        batch = put_batch(loop.mesh, batch, leading=1)
        if batch.tokens_BS.shape not in compiled:
            compiled.add(batch.tokens_BS.shape)
            warn_if_too_large(loop.model, state, frozen, batch)
        with jax.set_mesh(loop.mesh):
            state, metrics = step_fn(state, frozen, batch)
        waiting.append(metrics)
        shown: dict[str, float] = {}
        stop = shutdown.stop_agreed() and step < loop.steps
        wait = bool(loop.save_every) and step % loop.save_every == 0
        save = stop or step == loop.steps or wait
        if step % loop.log_every == 0 or step == loop.steps:
            rows = _numbers(waiting)
            steps = range(step - len(rows) + 1, step + 1)
            means = health.averages(steps, rows, comparisons)
            seconds, clock = time.monotonic() - clock, time.monotonic()
            for count in ("pairs", "tokens"):
                means[count] = float(sum(r[count] for r in rows))
                means[f"{count}/s"] = means[count] / seconds
            wanted = sum(c.weight > 0 for s in steps for c in comparisons(s))
            means["unreadable"] = wanted - round(means["pairs"])
            means |= {"seconds": seconds, "chips": loop.mesh.size}
            means["lr"] = np.asarray(loop.learning_rate(step - 1)).item()
            write_metrics(step, means)
            try:
                health.check()
            except NotFinite:
                checkpoints.close()  # what is being saved is good
                raise
            checkpoints.check()
            shown = {name: means[key] for key, name in _LIVE.items() if key in means}
            waiting.clear()
            # By the clock of process 0.
            due = SaveDecision(
                *gather(save_schedule.due(checkpoints.took_s, checkpoints.saving))[0]
            )
            save, wait = save or due.save, wait or due.wait
        progress.update(1, **shown)
        if save:
            waiting = _numbers(waiting)
            # A copy: it is written while training goes on.
            noticed = {"waiting": list(waiting), "nonfinite": health.in_a_row}
            save_schedule.begin()
            with save_schedule.paused():
                checkpoints.save(state, data.get_state() | noticed)
        if wait:
            with save_schedule.paused():
                checkpoints.wait()
        if stop:
            break
    progress.close()
    checkpoints.close()
    data.close()
    if int(state.step) < loop.steps:
        say(f"{loop.name}: saved at step {int(state.step):,} of {loop.steps:,}")
        raise shutdown.Stopped
    return state.trainable


def _numbers(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Metrics of steps as plain numbers, which JSON keeps exactly."""
    return jax.tree.map(lambda x: np.asarray(x).item(), jax.device_get(rows))
