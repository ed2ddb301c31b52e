"""The results of several models side by side, as text for a terminal.

What lives here: `tables`, which pairs stored results. What does not: reading them (`stored.py`),
and the columns of a table (`table.py`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from seva_jax.evals.base import EvalResult
from seva_jax.evals.stored import StoredEvaluation, outdated, stored_evaluations
from seva_jax.evals.table import (
    comparison_rows,
    format_results,
    format_table,
    repeats,
    without_repeats,
)
from seva_jax.types import DataError

OWN = ("base", "aligned")
"""Labels of a run's own models, which its report shows."""
_FOLDED = "(rows that only repeat these numbers are left out: {})"


def tables(path: Path, labels: Sequence[str], names: Sequence[str]) -> tuple[str, list[str]]:
    """Returns the results of the models side by side.

    Every model is compared with the first. If the base or the aligned model of a run was asked
    alone, it is compared with the other one where that was asked before.

    Args:
        path: holds the folders evals/LABEL.
        labels: labels of the models that were asked.
        names: names of the evaluations.

    Returns:
        The tables, and for each comparison that is refused the reason.
    """
    pairs = [(labels[0], other) for other in labels[1:]]
    pairs = pairs or ([OWN] if labels[0] in OWN else [])
    wanted = list(dict.fromkeys([*labels, *(x for pair in pairs for x in pair)]))
    stored = {x.name: x for x in stored_evaluations(path, wanted, only=names)}
    evaluations = [stored[name] for name in names]
    blocks, refused = [], []
    alone = {(label, x.name): x.results[label] for label in labels for x in evaluations}
    for first, other in pairs:
        rows = []
        for evaluation in evaluations:
            if not {first, other} <= evaluation.results.keys():
                continue
            if (first, other) == OWN and outdated(path, evaluation):
                refused.append(
                    f"{first} and {other} are not compared: {evaluation.name} was asked of an "
                    "earlier aligned model, before the run was trained again"
                )
                continue
            try:
                rows += comparison_rows([evaluation.results[first]], [evaluation.results[other]])
            except DataError as error:
                refused.append(_why_not(evaluation, first, other, str(error)))
                continue
            for label in (first, other):
                alone.pop((label, evaluation.name), None)
        kept = [row for row, _ in without_repeats(rows)]
        folded = len(rows) - len(kept)
        for per_category in (False, True):
            chosen = [row for row in kept if ("/" in row.metric) == per_category]
            blocks += [format_table(chosen, (first, other))] if chosen else []
        blocks += [_FOLDED.format(folded)] if folded else []
    for label in labels:
        every = [result for (who, _), result in alone.items() if who == label]
        results = [*map(_without_repeats, every)]
        for per_category in (False, True):
            chosen = [_only(result, per_category) for result in results]
            if any(result.metrics for result in chosen):
                blocks.append(format_results(chosen, label))
        folded = sum(len(a.metrics) - len(b.metrics) for a, b in zip(every, results, strict=True))
        blocks += [_FOLDED.format(folded)] if folded else []
    return "\n\n".join(blocks), refused


def _why_not(evaluation: StoredEvaluation, first: str, other: str, reason: str) -> str:
    """Returns why an evaluation of two models is not compared."""
    left_out = {x: evaluation.about[x].get("left_out") or "none" for x in (first, other)}
    if left_out[first] != left_out[other]:
        counts = ", ".join(f"{label} could not be asked {num}" for label, num in left_out.items())
        reason += f"; of the questions, {counts}"
    return f"{first} and {other} are not compared: {reason}"


def _without_repeats(result: EvalResult) -> EvalResult:
    repeated = repeats(result.metrics)
    metrics = {name: metric for name, metric in result.metrics.items() if name not in repeated}
    return dataclasses.replace(result, metrics=metrics)


def _only(result: EvalResult, per_category: bool) -> EvalResult:
    metrics = {k: v for k, v in result.metrics.items() if ("/" in k) == per_category}
    return dataclasses.replace(result, metrics=metrics)
