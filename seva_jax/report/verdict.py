"""Whether a run helped, in a few sentences with their caveat, for the page and for the terminal.

What lives here: `did_it_help`. What does not: the numbers behind it (`results.py`, `shown.py`).
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from seva_jax.evals import Row, without_repeats
from seva_jax.report.data import RunVerdict
from seva_jax.report.markup import clear_decimals, count_of, number
from seva_jax.report.results import ALIGNED, BASE, Results
from seva_jax.report.shown import Shown
from seva_jax.runtime.paths import hide_home

_MOST_NAMED = 3  # metrics of one kind that a sentence names
_MANY_METRICS = 10  # from which on some change clearly by luck
_MEANINGS = {  # of metrics whose names do not say it
    "chair_i": "hallucinated objects",
    "chair_s": "captions with a hallucinated object",
    "prior_errors": "wrong answers that follow the prior",
    "other_errors": "other wrong answers",
    "unparsed": "answers that could not be read",
    "unjudged": "answers without a verdict",
}
_UNFINISHED = "This page shows what there is so far; the command that started the run resumes it."
_NOT_COMPARED = (
    "Only the same questions, asked of both models, show a difference. Give the --suite or "
    "--questions that one of them was asked:"
)
_NO_EVALUATION = (
    "Changed answers and margins of pairs say whether training worked, not whether answers are "
    "better. To find out, ask both models questions whose answers are known:"
)


def did_it_help(
    path: str,
    results: Results,
    shown: Shown,
    finished: bool,
    held_out: Mapping[str, Any] | None = None,
) -> RunVerdict:
    """Returns whether alignment helped, as far as the run can tell.

    Args:
        path: the work directory, as commands name it.
        results: its evaluations.
        shown: its answers and margins.
        finished: whether its alignment has finished.
        held_out: see `run_report.held_out_row`.
    """
    if results.rows:
        return _measured(results)
    if not finished:
        caveat = " ".join((_UNFINISHED, *results.problems))
        return RunVerdict("Not known yet: the alignment has not finished.", caveat)
    asked = list(dict.fromkeys(who for who, _ in results.alone))
    if results.problems:
        why, caveat = "the results of the two models cannot be compared", " ".join(results.problems)
        caveat += f" {_NOT_COMPARED}"
    elif len(asked) == 1:
        names = ", ".join(result.name for _, result in results.alone)
        why, caveat = f"only the {asked[0]} model has been evaluated ({names})", _NOT_COMPARED
    elif asked:
        why, caveat = "the two models were asked different evaluations", _NOT_COMPARED
    else:
        why, caveat = "there is no evaluation", _NO_EVALUATION
    said = " ".join((f"Not known: {why}.", *_answers(shown), *_margins(shown, held_out)))
    return RunVerdict(said, caveat, _commands(path))


def _measured(results: Results) -> RunVerdict:
    """Returns the verdict of evaluations that both models were asked."""
    # Metrics of single categories count where an evaluation has no other ones.
    whole = {row.evaluation for row in results.rows if "/" not in row.metric}
    measured = [
        row
        for row, _ in without_repeats(results.rows)
        if ("/" not in row.metric or row.evaluation not in whole)
        and row.better != "neither"
        and math.isfinite(row.difference.low + row.difference.high)
    ]
    better = [row for row in measured if row.verdict == "better"]
    worse = [row for row in measured if row.verdict == "worse"]
    evaluations = count_of(len(results.both), "evaluation")
    if not measured:
        sentence = "Not known: no metric that tells better from worse could be computed."
    elif better and worse:
        sentence = f"In part. Better: {_changes(better)}. Worse: {_changes(worse)}."
    elif better:
        sentence = f"Yes, on these questions: {_changes(better)}. No metric got clearly worse."
    elif worse:
        sentence = f"No: {_changes(worse)}. No metric got clearly better."
    else:
        sentence = f"No clear change in {count_of(len(measured), 'metric')} of {evaluations}."
    # The first metric of an evaluation is named, whatever became of it.
    firsts = {row.evaluation: row for row in reversed(measured)}
    unclear = [row for row in measured if row is firsts[row.evaluation] and not row.verdict]
    if unclear and (better or worse):
        sentence += f" Without a clear change: {_differences(unclear)}."
    elif unclear:
        sentence = f"{sentence[:-1]}: {_differences(unclear)}."
    caveat = (
        f"One run with one seed, {count_of(results.questions, 'question')} in {evaluations}. "
        "Brackets are 95 % intervals over questions; another seed may give another result"
    )
    if len(measured) >= _MANY_METRICS:
        caveat += f", and of {len(measured)} metrics about one in twenty changes clearly by luck"
    if unclear and not better + worse:
        caveat += ". A change within the brackets may be there, but needs more questions to show"
    more = list(results.problems)
    for who in (BASE, ALIGNED):
        names = [result.name for model, result in results.alone if model == who]
        if names and not results.problems:
            more.append(f"Only the {who} model was asked {', '.join(names)}.")
    return RunVerdict(sentence, " ".join((f"{caveat}.", *more)))


def _changes(rows: Sequence[Row]) -> str:
    """Returns clear changes in words; if there are many, first those of different evaluations."""
    firsts = {row.evaluation: row for row in reversed(rows)}
    named = sorted(rows, key=lambda row: row is not firsts[row.evaluation])[:_MOST_NAMED]
    return _listed([_change(row) for row in rows if row in named], len(rows) - len(named))


def _change(row: Row) -> str:
    """Returns a clear change in words, with its interval as a positive amount."""
    change = row.difference
    rose = change.value > 0
    ends = (change.low, change.high) if rose else (-change.high, -change.low)
    decimals = clear_decimals((row.base.value, row.aligned.value), ends)
    value, low, high = (number(x, decimals) for x in (abs(change.value), *ends))
    return f"{_name(row)} {'rose' if rose else 'fell'} by {value} [{low}, {high}]"


def _differences(rows: Sequence[Row]) -> str:
    """Returns metrics with their differences and the intervals of these."""
    texts = []
    for row in rows[:_MOST_NAMED]:
        decimals = clear_decimals((row.base.value, row.aligned.value), ())
        change = (row.difference.value, row.difference.low, row.difference.high)
        value, low, high = (number(x, decimals, signed=True) for x in change)
        texts.append(f"{_name(row)} {value} [{low}, {high}]")
    return _listed(texts, len(rows) - len(texts))


def _listed(texts: Sequence[str], more: int) -> str:
    return "; ".join(texts) + (f"; and {count_of(more, 'more metric')}" if more else "")


def _name(row: Row) -> str:
    """Returns the name of a metric as in the table, what it is, and its evaluation."""
    meaning = _MEANINGS.get(row.metric.rpartition(": ")[2].rpartition("/")[2])
    return f"{row.metric}{f' ({meaning})' if meaning else ''} on {row.evaluation}"


def _answers(shown: Shown) -> list[str]:
    """Returns how many answers to the run's own prompts changed."""
    if not shown.own:
        return []
    changed = sum(one["base"] != one["aligned"] for one in shown.own)
    return [f"{changed} of {count_of(len(shown.own), 'answer')} to the run's own prompts changed."]


