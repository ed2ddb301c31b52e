"""Shared parts of studies on the procedural world: seeds, metrics, intervals, a table.

The studies themselves are `evidence.py` (does SeVa help, with controls) and `methods.py` (all
systems under one budget).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from seva_jax.config.experiment import Experiment
from seva_jax.runtime.files import read_json
from seva_jax.runtime.stores import as_path
from seva_jax.worlds import ShapeWorld

# (evaluation, metric), in the order shown.
METRICS = (
    ("color-balanced", "prior_errors"),
    ("color-balanced", "accuracy"),
    ("color-skewed", "accuracy"),
    ("describe-balanced", "chair_i"),
    ("describe-balanced", "recall"),
    ("describe-skewed", "recall"),
    ("presence-balanced", "accuracy"),
)
NAMES = tuple(f"{evaluation}/{metric}" for evaluation, metric in METRICS)

# Two-sided 95 % points of Student's t by degrees of freedom.
_T95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}

# One seed: values of metrics of the base model and of every cell, and "pairs" of cells.
Values = Mapping[str, Mapping[str, float]]


def reseed(experiment: Experiment, seed: int) -> Experiment:
    """Returns the experiment with another seed, also in every world it holds."""

    def changed(value: Any) -> Any:
        if isinstance(value, tuple) and not hasattr(value, "_fields"):
            return tuple(map(changed, value))
        if not dataclasses.is_dataclass(value) or isinstance(value, type):
            return value
        if isinstance(value, ShapeWorld):
            return dataclasses.replace(value, seed=seed)
        fields = [f.name for f in dataclasses.fields(value) if f.init]
        return dataclasses.replace(value, **{f: changed(getattr(value, f)) for f in fields})

    return dataclasses.replace(changed(experiment), seed=seed)


def read_metrics(workdir: str | Path, who: str) -> dict[str, float]:
    """Reads `METRICS` of one model of a run, "base" or "aligned"."""
    files = {e: as_path(workdir) / "evals" / who / f"{e}.json" for e, _ in METRICS}
    return {f"{e}/{m}": read_json(files[e])["metrics"][m]["value"] for e, m in METRICS}


def num_pairs(workdir: str | Path) -> int:
    """Reads the number of pairs of a run."""
    return read_json(as_path(workdir) / "pairs.json")["pairs"]


def interval(values: Iterable[float]) -> tuple[float, float]:
    """Returns mean and half-width of the 95 % Student-t interval over seeds.

    >>> mean, half = interval([1.0, 2.0, 3.0])
    >>> round(mean, 3), round(half, 3)
    (2.0, 2.484)
    """
    x = np.array(list(values), float)
    if len(x) < 2:
        return float(x.mean()), float("nan")
    return float(x.mean()), float(_T95[len(x) - 1] * x.std(ddof=1) / np.sqrt(len(x)))


def difference_table(
    values: Mapping[int, Values], bases: Mapping[str, str] | None = None
) -> list[str]:
    """Returns lines of Markdown: base models, and each cell minus its base model, over seeds.

    Args:
        values: values by seed.
        bases: for cells whose base model is not "base", the name it has among the values.
    """
    bases = bases or {}
    names = [n.replace("/", " ").replace("_", " ") for n in NAMES]
    lines = [
        f"Seeds: {', '.join(map(str, values))}. Mean ± half-width of the 95 % interval over seeds "
        "(none for a single seed); below a base model, differences to it.",
        "",
        "| | pairs | " + " | ".join(names) + " |",
        "|---|---|" + "---|" * len(NAMES),
    ]

    def cell(numbers: list[float], sign: str) -> str:
        mean, half = interval(numbers)
        return f"{mean:{sign}.3f}" + (f" ± {half:.3f}" if len(numbers) > 1 else "")

    some = next(iter(values.values()))
    for name in some:
        if name == "base" or name in bases.values():
            absolute = [cell([v[name][n] for v in values.values()], "") for n in NAMES]
            lines.append(f"| {name} | | " + " | ".join(absolute) + " |")
            continue
        base = bases.get(name, "base")
        pairs = np.mean([v[name]["pairs"] for v in values.values()])
        row = [cell([v[name][n] - v[base][n] for v in values.values()], "+") for n in NAMES]
        lines.append(f"| {name} | {pairs:,.0f} | " + " | ".join(row) + " |")
    return lines
