"""Self-contained HTML pages for people: what a run did and what it changed; several runs compared.

What lives here: a run's page, its input (`data.py`) and its rendering (`page.py`, read next), and
pages of charts over a table (`figures.py`). What does not: collecting the input.
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
from seva_jax.report.figures import FiguresData, MoreNumbers, write_figures
from seva_jax.report.page import render, write_report
