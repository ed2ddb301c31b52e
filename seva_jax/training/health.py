"""What a training run notices about its own steps: averages, non-finite steps, loss spikes.

Everything is looked at when a row of metrics is due, so no step waits for it. The step itself
keeps its old state when loss or gradient are not finite (`step.TrainStep`).
"""

from __future__ import annotations

import collections
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from seva_jax.batches.pipeline import ComparisonRows
from seva_jax.runtime.files import append_lines
from seva_jax.runtime.processes import say
from seva_jax.types import Comparison, DataError

NOTES = ("nonfinite.jsonl", "spikes.jsonl")  # in the work directory, a line each step
_HISTORY = 64  # rows of metrics that a spike is compared with
_ENOUGH = 16  # rows there must be before there can be a spike
_SPIKE = 10.0  # deviations above the median
_LEAST_DEVIATION = 0.05  # share of the median: where the loss is flat, no wiggle is a spike


class NotFinite(Exception):
    """Too many steps in a row had a loss or gradient that is not finite; ends the run."""


class Health:
    """Looks at the metrics of all steps of one stage, a row's worth at a time.

    Args:
        stage: its name.
        folder: the work directory. `NOTES` there get a line for each such step, with the ids of
            its comparisons.
        max_nonfinite: so many non-finite steps, one after another, end the run.
        past: rows of metrics written before, for a run that goes on.
    """

    def __init__(
        self, stage: str, folder: Path, max_nonfinite: int, past: Sequence[Mapping[str, Any]] = ()
    ) -> None:
        self._stage, self._folder, self._most = stage, folder, max_nonfinite
        self._past = [(row["step"], row["loss_max"]) for row in past if "loss_max" in row]
        self._highest: collections.deque[float] = collections.deque(maxlen=_HISTORY)
        self._in_a_row = self._longest = 0

    @property
    def in_a_row(self) -> int:
        """Non-finite steps, one after another, up to the last row of metrics."""
        return self._in_a_row

    def resume(self, step: int, in_a_row: int = 0) -> None:
        """Forgets what came after a step and comes again: all is noticed as in an unbroken run.

        Args:
            step: the last one whose row of metrics stays.
            in_a_row: what it was at that row.
        """
        self._in_a_row = in_a_row
        self._highest.extend(x for at, x in self._past if at <= step and np.isfinite(x))

    def averages(
        self, steps: range, rows: Sequence[Mapping[str, Any]], of: Callable[[int], list[Comparison]]
    ) -> dict[str, float]:
        """One row of metrics; writes down which steps were unusual.

        Args:
            steps: those since the last row, counted from 1.
            rows: metrics of each, on the host.
            of: the comparisons of a step.

        Returns:
            Means over the finite steps (over all if there are none), the numbers of steps that
            were "nonfinite" and "spikes", and "loss_max", the highest loss of one finite step.
        """
        good = {step: row for step, row in zip(steps, rows, strict=True) if not row["nonfinite"]}
        means = {k: float(np.mean([r[k] for r in good.values() or rows])) for k in rows[0]}
        for step, row in zip(steps, rows, strict=True):
            self._in_a_row = 0 if step in good else self._in_a_row + 1
            self._longest = max(self._longest, self._in_a_row)
            if step not in good:
                loss, norm = (str(float(row[name])) for name in ("loss", "grad_norm"))
                self._note(NOTES[0], step, of(step), {"loss": loss, "grad_norm": norm})
        means["nonfinite"] = len(rows) - len(good)
        if means["nonfinite"]:
            say(
                f"{self._stage}: {len(rows) - len(good)} of the steps {steps[0]} to {steps[-1]} "
                "had a loss or gradient that is not finite, and changed nothing; their examples "
                f"are in {self._folder / NOTES[0]}"
            )
        return means | self._spikes({step: float(row["loss"]) for step, row in good.items()}, of)

    def _spikes(
        self, losses: Mapping[int, float], of: Callable[[int], list[Comparison]]
    ) -> dict[str, float]:
        """Compares the losses of steps with the highest ones of the rows before."""
        found: list[int] = []
        if len(self._highest) >= _ENOUGH:
            usual = np.median(self._highest)
            deviation = 1.4826 * np.median(np.abs(np.array(self._highest) - usual))  # as of normals
            limit = usual + _SPIKE * max(deviation, _LEAST_DEVIATION * abs(usual))
            found = [step for step, loss in losses.items() if loss > limit]
            for step in found:
                values = {"loss": losses[step], "usual": float(usual), "limit": float(limit)}
                self._note(NOTES[1], step, of(step), values)
                say(
                    f"{self._stage}: the loss of step {step}, {losses[step]:.4g}, is a spike; "
                    f"before it was {usual:.4g}; the examples are in "
                    f"{self._folder / NOTES[1]}"
                )
        highest = max(losses.values(), default=math.nan)
        if losses:
            self._highest.append(highest)
        return {"loss_max": highest, "spikes": len(found)}

    def _note(
        self, file: str, step: int, examples: list[Comparison], values: Mapping[str, Any]
    ) -> None:
        if jax.process_index() == 0:
            ids = [comparison.prompt.id for comparison in examples]
            record = {"stage": self._stage, "step": step, **values, "ids": ids}
            append_lines(self._folder / file, [record])

    def check(self) -> None:
        """Ends the run where going on makes no sense; after the row of metrics is written.

        Raises:
            NotFinite: too many steps in a row changed nothing.
        """
        if self._longest >= self._most:
            raise NotFinite(
                f"{self._stage}: {self._longest} steps one after another had a loss or gradient "
                "that is not finite; the parameters are those before them; their examples are in "
                f"{self._folder / NOTES[0]}; lower the learning rate or remove the "
                "examples, with another --workdir, or raise --train.max-nonfinite"
            )


def trainable_share(rows: ComparisonRows) -> str:
    """How many comparisons have nothing to train on, in words.

    That are those of weight 0, without a token of an answer, or without reference log-probs
    because an image did not decode in that pass.

    Raises:
        DataError: none has anything.
    """
    with_targets = rows.sizes.targets_N > 0
    weights = np.array([c.weight for c in rows.comparisons])
    seen = np.array([r != () for r in rows.reference or ()] or [True] * len(rows))
    num = int((with_targets & (weights > 0) & seen).sum())
    if not num:
        raise DataError(
            f"none of the {len(rows)} examples has a token to train on: their weights are 0, their "
            "answers empty or their images unreadable; look at the pairs and their images"
        )
    return f"{len(rows) - num:,} of {len(rows):,} examples have no token to train on"
