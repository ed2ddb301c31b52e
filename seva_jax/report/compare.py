"""Compares several runs on one page, for scaling studies.

Reads the work directories of finished or running runs; the page is `seva_jax/report/figures.py`.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from seva_jax.config import flatten, read_config, with_defaults
from seva_jax.evals import EvalResult, Metric, comparison_rows, format_metric, stored_evaluations
from seva_jax.evals.stored import outdated
from seva_jax.report import Curve, FiguresData, MoreNumbers, Series
from seva_jax.report.closing import speed
from seva_jax.report.markup import MINUS, count_of
from seva_jax.runtime.paths import short_path
from seva_jax.runtime.run_records import read_metrics
from seva_jax.types import DataError

_SHOWN = (("Loss", "loss"), ("Reward margin, nats", "rewards/margins"))
_AXES = (("pairs seen", "pairs"), ("chip-seconds", "chip_seconds"))
_CLASS = re.compile(r"(\w+\.)+[A-Z]\w*")
_NOTES = (
    "Chip-seconds are wall-clock seconds of the alignment times devices, compilation included, "
    "rollouts and evaluations not; pairs/s is the median without compiling.",
    "Final values are means over the last tenth of the logged rows, at least one. One run each: "
    "differences of this size may be luck; repeat seeds before concluding.",
)
_OBJECTIVES = "The objectives differ, and so do the scales of their losses."


def read_run(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Reads config and alignment metrics of a run, with sums from its start.

    Returns:
        The flat config, and rows with "pairs" and "chip_seconds" summed up to each.

    Raises:
        DataError: not a work directory, or no step has been logged.
    """
    config = path / "config.json"
    if not config.is_file():
        raise DataError(f"{path} is not the work directory of a run: it has no config.json")
    rows = [row for row in read_metrics(path) if row["stage"] == "align"]
    if not rows:
        raise DataError(f"{path} has no alignment metrics yet; run its alignment first")
    if "chips" not in rows[0]:
        raise DataError(f"{path} was written by a version that logged no times; run it again")
    pairs = seconds = 0.0
    for row in rows:
        pairs += row["pairs"]
        seconds += row["seconds"] * row["chips"]
        row |= {"pairs": pairs, "chip_seconds": seconds}
    return _complete(json.loads(config.read_text(encoding="utf-8")), path), rows


def _complete(recorded: dict[str, Any], path: Path) -> dict[str, Any]:
    """Returns the flat config of a run, with the defaults of fields that were added since."""
    try:
        config = read_config(path / "config.py")
    except DataError:  # it needs modules that are not here; the page shows "–" for such fields
        return recorded
    return with_defaults(recorded, json.loads(json.dumps(flatten(config))), config)


def _differing(configs: Sequence[dict[str, Any]]) -> list[str]:
    """Returns the fields in which the runs differ, except their directory.

    Where the runs have parts of different classes, the fields inside these parts are left out.
    """

    def everywhere(field: str) -> bool:
        return len({field in config for config in configs}) == 1

    fields = sorted(set(itertools.chain(*configs)) - {"workdir"})
    comparable = [f for f in fields if everywhere(f.rpartition(".")[0])]
    return [f for f in comparable if len({json.dumps(c.get(f)) for c in configs}) > 1]


def _setting(value: object) -> str:
    """Returns a value for people: classes without their modules, paths without folders."""
    text = str(value)
    return text.rsplit(".", 1)[1] if _CLASS.fullmatch(text) else short_path(text)


def _final(rows: Sequence[dict[str, Any]], name: str) -> str:
    values = [row[name] for row in rows[-math.ceil(len(rows) / 10) :] if name in row]
    return f"{np.mean(values):.4f}" if values else "–"


