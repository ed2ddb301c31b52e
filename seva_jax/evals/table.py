"""Tables of results: one row per metric, as text for a terminal or as Markdown.

What lives here: `Row` and `comparison_rows`, which compare two models, two formats for them, and
one for a single model. What does not: how a metric or its interval is computed (`base.py`), or HTML
(`seva_jax/report`). Read next: `suite.py`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Literal

from seva_jax.evals.base import Better, EvalResult, Metric, paired_differences
from seva_jax.types import DataError

_HEADER = ("evaluation", "metric", "wanted", "n")


@dataclasses.dataclass(frozen=True)
class Row:
    """One metric of two models.

    Attributes:
        evaluation: name of the evaluation.
        metric: name of the metric.
        better: which direction is an improvement.
        base: the metric of the base model, or of the first of any two.
        aligned: the metric of the aligned model, or of the second.
        difference: aligned minus base, both on the same examples.
    """

    evaluation: str
    metric: str
    better: Better
    base: Metric
    aligned: Metric
    difference: Metric

    @property
    def verdict(self) -> Literal["better", "worse", "higher", "lower", ""]:
        """The direction of the change; empty unless the difference's interval excludes zero.

        "higher" and "lower" are for metrics where neither direction is an improvement.
        """
        # Written so that NaN bounds give no verdict.
        low, high = self.difference.low, self.difference.high
        moved = "higher" if low > 0 else "lower" if high < 0 else ""
        if self.better == "neither" or not moved:
            return moved
        return "better" if moved == self.better else "worse"


def comparison_rows(base: Sequence[EvalResult], aligned: Sequence[EvalResult]) -> list[Row]:
    """Returns one row per evaluation and metric, in the order of `base`.

    Raises:
        DataError: the two lists do not have the same evaluations of the same examples.
    """
    names = [result.name for result in base]
    others = {result.name: result for result in aligned}
    if len(set(names)) != len(names) or len(others) != len(aligned):
        raise DataError("two evaluations have the same name; give each Evaluator its own name")
    if set(names) != others.keys():
        raise DataError(
            f"base has the evaluations {', '.join(names)} and aligned has {', '.join(others)}; "
            "run the same evaluators on both"
        )
    return [
        Row(
            evaluation=result.name,
            metric=metric,
            better=result.definitions[metric].better,
            base=result.metrics[metric],
            aligned=others[result.name].metrics[metric],
            difference=difference,
        )
        for result in base
        for metric, difference in paired_differences(result, others[result.name]).items()
    ]


def repeats(numbers: Mapping[str, object]) -> dict[str, str]:
    """Returns the metrics of an evaluation that only repeat another one, by name.

    Two parsers that read all answers alike give every metric twice, and so does a single category:
    "words: random/f1" then repeats "f1".

    Args:
        numbers: what is known of each metric, by name.

    >>> repeats({"f1": 0.5, "words: f1": 0.5, "recall": 0.5})
    {'words: f1': 'f1'}
    """
    kept: dict[tuple[str, str, str], str] = {}
    repeated = {}
    for name, known in numbers.items():
        category, _, measure = name.rpartition(": ")[2].rpartition("/")
        text = repr(known)  # as text, because NaN is not equal to itself
        first = kept.get(("", measure, text)) or kept.get((category, measure, text))
        if first:
            repeated[name] = first
        else:
            kept[category, measure, text] = name
    return repeated


def without_repeats(rows: Sequence[Row]) -> list[tuple[Row, tuple[str, ...]]]:
    """Returns rows, each with the names of the metrics that only repeat it, see `repeats`."""
    numbers: dict[str, dict[str, object]] = {}
    for row in rows:
        known = (row.base, row.aligned, row.difference)
        numbers.setdefault(row.evaluation, {})[row.metric] = known
    repeated = {name: repeats(of_one) for name, of_one in numbers.items()}
    return [
        (row, tuple(x for x, first in repeated[row.evaluation].items() if first == row.metric))
        for row in rows
        if row.metric not in repeated[row.evaluation]
    ]


def headline_rows(rows: Sequence[Row]) -> list[Row]:
    """Returns the rows that carry the result, in order.

    These are the first metric of every evaluation, and every metric that clearly got better or
    worse, gains and losses alike; metrics of single categories are left out.
    """
    first = {row.evaluation: row.metric for row in reversed(rows)}
    return [
        row
        for row in rows
        if row.metric == first[row.evaluation]
        or (row.verdict in ("better", "worse") and "/" not in row.metric)
    ]


def format_table(rows: Sequence[Row], models: tuple[str, str] = ("base", "aligned")) -> str:
    """Formats rows as plain text in aligned columns.

    Columns: names, wanted direction, number of examples, values, difference, verdict. A number is
    `value [low, high]` with its 95 % interval, or n/a if it is undefined.

    Args:
        rows: the rows.
        models: headings of the two models.
    """
    return _aligned([(*_HEADER, *models, "difference", ""), *(_cells(row) for row in rows)])


def format_results(results: Sequence[EvalResult], who: str) -> str:
    """Formats every metric of one model, in the style of `format_table`.

    Args:
        results: the results of the model.
        who: heading of the column of values.
    """
    lines = [
        (
            *_first_cells(result.name, name, result.definitions[name].better, metric.n),
            format_metric(metric, ".3f"),
        )
        for result in results
        for name, metric in result.metrics.items()
    ]
    return _aligned([(*_HEADER, who), *lines])


def _aligned(lines: list[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    ruler = tuple("-" * width for width in widths)
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in (lines[0], ruler, *lines[1:])
    )


def format_markdown(rows: Sequence[Row]) -> str:
    """Formats rows as a Markdown table: the columns of `format_table`, the verdict in bold."""
    header = (*_HEADER, "base", "aligned", "difference", "")
    lines = [header, tuple("---" for _ in header)]
    for row in rows:
        *cells, verdict = _cells(row)
        lines.append((*cells, f"**{verdict}**" if verdict else ""))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cells(row: Row) -> tuple[str, ...]:
    names = _first_cells(row.evaluation, row.metric, row.better, row.difference.n)
    values = (format_metric(metric, ".3f") for metric in (row.base, row.aligned))
    return (*names, *values, format_metric(row.difference, "+.3f"), row.verdict)


def _first_cells(evaluation: str, metric: str, better: Better, n: int) -> tuple[str, ...]:
    return (evaluation, metric, "" if better == "neither" else better, str(n))


def format_metric(metric: Metric, spec: str) -> str:
    """Returns `value [low, high]`, or n/a if the metric is undefined."""
    if math.isnan(metric.value):
        return "n/a"
    return f"{metric.value:{spec}} [{metric.low:{spec}}, {metric.high:{spec}}]"
