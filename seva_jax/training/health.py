"""Monitoring of training steps: averages of metrics, non-finite steps, loss spikes.

Steps are examined when a row of metrics is due, so no step waits for it. The step itself keeps its
old state when loss or gradient are not finite (`TrainStep` in `step.py`).
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

NOTES = ("nonfinite.jsonl", "spikes.jsonl")  # in the work directory, one line per step
_HISTORY = 64  # rows of metrics that a loss is compared with
_ENOUGH = 16  # rows needed before a loss can count as a spike
_SPIKE = 10.0  # deviations above the median
_LEAST_DEVIATION = 0.05  # share of the median, so that a flat loss makes no spikes of its noise


class NotFinite(Exception):
    """Ends the run: too many consecutive steps had a loss or gradient that is not finite."""


class Health:
    """Examines the metrics of all steps of one stage, one row of metrics at a time.

    Args:
        stage: name of the stage.
        folder: the work directory. The files `NOTES` there get a line for each non-finite step and
            each spike, with the ids of its comparisons.
        max_nonfinite: this many consecutive non-finite steps end the run.
        past: rows of metrics written before, for a resumed run.
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
        """Consecutive non-finite steps up to the last row of metrics."""
        return self._in_a_row

    def resume(self, step: int, in_a_row: int = 0) -> None:
        """Restores the state after a step, so a resumed run notices what an unbroken one does.

        Args:
            step: the last step whose row of metrics is kept.
            in_a_row: the value of `in_a_row` at that row.
        """
        self._in_a_row = in_a_row
        self._highest.extend(x for at, x in self._past if at <= step and np.isfinite(x))

    def averages(
        self, steps: range, rows: Sequence[Mapping[str, Any]], of: Callable[[int], list[Comparison]]
    ) -> dict[str, float]:
        """Averages the metrics of several steps into one row, and records unusual steps.

        Args:
            steps: the steps since the last row, counted from 1.
            rows: metrics of each step, on the host.
            of: returns the comparisons of a step.

        Returns:
            Means over the finite steps (over all if there are none), the numbers of steps that
            were "nonfinite" and "spikes", and "loss_max", the highest loss of a finite step.
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
                "had a loss or gradient that is not finite and changed nothing; their examples "
                f"are in {self._folder / NOTES[0]}"
            )
        return means | self._spikes({step: float(row["loss"]) for step, row in good.items()}, of)

    def _spikes(
        self, losses: Mapping[int, float], of: Callable[[int], list[Comparison]]
    ) -> dict[str, float]:
        """Records losses far above the highest losses of the rows before."""
        spikes: list[int] = []
        if len(self._highest) >= _ENOUGH:
            usual = np.median(self._highest)
            # The factor makes the median deviation of a normal distribution its standard deviation.
            deviation = 1.4826 * np.median(np.abs(np.array(self._highest) - usual))
            limit = usual + _SPIKE * max(deviation, _LEAST_DEVIATION * abs(usual))
            spikes = [step for step, loss in losses.items() if loss > limit]
            for step in spikes:
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
        return {"loss_max": highest, "spikes": len(spikes)}

    def _note(
        self, file: str, step: int, examples: list[Comparison], values: Mapping[str, Any]
    ) -> None:
        if jax.process_index() == 0:
            ids = [comparison.prompt.id for comparison in examples]
            record = {"stage": self._stage, "step": step, **values, "ids": ids}
            append_lines(self._folder / file, [record])

    def check(self) -> None:
        """Ends the run if training has diverged; called after the row of metrics is written.

        Raises:
            NotFinite: too many consecutive steps changed nothing.
        """
        if self._longest >= self._most:
            raise NotFinite(
                f"{self._stage}: {self._longest} consecutive steps had a loss or gradient that is "
                "not finite; the parameters are those before them; their examples are in "
                f"{self._folder / NOTES[0]}; lower the learning rate or remove the "
                "examples, with another --workdir, or raise --train.max-nonfinite"
            )


def trainable_share(rows: ComparisonRows) -> str:
    """Describes how many comparisons can be trained on.

    The others have weight 0, no answer token, or no reference log-probs because an image did not
    decode in the reference pass.

    Raises:
        DataError: no comparison has anything to train on.
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
    if num == len(rows):
        return f"{num:,} examples, each with answer tokens to train on"
    return (
        f"{num:,} examples to train on; {len(rows) - num:,} more are skipped: weight 0, an empty "
        "answer, or an unreadable image"
    )
