"""A page of charts above a table, which compares several runs or plans."""

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
        rows: cells of each row; the first names the row.
        note: a remark about the numbers.
        numeric: whether the cells are numbers, which are aligned right.
    """

    key: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str
    numeric: bool = True


@dataclasses.dataclass(frozen=True)
class FiguresData:
    """The content of the page; every text is shown as text, never interpreted as HTML.

    Attributes:
        title: heading.
        subtitle: one line under it.
        what: one sentence that describes the page.
        curves: the charts.
        columns: headings of the table.
        rows: cells of each row; the first names the row.
        notes: remarks under the table.
        more: further tables; those without rows are left out.
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