def _margins(shown: Shown, held_out: Mapping[str, Any] | None) -> list[str]:
    """Returns how the margins of pairs moved."""
    if held_out and math.isfinite(held_out.get("rewards/margins", math.nan)):
        kind = count_of(round(held_out.get("pairs", 0)), "held-out pair")
        before, after = held_out.get("margin before", 0.0), held_out["rewards/margins"]
        return [f"{_moved(kind, before, after)}."]
    margins = [(x, y) for _, x, y in shown.margins if x is not None and y is not None]
    margins = [pair for pair in margins if all(map(math.isfinite, pair))]
    if not margins:
        return []
    rose = sum(after > before for before, after in margins)
    before, after = (sum(side) / len(margins) for side in zip(*margins, strict=True))
    kind = count_of(len(margins), "trained pair")
    each = f"; it rose for {rose} of them" if len(margins) > 1 else ""
    return [f"{_moved(kind, before, after)}{each}."]


def _moved(kind: str, before: float, after: float) -> str:
    """Returns how the mean margin of some pairs moved, without a full stop."""
    if before == after:
        return f"The mean reward margin of {kind} did not move"
    decimals = 3 if max(abs(before), abs(after)) < 0.1 else 2
    origin = f"from {number(before, decimals, signed=True)} " if before else ""
    text = f"{origin}to {number(after, decimals, signed=True)}"
    return f"The mean reward margin of {kind} {'rose' if after > before else 'fell'} {text}"


def _commands(path: str) -> tuple[str, ...]:
    """Returns the commands that ask both models, as far as they were not, and update the page."""
    there = shlex.quote(hide_home(path)).replace("'~/", "~/'")
    return (
        f"seva-jax evaluate --models base {there} --questions QUESTIONS.jsonl",
        f"seva-jax report {there}",
    )
