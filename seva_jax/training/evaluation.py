"""Evaluates the held-out pairs of a training stage between its steps.

What lives here: `HeldOut`, which the loop calls after every step. What does not: what follows from
the losses (`held_out.py`), the loss itself (`TrainStep.evaluate` in `step.py`).
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import optax

from seva_jax.batches.pipeline import Batches, ComparisonRows, in_order
from seva_jax.runtime import shutdown
from seva_jax.runtime.files import write_json
from seva_jax.runtime.processes import on_first_process, say
from seva_jax.sharding import process_row_share, put_batch, replicated, row_multiple
from seva_jax.training.held_out import RECORD, Watch, weighted_means
from seva_jax.training.step import TrainStep, Variables, in_micro_batches
from seva_jax.training.step_times import StepTimes
from seva_jax.training.task import Site, Task

_LOSS = "held-out loss"


class HeldOut:
    """The held-out pairs of a training stage; everything does nothing if there are none.

    Args:
        task: what is trained.
        site: where.
        times: of the steps, whose rows do not count the time of evaluations.
    """

    def __init__(self, task: Task, site: Site, times: StepTimes) -> None:
        self._task, self._site, self._times = task, site, times
        done = (task.earlier.step, task.earlier.ends[-1]) if task.earlier else (0, 0)
        self._watch = Watch.of(task.options, task.steps, len(task.rows), done)
        if task.held_out is not None:
            self._batches = self._laid_out(task.held_out)
            step = TrainStep(
                task.model, task.objective, optax.identity(), site.step_options,
                task.reference_in_step,
            )  # fmt: skip
            self._evaluate = jax.jit(step.evaluate, out_shardings=replicated(site.mesh))

    def _laid_out(self, rows: ComparisonRows) -> Batches:
        options, mesh = self._task.options, self._site.mesh
        unit = row_multiple(mesh) * options.micro_batches
        size = min(options.batch_size, -(-len(rows) // unit) * unit)
        return Batches.chosen(
            rows, in_order(rows, size), size, process_row_share(mesh), unit, self._site.shapes
        )

    def resume(self, position: dict[str, Any]) -> None:
        """Takes back out of a saved position what `pending` put in."""
        for step, loss in position.pop("held-out", []):
            self._watch = self._watch.saw(step, loss)

    def start(self) -> None:
        """Drops the rows of evaluations that were lost with an interrupted process."""
        if self._site.held_out_log is not None:
            last = self._watch.values[-1][0] if self._watch.values else -1
            self._site.held_out_log.forget_after(last)

    def pending(self) -> dict[str, Any]:
        """Returns what a checkpoint keeps, as plain numbers."""
        return {"held-out": [list(value) for value in self._watch.values]} if self._exist else {}

    @property
    def _exist(self) -> bool:
        return self._task.held_out is not None

    @property
    def best(self) -> int | None:
        """The step with the lowest held-out loss so far; None before the first."""
        return self._watch.best

    @property
    def ended(self) -> bool:
        """Whether training ends early: the loss has not improved for long enough."""
        return self._exist and self._watch.exhausted

    @property
    def shown(self) -> dict[str, float]:
        """What the progress shows."""
        return {_LOSS: self._watch.values[-1][1]} if self._watch.values else {}

    def after(self, step: int, trainable: Any, frozen: Variables) -> bool:
        """Evaluates after a step, if an evaluation is due.

        Args:
            step: the step.
            trainable: the trained variables after it.
            frozen: variables that do not change.

        Returns:
            False if a stop was requested meanwhile; a resumed run then evaluates again.

        Raises:
            DataError: no held-out pair can be evaluated.
        """
        if not self._exist or not self._watch.due(step):
            return True
        with self._times.aside() as times:
            batches = self._metrics(trainable, frozen)
        if batches is None:
            return False
        means = weighted_means(batches)
        self._watch = self._watch.saw(step, means["loss"])
        if self._site.held_out_log is not None:
            self._site.held_out_log.write(step, means | times)
        return True

    def _metrics(self, trainable: Any, frozen: Variables) -> list[dict[str, Any]] | None:
        mesh, data = self._site.mesh, self._batches.iterate()
        metrics_of_batches: list[dict[str, Any]] = []
        try:
            for _ in range(len(self._batches)):
                if shutdown.stop_agreed():
                    return None
                arrays = in_micro_batches(next(data), self._task.options.micro_batches)
                with jax.set_mesh(mesh):
                    batch = put_batch(mesh, arrays, leading=1)
                    metrics = jax.device_get(self._evaluate(trainable, frozen, batch))
                metrics_of_batches.append(
                    {name: np.asarray(x).item() for name, x in metrics.items()}
                )
        finally:
            data.close()
        return metrics_of_batches

    def finish(self) -> int | None:
        """Writes the record of a training that has ended, and returns the step that is kept.

        None without held-out pairs.
        """
        if not self._exist:
            return None
        assert self._task.held_out is not None
        result = self._watch.result(len(self._task.held_out))
        path = self._site.folder / RECORD
        on_first_process(lambda: write_json(path, result.__dict__))  # then every process reads it
        if result.last_step < result.steps:
            say(
                f"{self._task.name}: stopped early at step {result.last_step:,} of "
                f"{result.steps:,}: {self._task.options.patience} evaluations in a row brought no "
                "lower held-out loss (train.patience)"
            )
        return result.kept_step
