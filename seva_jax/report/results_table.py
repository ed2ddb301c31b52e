"""The page's section about evaluations: base and aligned model, and their difference.

What lives here: the table of results and the verdict on a row. What does not: reading results
(`results.py`), the sentence about all of them (`verdict.py`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from seva_jax.report import charts
from seva_jax.report.data import EvalRow, Interval, SingleRow
from seva_jax.report.document import data_table
from seva_jax.report.markup import (
    breakable,
    clear_decimals,
    count_of,
    decimals_for,
    esc,
    number,
)


def verdict_of(row: EvalRow) -> tuple[str, str]:
    """Returns the verdict on a row's difference, as (CSS class, words).

    A change counts only if its interval excludes 0: ("better", "better"), ("worse", "worse"),
    or ("moved", "higher" or "lower") where neither direction is better.
    """
    low, high = row.difference.low, row.difference.high
    if not row.difference.measured:
        return "unclear", "not measured"
    if low <= 0 <= high:
        return "unclear", "no clear change"
    direction = "higher" if low > 0 else "lower"
    if row.better == "neither":
        return "moved", direction
    return ("better", "better") if direction == row.better else ("worse", "worse")


def results_section(table: Sequence[EvalRow], single: Sequence[SingleRow]) -> str:
    """Returns HTML of the results: the comparison, and below it what cannot be compared."""
    return (_compared(table) if table else "") + (_single(single) if single else "")


def _compared(table: Sequence[EvalRow]) -> str:
    words = [verdict_of(row)[1] for row in table]
    others = [f"{words.count('no clear change'):,} without a clear change"]
    neutral = words.count("higher") + words.count("lower")
    if neutral:
        others.append(f"{neutral:,} that moved where neither way is better")
    if "not measured" in words:
        others.append(f"{words.count('not measured'):,} not measured")
    summary = (
        f'<p class="summary"><b class="better">{words.count("better"):,} clearly better</b>, '
        f'<b class="worse">{words.count("worse"):,} clearly worse</b>, {", ".join(others)}.</p>'
    )
    rates = [row for row in table if _is_rate(row)]
    extent = charts.round_up(max(map(charts.row_extent, rates), default=0.0))
    # An evaluation that has numbers of all questions shows those of single categories folded.
    whole = {row.evaluation for row in table if "/" not in row.metric}
    parts = [row for row in table if "/" in row.metric and row.evaluation in whole]
    rows = [row for row in table if row not in parts]
    folded = (
        f"<details><summary>{count_of(len(parts), 'metric')} of single categories</summary>"
        f"{_table(parts, extent, 'Base and aligned model, by category')}</details>"
    )
    return (
        "<p>The same questions were put to the model before (base) and after (aligned) "
        "training; brackets are 95&nbsp;% intervals, and a change counts only if the interval of "
        f"the difference leaves out 0.</p>{summary}"
        + _table(rows, extent, "Base and aligned model, with their difference")
        + (folded if parts else "")
        + '<p class="legend-note">In the small charts the line is 0, the dot the difference, the '
        "bar its interval, and the tinted half the side that is better. Among many rows, about one "
        "in twenty leaves out 0 by luck alone.</p>"
    )


def _table(table: Sequence[EvalRow], extent: float, caption: str) -> str:
    ends = charts.strip_ends(extent) if any(map(_is_rate, table)) else ""
    groups = "".join(
        f'<tbody role="rowgroup"><tr role="row" class="group">'
        f'<th role="rowheader" scope="rowgroup" colspan="6" dir="auto">{esc(name)}</th></tr>'
        f"{''.join(_result_row(row, extent) for row in rows)}</tbody>"
        for name, rows in itertools.groupby(table, key=lambda row: row.evaluation)
    )
    heads = (
        ("Metric", "metric"),
        ("Base", "num"),
        ("Aligned", "num"),
        ("Difference", "num"),
        (f"Difference and its interval{ends}", "strip-cell"),
        ("In words", "words"),
    )
    head = "".join(
        f'<th role="columnheader" scope="col" class="{style}">{name}</th>' for name, style in heads
    )
    return (
        f'<table role="table" class="results"><caption class="hidden">{caption}</caption>'
        f'<thead role="rowgroup"><tr role="row">{head}</tr></thead>{groups}</table>'
    )


def _single(rows: Sequence[SingleRow]) -> str:
    """Returns a table of results that are not a comparison."""
    cells = [
        (
            row.evaluation, row.metric, row.model,
            " ".join(_texts(row.value, decimals_for((row.value.value,)), False)).rstrip(),
        )
        for row in rows
    ]  # fmt: skip
    columns = ("Evaluation", "Metric", "Model", "Value and 95 % interval")
    return (
        "<h3>Not a comparison</h3><p>These evaluations were asked of one model only, or of each "
        "with other questions.</p>"
        + data_table("Results that are not a comparison", columns, cells, columns[3:])
    )


def _is_rate(row: EvalRow) -> bool:
    """Returns whether a row shares the axis of the strips; other units have one of their own."""
    values = (row.base.value, row.aligned.value)
    return all(abs(value) <= 1 for value in values if math.isfinite(value))


def _result_row(row: EvalRow, rate_extent: float) -> str:
    style, words = verdict_of(row)
    values = (row.base.value, row.aligned.value)
    low, high = row.difference.low, row.difference.high
    decimals = decimals_for(values)
    finer = clear_decimals(values, (low, high) if style != "unclear" else ())
    own_axis = not _is_rate(row)
    extent = charts.round_up(charts.row_extent(row)) if own_axis else rate_extent
    text = (
        f"{row.metric}: aligned minus base {number(row.difference.value, finer, signed=True)}, "
        f"interval {number(low, finer, signed=True)} to {number(high, finer, signed=True)}, "
        f"{words}; "
        f"axis from {charts.end_label(-extent)} to {charts.end_label(extent)}"
    )
    strip = charts.difference_strip(row, extent, style, text)
    wish = "" if row.better == "neither" else f"<small>{row.better} is better</small>"
    if row.repeats:
        wish += f"<small>also: {breakable(', '.join(row.repeats))}</small>"
    symbol = {"better": "✓ ", "worse": "✗ "}.get(style, "")
    cells = (
        ("num", "Base", _interval(row.base, decimals)),
        ("num", "Aligned", _interval(row.aligned, decimals)),
        ("num", "Difference", _interval(row.difference, finer, signed=True)),
        ("strip-cell", "", f"{strip}{charts.strip_ends(extent, 'own' if own_axis else 'narrow')}"),
        ("words", "", f'<span class="verdict {style}">{symbol}{words}</span>'),
    )
    return (
        f'<tr role="row"><th role="rowheader" scope="row" dir="auto">{esc(row.metric)}{wish}</th>'
        + "".join(
            f'<td role="cell" class="{kind}" data-label="{label}">{cell}</td>'
            for kind, label, cell in cells
        )
        + "</tr>"
    )


def _interval(interval: Interval, decimals: int, *, signed: bool = False) -> str:
    value, ends = _texts(interval, decimals, signed)
    return f"{value}<small>{ends}</small>" if ends else value


def _texts(interval: Interval, decimals: int, signed: bool) -> tuple[str, str]:
    """Returns a value and its interval in brackets, "" where that was not measured."""
    value = number(interval.value, decimals, signed=signed)
    if not (math.isfinite(interval.low) and math.isfinite(interval.high)):
        return value, ""
    low = number(interval.low, decimals, signed=signed)
    high = number(interval.high, decimals, signed=signed)
    return value, f"[{low}, {high}]"