def _numbers(label: str, rows: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Returns a run's row of the table, by column."""
    last = rows[-1]
    return {
        "run": label,
        "steps": str(last["step"]),
        "pairs seen": f"{last['pairs']:,.0f}",
        "chips": str(last["chips"]),
        "chip-seconds": f"{last['chip_seconds']:,.0f}",
        "pairs/s": f"{speed(rows):.1f}",
        "final loss": _final(rows, "loss"),
        "final margin, nats": _final(rows, "rewards/margins"),
    }


def _evaluations(path: Path) -> dict[str, EvalResult]:
    """Returns the evaluation results of the aligned model, by name, without outdated ones."""
    stored = sorted(stored_evaluations(path, ["aligned"]), key=lambda one: one.name)
    return {one.name: one.results["aligned"] for one in stored if not outdated(path, one)}


def _value(value: Metric, spec: str) -> str:
    return format_metric(value, spec).replace("-", MINUS)


def _metrics(evaluated: dict[str, EvalResult]) -> dict[str, str]:
    """Returns metrics with their intervals, by "evaluation metric"."""
    return {
        f"{name} {metric}": _value(value, ".3f")
        for name, result in evaluated.items()
        for metric, value in result.metrics.items()
    }


def _differences(first: dict[str, EvalResult], other: dict[str, EvalResult]) -> dict[str, str]:
    """Returns the paired differences of what both were asked, with intervals and verdicts."""
    differences = {}
    for name in first:
        try:
            rows = comparison_rows([first[name]], [other[name]]) if name in other else []
        except DataError:  # other questions
            continue
        for row in rows:
            shown = f"{_value(row.difference, '+.3f')} {row.verdict}"
            differences[f"{name} {row.metric}"] = shown.rstrip()
    return differences


def compare(paths: Sequence[Path], noun: str = "") -> FiguresData:
    """Returns the page of several runs.

    Args:
        paths: work directories.
        noun: put before the names of the runs, "round" where these are numbers.

    Raises:
        DataError: see `read_run`.
    """
    configs, runs = zip(*map(read_run, paths), strict=True)
    labels = [f"{noun} {path.name}".lstrip() for path in paths]
    if len(set(labels)) < len(labels):
        labels = [f"{number}: {label}" for number, label in enumerate(labels, 1)]
    curves = []
    for (title, name), (x_label, x_name) in itertools.product(_SHOWN, _AXES):
        series = tuple(
            Series.of_rows(label, rows, x_name, name)
            for label, rows in zip(labels, runs, strict=True)
        )
        if any(one.xs for one in series):
            curves.append(Curve(f"{title.split(',')[0]} by {x_label}", x_label, title, series))
    fields = _differing(configs)
    evaluated = [_evaluations(path) for path in paths]
    table = [_numbers(label, rows) for label, rows in zip(labels, runs, strict=True)]
    more = [
        MoreNumbers(
            "settings",
            "Settings that differ",
            ("setting", *labels),
            tuple((f, *(_setting(c.get(f, "–")) for c in configs)) for f in fields),
            "Settings of the configs, except the work directories.",
            numeric=False,
        ),
        MoreNumbers(
            "evaluations",
            "Evaluations of the aligned models",
            ("metric", *labels),
            _side_by_side([_metrics(results) for results in evaluated]),
            "Brackets are 95 % intervals over questions. Answers of a model that has been trained "
            "again since are left out.",
        ),
    ]
    if len(paths) > 1:
        more.append(
            MoreNumbers(
                "differences",
                f"Differences to {labels[0]}",
                ("metric", *labels[1:]),
                _side_by_side([_differences(evaluated[0], other) for other in evaluated[1:]]),
                "On the questions that both runs answered, with 95 % intervals over questions: "
                "they can be clear although the intervals above overlap. Other seeds would add to "
                "them.",
            )
        )
    of_losses = (_OBJECTIVES,) if any(f.split(".")[0] == "objective" for f in fields) else ()
    return FiguresData(
        title=f"{count_of(len(paths), noun or 'run')} compared" if len(paths) > 1 else "1 run",
        subtitle="",
        what="How loss and reward margin moved in several alignment runs, by data and by cost.",
        curves=tuple(curves),
        columns=tuple(table[0]),
        rows=tuple(tuple(numbers.values()) for numbers in table),
        notes=_NOTES + of_losses,
        more=tuple(more),
    )


def _side_by_side(columns: Sequence[dict[str, str]]) -> tuple[tuple[str, ...], ...]:
    """Returns a row for every name that some column has."""
    names = dict.fromkeys(itertools.chain(*columns))
    return tuple((name, *(column.get(name, "–") for column in columns)) for name in names)
