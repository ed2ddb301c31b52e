"""One self-contained HTML page for people: what a run did and what it changed.

What lives here: the page's input (`data.py`) and its rendering (`page.py`, read next). What does
not: collecting the input from a run's work directory.
"""

from seva_jax.report.data import (
    Curve,
    Drop,
    EvalRow,
    ExampleCard,
    Interval,
    PairCard,
    ReportData,
    Series,
    Stage,
)
from seva_jax.report.page import render, write_report

__all__ = [
    "Curve",
    "Drop",
    "EvalRow",
    "ExampleCard",
    "Interval",
    "PairCard",
    "ReportData",
    "Series",
    "Stage",
    "render",
    "write_report",
]
