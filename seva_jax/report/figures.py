"""A page of charts over one table, for what compares runs or plans rather than shows one run."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

from seva_jax.report.charts import line_chart
from seva_jax.report.data import Curve
from seva_jax.report.document import data_table, document, write_html
from seva_jax.report.markup import esc


@dataclasses.dataclass(frozen=True)
class MoreNumbers:
    """A further table with a section of its own.

    Attributes:
        key: the section's anchor, lower-case letters.
        title: its heading.
        columns: headings of the table.
        rows: its cells, the first of a row names it.
        note: what to know about the numbers.
        numeric: whether the cells are numbers, which are set flush right.
    """

    key: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str
    numeric: bool = True


@dataclasses.dataclass(frozen=True)
class FiguresData:
    """What the page shows. Every text is shown as text, never read as HTML.

    Attributes:
        title: heading.
        subtitle: one line under it.
        what: what the page is, one sentence.
        curves: the charts.
        columns: headings of the table.
        rows: its cells, the first of a row names it.
        notes: remarks under the table.
        more: tables after that one; those without rows are left out.
    """

    title: str
    subtitle: str
    what: str
    curves: tuple[Curve, ...]
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()
    more: tuple[MoreNumbers, ...] = ()


def write_figures(data: FiguresData, path: str | os.PathLike[str]) -> Path:
    """Writes the page and returns its path.

    Raises:
        OSError: the file cannot be written.
    """
    drawn = "".join(line_chart(curve) for curve in data.curves)
    notes = "".join(f"<li>{esc(note)}</li>" for note in data.notes)
    table = data_table(data.title, data.columns, data.rows, data.columns[1:])
    if notes:
        table += f'<div class="notes"><h3>Notes</h3><ul>{notes}</ul></div>'
    sections = [
        ("charts", "Charts", f'<div class="charts">{drawn}</div>'),
        ("numbers", "Numbers", table),
    ]
    for more in data.more:
        if more.rows:
            numeric = more.columns[1:] if more.numeric else ()
            shown = data_table(more.title, more.columns, more.rows, numeric)
            sections.append((more.key, more.title, f"<p>{esc(more.note)}</p>{shown}"))
    return write_html(document(data.title, data.subtitle, data.what, "", sections), path)
