"""The report: one self-contained HTML page about one run.

What lives here: `render`, `write_report` and the page's sections, in reading order. What does not:
the frame (`document.py`), charts (`charts.py`), cards with images (`gallery.py`), the style sheet
(`style.css`), the script (`script.js`), and collecting the data from a run (`run_report.py`). The
page's Content-Security-Policy forbids the network and every script except its own, and every text
passes through `markup.esc`.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Sequence
from pathlib import Path

from seva_jax.report import charts, gallery
from seva_jax.report.data import Drop, EvalRow, Interval, ReportData, Stage, TimeShare
from seva_jax.report.document import SCRIPT, document, write_html
from seva_jax.report.markup import breakable, count_of, decimals_for, duration, esc, number, percent
from seva_jax.report.pictures import Album
from seva_jax.report.profiles import profiles_section

OWN_ANSWERS = (
    "A vision-language model answered the same questions about clean and about corrupted "
    "pictures, then learned to prefer what it says when it can see clearly; this page shows "
    "what that changed."
)
GIVEN_ANSWERS = (
    "A vision-language model learned to prefer the better of two given answers to questions about "
    "pictures; this page shows what that changed."
)


def render(data: ReportData) -> str:
    """Returns the page as HTML; equal data give equal text, an empty run a page that says so."""
    album = Album()
    sections: list[tuple[str, str, str]] = [
        ("results", "Results", _results(data.table)),
        ("examples", "Answers before and after", _examples(data, album)),
        ("training", "Training curves", _training(data)),
        *_profiles(data),
        ("funnel", "From questions to pairs", _funnel(data.funnel, data.pairs_total)),
        ("pairs", "Preference pairs", _pairs(data, album)),
        ("config", "Configuration", _config(data.config)),
        ("stages", "Stages and times", _stages(data.stages) + _times(data.times)),
    ]
    what = GIVEN_ANSWERS if data.given else OWN_ANSWERS
    return album.fill(document(data.title, data.subtitle, what, _glance(data), sections, SCRIPT))


def write_report(data: ReportData, path: str | os.PathLike[str]) -> Path:
    """Writes the page; see `document.write_html`."""
    return write_html(render(data), path)


def _glance(data: ReportData) -> str:
    facts = "".join(
        f'<div><dt>{esc(label)}</dt><dd dir="auto">{breakable(value)}</dd></div>'
        for label, value in data.facts
    )
    notes = "".join(f'<li dir="auto">{esc(note)}</li>' for note in data.notes)
    return (
        '<section id="glance" aria-labelledby="glance-title">'
        '<h2 id="glance-title">The run at a glance</h2>'
        + (f'<dl class="facts">{facts}</dl>' if facts else _empty("No facts were recorded."))
        + (f'<div class="notes"><h3>Notes</h3><ul>{notes}</ul></div>' if notes else "")
        + "</section>\n"
    )


# Results


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


def _results(table: Sequence[EvalRow]) -> str:
    if not table:
        return _empty("No evaluation was recorded.")
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
    ends = _strip_ends(extent) if rates else ""
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
        "<p>The same held-out questions were put to the model before (base) and after (aligned) "
        "training; brackets are 95&nbsp;% intervals, and a change counts only if the interval of "
        f"the difference leaves out 0.</p>{summary}"
        '<table role="table" class="results"><caption class="hidden">Base and aligned model, '
        "with their difference</caption>"
        f'<thead role="rowgroup"><tr role="row">{head}</tr></thead>{groups}</table>'
        '<p class="legend-note">In the small charts the line is 0, the dot the difference, the bar '
        "its interval, and the tinted half the side that is better. Among many rows, about one "
        "in twenty leaves out 0 by luck alone.</p>"
    )


def _is_rate(row: EvalRow) -> bool:
    """Returns whether a row shares the axis of the strips; other units have one of their own."""
    values = (row.base.value, row.aligned.value)
    return all(abs(value) <= 1 for value in values if math.isfinite(value))


def _result_row(row: EvalRow, rate_extent: float) -> str:
    style, words = verdict_of(row)
    decimals = decimals_for((row.base.value, row.aligned.value))
    low, high = row.difference.low, row.difference.high
    # If the interval excludes 0, its end near 0 must not be rounded to 0.
    finer = decimals
    while style != "unclear" and finer < 6 and round(min(abs(low), abs(high)), finer) == 0:
        finer += 1
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
    symbol = {"better": "✓ ", "worse": "✗ "}.get(style, "")
    cells = (
        ("num", "Base", _interval(row.base, decimals)),
        ("num", "Aligned", _interval(row.aligned, decimals)),
        ("num", "Difference", _interval(row.difference, finer, signed=True)),
        ("strip-cell", "", f"{strip}{_strip_ends(extent, 'own' if own_axis else 'narrow')}"),
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


def _strip_ends(extent: float, style: str = "") -> str:
    low, high = charts.end_label(-extent), charts.end_label(extent)
    return (
        f'<span class="ends {style}" aria-hidden="true">'
        f"<span>{low}</span><span>0</span><span>{high}</span></span>"
    )


def _interval(interval: Interval, decimals: int, *, signed: bool = False) -> str:
    value = number(interval.value, decimals, signed=signed)
    if not (math.isfinite(interval.low) and math.isfinite(interval.high)):
        return value
    low = number(interval.low, decimals, signed=signed)
    high = number(interval.high, decimals, signed=signed)
    return f"{value}<small>[{low}, {high}]</small>"


# Examples, training, pairs


def _examples(data: ReportData, album: Album) -> str:
    if not data.examples:
        return _empty("No example answers were recorded.")
    return (
        "<p>The same question put to the model before and after training: words that "
        "<del>only the old</del> or <mark>only the new</mark> answer has are marked, and answers "
        "that changed for better or worse come first.</p>"
        + gallery.examples_gallery(data.examples, album)
    )


def _training(data: ReportData) -> str:
    if not data.curves:
        return _empty("No training curves were recorded.")
    charts_html = "".join(charts.line_chart(curve) for curve in data.curves)
    return (
        "<p>How the numbers moved while the model learned: a loss should fall, margins and "
        "accuracies should rise; point at a line to read a value.</p>"
        f'<div class="charts">{charts_html}</div>'
    )


def _profiles(data: ReportData) -> list[tuple[str, str, str]]:
    if not data.profiles:
        return []
    return [("profiles", "Profiles", profiles_section(data.profiles))]


def _funnel(funnel: Sequence[Drop], kept: int) -> str:
    total = kept + sum(drop.count for drop in funnel)
    if not total:
        return _empty("No pairs were built.")
    largest = max(kept, *(drop.count for drop in funnel)) if funnel else kept
    # Roles keep it a table for screen readers when style.css lays it out as blocks.
    rows = [_bar_row("Kept for training", f"{kept:,}", kept, total, largest, "kept")]
    for drop in sorted(funnel, key=lambda drop: -drop.count):
        label, count = f"Dropped: {drop.reason}", drop.count
        rows.append(_bar_row(label, f"{count:,}", count, total, largest, "dropped"))
    return (
        f"<p>Every unlabelled question gave one candidate, {total:,} in all; a candidate is kept "
        "only if its two answers can teach the model something, and every drop has a reason.</p>"
        + _bars("Candidate pairs kept and dropped", "Outcome", "Pairs", rows)
    )


def _bars(caption: str, first: str, second: str, rows: Sequence[str]) -> str:
    """Returns a table of values, shares and bars; see `_bar_row`."""
    return (
        f'<table role="table" class="bars"><caption class="hidden">{caption}'
        '</caption><thead role="rowgroup"><tr role="row">'
        f'<th role="columnheader" scope="col">{first}</th>'
        f'<th role="columnheader" scope="col" class="num">{second}</th>'
        '<th role="columnheader" scope="col" class="num">Share</th>'
        '<th role="columnheader" scope="col" class="bar-cell"><span class="hidden">Bar</span></th>'
        f'</tr></thead><tbody role="rowgroup">{"".join(rows)}</tbody></table>'
    )


def _bar_row(label: str, shown: str, value: float, total: float, largest: float, style: str) -> str:
    width = 100 * value / largest if largest > 0 else 0.0
    return (
        f'<tr role="row"><th role="rowheader" scope="row" dir="auto">{esc(label)}</th>'
        f'<td role="cell" class="num">{shown}</td>'
        f'<td role="cell" class="num">{percent(value, total)}</td>'
        f'<td role="cell" class="bar-cell"><span class="bar {style}" style="width:{width:.2f}%">'
        "</span></td></tr>"
    )


def _pairs(data: ReportData, album: Album) -> str:
    pairs, kept = data.pairs, data.pairs_total
    if not pairs:
        return _empty("No pairs are shown.")
    rose = sum(gallery.move(card) == "up" for card in pairs)
    at_zero = all(card.margin_before == 0 for card in pairs)
    start = "it starts at 0, where the model is compared with itself, and " if at_zero else ""
    sides = (
        "<b>Chosen</b> and <b>rejected</b> are the answers that came with the data."
        if data.given
        else "<b>Chosen</b> is the model's own answer on the clean image, <b>rejected</b> its "
        "answer to the same question on the corrupted one."
    )
    return (
        f"<p>{sides} The <b>reward margin</b> is how much more the "
        "model has come to favour the chosen answer over the rejected one: "
        f"{start}training should push it up.</p>"
        f"<p>{gallery.shown_of(len(pairs), kept)} The margin rose in {rose:,} of them. Words that "
        "<mark>only the chosen</mark> or <del>only the rejected</del> answer has are marked.</p>"
        + gallery.pairs_gallery(pairs, album)
    )


# Configuration and stages


def _config(config: Sequence[tuple[str, str]]) -> str:
    if not config:
        return _empty("No configuration was recorded.")
    groups = "".join(
        "<tbody>"
        + "".join(
            f'<tr><th scope="row">{esc(field)}</th><td>{esc(value)}</td></tr>'
            for field, value in fields
        )
        + "</tbody>"
        for _, fields in itertools.groupby(
            config, key=lambda item: item[0].rpartition(".")[0].partition(".")[0]
        )
    )
    return (
        "<p>Every setting this run used, enough to repeat it.</p>"
        f"<details><summary>Show all {count_of(len(config), 'field')}</summary>"
        '<table class="config"><caption class="hidden">Configuration</caption>'
        f'<thead><tr><th scope="col">Field</th><th scope="col">Value</th></tr></thead>{groups}'
        "</table></details>"
    )


def _stages(stages: Sequence[Stage]) -> str:
    if not stages:
        return _empty("No stages were recorded.")
    total = sum(stage.seconds for stage in stages if math.isfinite(stage.seconds))
    rows = "".join(
        f'<tr><th scope="row" dir="auto">{esc(stage.name)}</th>'
        f'<td class="num">{duration(stage.seconds)}</td>'
        f'<td class="num share">{percent(stage.seconds, total)}</td>'
        f'<td dir="auto">{esc(stage.summary)}</td></tr>'
        for stage in stages
    )
    return (
        f"<p>What the run did, in order, and how long each step took: {duration(total)} in all.</p>"
        '<table class="stages"><caption class="hidden">Stages and times</caption>'
        '<thead><tr><th scope="col">Stage</th><th scope="col" class="num">Time</th>'
        '<th scope="col" class="num share">Share</th><th scope="col">What it did</th></tr></thead>'
        f"<tbody>{rows}</tbody></table>"
    )


def _times(times: Sequence[TimeShare]) -> str:
    """Returns where the time since the first start went, largest parts first."""
    total = sum(part.seconds for part in times)
    if not total > 0:
        return ""
    kept = sum(part.seconds for part in times if part.kept)
    largest = max(part.seconds for part in times)
    rows = [
        _bar_row(
            part.name.capitalize(), duration(part.seconds), part.seconds, total, largest,
            "kept" if part.kept else "dropped",
        )
        for part in sorted(times, key=lambda part: (not part.kept, -part.seconds))
    ]  # fmt: skip
    return (
        f"<h3>Goodput</h3><p>{percent(kept, total)} of the {duration(total)} since the run was "
        "first started went into work that was kept (the first bars). The rest is start-up, "
        "compiling, saving, and what restarts cost: down time and lost work.</p>"
        + _bars("Time since the first start", "Part", "Time", rows)
    )


def _empty(sentence: str) -> str:
    return f'<p class="empty">{sentence}</p>'
