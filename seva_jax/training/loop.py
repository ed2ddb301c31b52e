"""The training loop, the same for the base model and for alignment.

It resumes from the newest intact checkpoint, never waits for the device between rows of metrics,
saves by the clock or when a stop is requested (`seva_jax/runtime/shutdown.py`), and ends with a
checkpoint of the last step. However a run was interrupted, it ends with the parameters and the
rows of metrics of an uninterrupted one. Read next: `checkpoint.py`, `save_schedule.py`.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from seva_jax.batches.pipeline import Batches, Schedule, shuffled
from seva_jax.models import Llava
from seva_jax.objectives import Objective
from seva_jax.runtime import shutdown
from seva_jax.runtime.processes import say
from seva_jax.runtime.profiler import profiler
from seva_jax.runtime.progress import Progress
from seva_jax.sharding import (
    check_batch,
    process_row_share,
    put_batch,
    replicated,
    row_multiple,
    state_shardings,
)
from seva_jax.training.checkpoint import Checkpoints, checkpoint_of, read_variables
from seva_jax.training.compiled_step import CompiledStep
from seva_jax.training.evaluation import HeldOut
from seva_jax.training.health import Health, NotFinite, trainable_share
from seva_jax.training.options import TrainOptions
from seva_jax.training.save_schedule import SaveDecision, SaveSchedule
from seva_jax.training.step import (
    StepOptions,
    TrainState,
    TrainStep,
    Variables,
    in_micro_batches,
)
from seva_jax.training.step_times import StepTimes
from seva_jax.training.task import Site, Task
from seva_jax.types import Comparison

# What the progress of training shows, by metric.
_LIVE = {"loss": "loss", "rewards/margins": "margin", "rewards/accuracies": "accuracy"}


def fit(task: Task, site: Site, frozen: Variables, trainable: Variables) -> Variables:
    """Trains to the last step and returns the trained variables.

    With held-out pairs, training may end earlier, and those of the best step may be returned; see
    `TrainOptions`.

    Args:
        task: what to train.
        site: where.
        frozen: variables that do not change.
        trainable: variables at step 0; replaced by those of the newest checkpoint, if any.

    Raises:
        DataError: the batch does not divide by processes, micro-batches and mesh, there is nothing
            to train on, or checkpoints cannot be read or written.
        NotFinite: too many steps in a row were not finite.
        Stopped: a stop was requested; the last step is saved.
    """
    options, mesh, optimizer = task.options, site.mesh, task.optim.make(task.steps)
    check_batch(mesh, options.batch_size, options.micro_batches)
    schedule = shuffled(
        task.rows, options.batch_size, task.steps, options.epochs, options.repeat, site.seed,
        task.earlier.ends if task.earlier else (),
    )  # fmt: skip
    batches = Batches.chosen(
        task.rows, schedule, options.batch_size, process_row_share(mesh),
        row_multiple(mesh) * options.micro_batches, site.shapes,
    )  # fmt: skip
    checkpoints = Checkpoints(site.folder / "checkpoints" / task.name, site.facts)
    say(f"{task.name}: {batches.packer.describe()}; {trainable_share(task.rows)}")
    _warn_if_nothing_is_learnt(task)
    data, row = batches.iterate(options.read_processes), _MetricsRow(task, site, schedule)
    held_out = HeldOut(task, site, row.times)
    state = init_state(optimizer, mesh, trainable)
    shardings = jax.tree.map(lambda x: x.sharding, state)

    def jitted(model: Llava) -> Any:
        return jit_step(
            model, task.objective, optimizer, site.step_options, task.reference_in_step, shardings,
            site.seed,
        )  # fmt: skip

    step_fn = CompiledStep(task, site, jitted, batches.packer)
    restored = checkpoints.restore(state)
    if restored is None and task.earlier is not None:
        restored = task.earlier.restore(site.facts, state)
    if restored is not None:
        state, position = restored
        row.resume(position)
        held_out.resume(position)
        step_fn.resume(position)
        data.set_state(position)
    first = int(state.step)
    held_out.start()
    row.start(first)
    saver = _Saver(checkpoints, options)
    progress = Progress(task.name, task.steps, "step", first, jax.process_index() == 0)
    stop = not held_out.after(first, state.trainable, frozen)
    progress.update(0, **held_out.shown)
    checkpoints.keep(held_out.best)
    if held_out.ended and row.waiting:  # a stop kept it from ending there at once
        row.write(first, checkpoints, row.times.exchange())
    for step in range(first + 1, first + 1 if stop or held_out.ended else task.steps + 1):
        profiler.next_unit(step)
        with row.times.input(), profiler.waiting_for_input():
            arrays = next(data)
        batch = put_batch(mesh, in_micro_batches(arrays, options.micro_batches), leading=1)
        with row.times.step():
            state, metrics = step_fn(state, frozen, batch)
        row.add(metrics)
        stop = shutdown.stop_agreed() and step < task.steps
        stop = stop or not held_out.after(step, state.trainable, frozen)
        last = step == task.steps or held_out.ended
        complete = step % options.log_every == 0 or last
        everyone = row.times.exchange(due=saver.due()) if complete else []
        shown = row.write(step, checkpoints, everyone) if complete else {}
        better = held_out.best == step
        save, wait = saver.decide(step, stop or last or better, everyone)
        progress.update(1, **shown, **held_out.shown)
        checkpoints.keep(held_out.best)
        if save:
            position = data.get_state() | row.pending() | held_out.pending() | step_fn.pending()
            saver.save(state, position)
        if wait:
            saver.wait()
        if stop or last:
            break
    progress.close()
    checkpoints.close()
    data.close()
    if stop:
        say(f"{task.name}: saved at step {int(state.step):,} of {task.steps:,}")
        raise shutdown.Stopped
    if (kept := held_out.finish()) not in (None, int(state.step)):
        path = checkpoint_of(site.folder / "checkpoints" / task.name, kept)
        return read_variables(path, _like(state.trainable))
    return state.trainable


def _warn_if_nothing_is_learnt(task: Task) -> None:
    """Says before training that the learning rate of the only step is 0."""
    rate = task.optim.learning_rate(task.steps)
    if not any(rate(step) for step in range(min(task.steps, 2))):
        say(
            f"{task.name}: NOTHING WILL BE LEARNT: there is a single step ({len(task.rows):,} "
            f"comparisons, train.batch_size {task.options.batch_size:,}), and warm-up starts at a "
            "learning rate of 0; set --optim.warmup-ratio 0, or train for more steps"
        )


class _MetricsRow:
    """The metrics of the steps since the last row, on the device until the row is complete."""

    def __init__(self, task: Task, site: Site, schedule: Schedule) -> None:
        self._task, self._site, self._schedule = task, site, schedule
        self._health = Health(task.name, site.folder, task.options.max_nonfinite, site.log.past)
        self._learning_rate = task.optim.learning_rate(task.steps)
        self.waiting: list[dict[str, Any]] = []
        self._in_a_row = 0
        self._earlier_s: Sequence[float] = ()
        self.times = StepTimes(task.name)

    def resume(self, position: dict[str, Any]) -> None:
        """Takes back out of a saved position what `pending` put in."""
        self.waiting += position.pop("waiting", [])
        self._in_a_row = position.pop("nonfinite", 0)
        self._earlier_s = position.pop("times", ())

    def start(self, step: int) -> None:
        """Starts after a step; rows that a lost process wrote of later steps are dropped."""
        written = step - len(self.waiting)
        self._site.log.forget_after(written)
        self._health.resume(written, self._in_a_row)
        self.times.start(self._earlier_s)

    def add(self, metrics: dict[str, Any]) -> None:
        """Adds a step."""
        self.waiting.append(metrics)
        self.times.started(metrics["loss"])

    def pending(self) -> dict[str, Any]:
        """Returns what a checkpoint keeps of the row, as plain numbers."""
        with self.times.device():
            self.waiting = _numbers(self.waiting)
        # A copy: it is written while training continues.
        kept = {"waiting": list(self.waiting), "nonfinite": self._health.in_a_row}
        return kept | {"times": self.times.so_far()}

    def write(
        self, step: int, checkpoints: Checkpoints, everyone: Sequence[Mapping[str, Any]]
    ) -> dict[str, float]:
        """Writes the row and returns what the progress shows of it.

        Metrics are means over steps; pairs, tokens, seconds and unreadable (the comparisons left
        out for their images) are sums; see also `Health`, and `step_times.py` for time and memory.

        Args:
            step: the last step of the row.
            checkpoints: closed before training ends for good.
            everyone: what the processes told each other, see `StepTimes.exchange`.

        Raises:
            NotFinite: too many steps in a row were not finite.
        """
        rows = _numbers(self.waiting)
        steps = range(step - len(rows) + 1, step + 1)
        means = self._health.averages(steps, rows, self._comparisons)
        means |= self.times.row(everyone)
        for count in ("pairs", "tokens"):
            means[count] = float(sum(r[count] for r in rows))
            means[f"{count}/s"] = means[count] / means["seconds"]
        wanted = sum(c.weight > 0 for s in steps for c in self._comparisons(s))
        means["unreadable"] = wanted - round(means["pairs"])
        means["chips"] = self._site.mesh.size
        means["lr"] = np.asarray(self._learning_rate(step - 1)).item()
        self._site.log.write(step, means)
        try:
            self._health.check()
        except NotFinite:
            checkpoints.close()  # what is being saved is good
            raise
        self.waiting.clear()
        return {name: means[key] for key, name in _LIVE.items() if key in means}

    def _comparisons(self, step: int) -> list[Comparison]:
        return [self._task.rows.comparisons[i] for i in self._schedule[step - 1]]


class _Saver:
    """Decides when to save, and keeps the time that saving takes out of the schedule."""

    def __init__(self, checkpoints: Checkpoints, options: TrainOptions) -> None:
        self._checkpoints, self._every = checkpoints, options.save_every
        self._schedule = SaveSchedule(options.save_every_s)

    def due(self) -> SaveDecision:
        """Returns what this process's clock wants at a row of metrics.

        Raises:
            DataError: the save before failed.
        """
        self._checkpoints.check()
        return self._schedule.due(self._checkpoints.took_s, self._checkpoints.saving)

    def decide(self, step: int, must: bool, everyone: Sequence[Mapping[str, Any]]) -> SaveDecision:
        """Decides whether to save after a step, and whether to wait until it is written.

        Args:
            step: the step.
            must: training stops here.
            everyone: what `due` returned on every process at this row of metrics, under "due";
                empty between rows.
        """
        by_step = bool(self._every) and step % self._every == 0
        due = SaveDecision(*everyone[0]["due"]) if everyone else SaveDecision(False, False)
        return SaveDecision(must or by_step or due.save, by_step or due.wait)

    def save(self, state: TrainState, position: dict[str, Any]) -> None:
        """Begins to save; training continues meanwhile."""
        self._schedule.begin()
        with self._schedule.paused():
            self._checkpoints.save(state, position)

    def wait(self) -> None:
        """Waits until everything is written."""
        with self._schedule.paused():
            self._checkpoints.wait()


def _numbers(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the metrics of steps as plain numbers, which JSON keeps exactly."""
    return jax.tree.map(lambda x: np.asarray(x).item(), jax.device_get(rows))


def _like(tree: Any) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def _first_state(optimizer: optax.GradientTransformation, trainable: Variables) -> TrainState:
    return TrainState(jnp.zeros((), jnp.int32), trainable, optimizer.init(trainable))


def state_like(
    optimizer: optax.GradientTransformation, mesh: jax.sharding.Mesh, trainable: Variables
) -> TrainState:
    """Returns shapes and shardings of a state; optimiser moments are sharded like parameters.

    Args:
        optimizer: the optimiser.
        mesh: where the state lives.
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
    """Returns the state of step 0, every leaf placed on the mesh."""
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
    seed: int = 0,
) -> Any:
    """Returns the jitted step (state, frozen, batch) -> (state, metrics); it donates the old state.

    Args:
        model: the module.
        objective: what is minimised.
        optimizer: how it is minimised.
        options: how the step computes.
        reference_in_step: see `TrainStep`.
        shardings: shardings of the state.
        seed: see `TrainStep`.
    """
    step = TrainStep(model, objective, optimizer, options, reference_in_step, seed)
    return jax.jit(step, out_shardings=(shardings, None), donate_argnums=0)
