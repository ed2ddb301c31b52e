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
from seva_jax.report.data import ReportData, Stage, TimeShare
from seva_jax.report.document import SCRIPT, document, write_html
from seva_jax.report.markup import breakable, count_of, duration, esc, percent
from seva_jax.report.pictures import Album
from seva_jax.report.profiles import profiles_section
from seva_jax.report.results_table import results_section

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
    """Returns the page as HTML; equal data give equal text. Sections without content are left out.

    What a reader asks first comes first: whether the run helped, and answers.
    """
    album = Album()
    sections = [
        ("results", "Results", results_section(data.table, data.single)),
        ("own", "Your prompts, before and after", _own(data, album)),
        ("examples", "Questions with known answers", _examples(data, album)),
        ("glance", "The run at a glance", _glance(data)),
        ("training", "Training curves", _training(data)),
        ("profiles", "Profiles", profiles_section(data.profiles) if data.profiles else ""),
        ("funnel", "From questions to pairs", _funnel(data)),
        ("pairs", "Preference pairs", _pairs(data, album)),
        ("config", "Configuration", _config(data)),
        ("stages", "Stages and times", _stages(data.stages) + _times(data.times)),
    ]
    shown = [section for section in sections if section[2]]
    what = GIVEN_ANSWERS if data.given else OWN_ANSWERS
    return album.fill(document(data.title, data.subtitle, what, _first(data), shown, SCRIPT))


def write_report(data: ReportData, path: str | os.PathLike[str]) -> Path:
    """Writes the page; see `document.write_html`."""
    return write_html(render(data), path)


def _first(data: ReportData) -> str:
    """Returns what is above all sections: whether the run helped, and notes."""
    notes = "".join(f'<li dir="auto">{esc(note)}</li>' for note in data.notes)
    noted = f'<div class="notes"><h3>Notes</h3><ul>{notes}</ul></div>' if notes else ""
    if data.verdict is None:
        return noted
    commands = "".join(f"<li><code>{esc(command)}</code></li>" for command in data.verdict.commands)
    return (
        '<section id="verdict" aria-labelledby="verdict-title">'
        '<h2 id="verdict-title">Did it help?</h2>'
        f'<div class="verdict-box"><p class="answer" dir="auto">{esc(data.verdict.sentence)}</p>'
        f'<p class="caveat" dir="auto">{esc(data.verdict.caveat)}</p>'
        + (f'<ul class="commands">{commands}</ul>' if commands else "")
        + f"</div>{noted}</section>\n"
    )


def _glance(data: ReportData) -> str:
    facts = "".join(
        f'<div><dt>{esc(label)}</dt><dd dir="auto">{breakable(value)}</dd></div>'
        for label, value in data.facts
    )
    return f'<dl class="facts">{facts}</dl>' if facts else ""


# Answers, training, pairs


def _own(data: ReportData, album: Album) -> str:
    if not data.own:
        return ""
    changed = sum(card.verdict != "same" for card in data.own)
    return (
        f"<p>{count_of(len(data.own), 'prompt')} of this run, answered before and after training "
        f"on the clean picture with greedy decoding: {changed:,} of the answers changed. Prompts "
        "that gave no training pair are asked first; their answers change less easily. The right "
        "answers are not known here, so judge for yourself. Words that "
        "<del>only the old</del> or <mark>only the new</mark> answer has are marked.</p>"
        + gallery.examples_gallery(data.own, album, "own")
    )


def _examples(data: ReportData, album: Album) -> str:
    if not data.examples:
        return ""
    return (
        "<p>Questions of the evaluations, put to the model before and after training: words that "
        "<del>only the old</del> or <mark>only the new</mark> answer has are marked, and answers "
        "that changed for better or worse come first.</p>"
        + gallery.examples_gallery(data.examples, album, "examples")
    )


def _training(data: ReportData) -> str:
    if not data.curves:
        return ""
    charts_html = "".join(charts.line_chart(curve) for curve in data.curves)
    return (
        "<p>How the numbers moved while the model learned: a loss should fall, margins and "
        "accuracies should rise; point at a line to read a value.</p>"
        f'<div class="charts">{charts_html}</div>'
    )


def _funnel(data: ReportData) -> str:
    funnel, kept = data.funnel, data.pairs_total
    total = kept + sum(drop.count for drop in funnel)
    if not total:
        return ""
    largest = max(kept, *(drop.count for drop in funnel)) if funnel else kept
    # Roles keep it a table for screen readers when style.css lays it out as blocks.
    rows = [_bar_row("Kept for training", f"{kept:,}", kept, total, largest, "kept")]
    for drop in sorted(funnel, key=lambda drop: -drop.count):
        label, count = f"Dropped: {drop.reason}", drop.count
        rows.append(_bar_row(label, f"{count:,}", count, total, largest, "dropped"))
    origin = (
        f"The data held {count_of(total, 'pair')}"
        if data.given
        else f"Every unlabelled question gave one candidate, {total:,} in all"
    )
    return (
        f"<p>{origin}; a candidate is kept only if its answers can teach the model something, and "
        "every drop has a reason.</p>"
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
        return ""
    moves = [gallery.move(card) for card in pairs]
    rose, measured = moves.count("up"), len(moves) - moves.count("unknown")
    at_zero = all(card.margin_before == 0 for card in pairs)
    start = "it starts at 0, where the model is compared with itself, and " if at_zero else ""
    sides = (
        "<b>Chosen</b> and <b>rejected</b> are the answers that came with the data."
        if data.given
        else "<b>Chosen</b> is the model's own answer on the clean image, <b>rejected</b> its "
        "answer to the same question on the corrupted one."
    )
    margins = f"The margin rose in {rose:,} of them."
    if measured < len(pairs):
        margins = f"The margin was measured for {measured:,} of them and rose in {rose:,}."
    return (
        f"<p>{sides} The <b>reward margin</b> is how much more the "
        "model has come to favour the chosen answer over the rejected one: "
        f"{start}training should push it up.</p>"
        f"<p>{gallery.shown_of(len(pairs), kept)} {margins} Words that "
        "<mark>only the chosen</mark> or <del>only the rejected</del> answer has are marked.</p>"
        + gallery.pairs_gallery(pairs, album)
    )


# Configuration and stages


def _config(data: ReportData) -> str:
    if not data.config and not data.changed:
        return ""
    changed = (
        "<p>The settings that are not at their defaults, and below them the others: together "
        "enough to repeat the run.</p>" + _settings(data.changed, "Settings that differ")
        if data.changed
        else "<p>All settings are at their defaults.</p>"
    )
    others = (
        f"<details><summary>Show {count_of(len(data.config), 'setting')} at the default</summary>"
        f"{_settings(data.config, 'Settings at their defaults')}</details>"
    )
    return changed + (others if data.config else "")


def _settings(config: Sequence[tuple[str, str]], caption: str) -> str:
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
        f'<table class="config"><caption class="hidden">{caption}</caption>'
        f'<thead><tr><th scope="col">Field</th><th scope="col">Value</th></tr></thead>{groups}'
        "</table>"
    )


def _stages(stages: Sequence[Stage]) -> str:
    if not stages:
        return ""
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
