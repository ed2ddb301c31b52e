"""Self-contained HTML pages: the report of a run, and comparisons of several runs.

What lives here: a run's page (`run_report.py` collects its data from the work directory, `page.py`
renders them) and pages of charts above a table (`compare.py`, `figures.py`). What does not:
computing results (`seva_jax/evals`), asking models (`seva_jax/run`). Read next: `data.py`, then
`page.py`.
"""

from seva_jax.report.data import (
    Curve,
    Drop,
    EvalRow,
    ExampleCard,
    Interval,
    PairCard,
    Profile,
    ReportData,
    RunVerdict,
    Series,
    SingleRow,
    Stage,
    TimeShare,
)
from seva_jax.report.figures import FiguresData, MoreNumbers, write_figures
from seva_jax.report.page import render, write_report
