"""What a training stage trains, where it runs, and where its rows of metrics go.

What lives here: plain values that the loop takes. What does not: the loop (`loop.py`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import jax

from seva_jax.batches.pipeline import ComparisonRows, RowShapes
from seva_jax.models import Llava, Remat
from seva_jax.objectives import Objective
from seva_jax.training.earlier import Earlier
from seva_jax.training.optimizer import Optim
from seva_jax.training.options import TrainOptions
from seva_jax.training.step import StepOptions


@dataclasses.dataclass(frozen=True)
class Task:
    """What a training stage trains, and on what.

    Attributes:
        name: name of the stage.
        model: the module.
        objective: what is minimised.
        optim: the optimiser.
        options: batch sizes, epochs, and when to save and log.
        steps: optimiser steps.
        rows: the data.
        reference_in_step: see `TrainStep`.
        held_out: pairs that are evaluated and not trained on; None if there are none.
        earlier: the training that this one continues; None if it begins at step 1.
    """

    name: str
    model: Llava
    objective: Objective
    optim: Optim
    options: TrainOptions
    steps: int
    rows: ComparisonRows
    reference_in_step: bool = False
    held_out: ComparisonRows | None = None
    earlier: Earlier | None = None


class MetricsLog(Protocol):
    """Where the rows of metrics of a stage go."""

    @property
    def past(self) -> Sequence[Mapping[str, Any]]:
        """Rows written by an earlier attempt."""
        ...

    def write(self, step: int, values: dict[str, float]) -> None:
        """Writes the row of a step."""
        ...

    def forget_after(self, step: int) -> None:
        """Drops rows of later steps, which were lost with an interrupted process."""
        ...


@dataclasses.dataclass(frozen=True)
class Site:
    """Where a training stage runs and what it writes.

    Attributes:
        mesh: where arrays live.
        folder: the work directory. Checkpoints go to checkpoints/NAME.
        facts: what a checkpoint must share with the run, see `Checkpoints`.
        seed: seed of the order of the data.
        shapes: how the shapes of rows are chosen.
        step_options: how the step computes.
        remat: what the backward pass recomputes; "auto" is the least with which the step fits.
        log: receives the rows of metrics.
        held_out_log: receives those of held-out pairs; None if there are none.
    """

    mesh: jax.sharding.Mesh
    folder: Path
    facts: Mapping[str, Any]
    seed: int
    shapes: RowShapes
    step_options: StepOptions
    remat: Remat | Literal["auto"]
    log: MetricsLog
    held_out_log: MetricsLog | None = None
