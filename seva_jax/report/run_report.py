"""A run as a page: collects what the run left in its work directory, for `page.py` to render.

What lives here: `write_run_report`, which needs neither a model nor a device. What does not: what
only the models can tell (`shown.py`), cards with pictures (`cards.py`), the verdict (`verdict.py`),
rendering (`page.py`), the terminal's last lines (`closing.py`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from seva_jax.config import Checkpoint, Experiment, PriorRun, flatten
from seva_jax.data.json_records import read_comparisons
from seva_jax.data.show import spread
from seva_jax.evals import Metric, Row, format_table, headline_rows, without_repeats
from seva_jax.evals.base import Record
from seva_jax.images import ImageProcessing
from seva_jax.report import markup
from seva_jax.report.cards import (
    LoadImage,
    Pictures,
    example_cards,
    own_cards,
    pair_card,
)
from seva_jax.report.closing import cost, row_speeds, seconds, speed, time_parts
from seva_jax.report.data import (
    Curve,
    Drop,
    EvalRow,
    Interval,
    PairCard,
    Profile,
    ReportData,
    Series,
    SingleRow,
    Stage,
    TimeShare,
)
from seva_jax.report.page import write_report
from seva_jax.report.results import Results, read_results
from seva_jax.report.settings import brief, changed_settings
from seva_jax.report.shown import Shown
from seva_jax.report.verdict import did_it_help
from seva_jax.runtime.files import read_json
from seva_jax.runtime.goodput import goodput_of
from seva_jax.runtime.paths import short_path
from seva_jax.runtime.run_records import read_metrics, read_profiles, read_stages
from seva_jax.training import held_out
from seva_jax.types import DataError

# Stage, title, unit, names of metrics with their labels.
_CURVES = (
    ("align", "Alignment loss", "loss, mean over pairs", {"loss": "loss"}),
    ("align", "Reward margin", "nats", {"rewards/margins": "rewards/margins"}),
    ("align", "Pairs ranked right", "share of pairs", {"rewards/accuracies": "rewards/accuracies"}),
    ("align", "Log-probability of answers", "nats",
     {"logps/chosen": "logps/chosen", "logps/rejected": "logps/rejected"}),
    ("align", "Training speed without compiling", "pairs a second", {"speed": "pairs/s"}),
    ("align", "Where the time goes", "seconds a row",
     {"time/input": "time/input", "time/host": "time/host", "time/device": "time/device"}),
    ("base", "Base model's loss", "nats a token", {"loss": "loss"}),
)  # fmt: skip
_BOTH = ("loss", "rewards/margins", "rewards/accuracies")  # also drawn of held-out pairs


def write_run_report(path: Path, config: Experiment, out: Path | None = None) -> Path:
    """Writes the page of a run from what is in its work directory, and returns its path.

    Works for a run that has not finished: what is not there yet is not on the page.

    Args:
        path: the work directory.
        config: the run's config.
        out: the page; report.html in the work directory by default.

    Raises:
        DataError: a file of the run is damaged.
    """
    metrics, stages, shown = read_metrics(path), read_stages(path), Shown.read(path)
    stages.pop("report", None)  # the page is about what came before it
    index = read_json(path / "pairs.json") if (path / "pairs.json").is_file() else {}
    results, given = read_results(path, config), config.prompts.has_answers
    pictures = Pictures(config, _processing(config, shown))
    load_image, notes = _prompt_images(config)
    settings = {k: str(v) or "(empty)" for k, v in flatten(config).items()}
    changed = changed_settings(config)
    data = ReportData(
        title="A model aligned with given answers"
        if given
        else "SeVa: a model aligned with its own answers",
        given=given,
        subtitle=f"{short_path(str(path))} · seed {config.seed}",
        verdict=did_it_help(
            str(path), results, shown, "align" in stages, held_out_row(path, metrics)
        ),
        facts=_facts(config, index, metrics, stages, shown),
        changed=tuple((k, v) for k, v in settings.items() if k in changed),
        config=tuple((k, v) for k, v in settings.items() if k not in changed),
        stages=tuple(_stage(name, stage) for name, stage in stages.items()),
        times=_times(path),
        curves=_curves(metrics),
        profiles=tuple(Profile(*item) for item in read_profiles(path).items()),
        funnel=tuple(Drop(reason, count) for reason, count in index.get("drops", {}).items()),
        pairs_total=shown.trained or index.get("pairs", 0),
        pairs=_pairs(path, config, pictures, load_image, shown),
        table=tuple(_eval_row(*row) for row in without_repeats(results.rows)),
        single=_single(results),
        own=own_cards(pictures, load_image, shown.own),
        examples=example_cards(pictures, results.both),
        notes=(*notes, *_notes(pictures, shown)),
    )
    return write_report(data, out or path / "report.html")


def results_and_verdict(path: Path, config: Experiment) -> str:
    """Returns what a terminal shows of the results: a table, if there are any, and the verdict.

    Raises:
        DataError: a file of the run is damaged.
    """
    results, finished = read_results(path, config), "align" in read_stages(path)
    held_out_now = held_out_row(path, read_metrics(path))
    verdict = did_it_help(str(path), results, Shown.read(path), finished, held_out_now).lines()
    rows = [row for row, _ in without_repeats(results.rows)]
    if not rows:
        return verdict
    shown = headline_rows(rows)
    more = len(rows) - len(shown)
    others = f"{markup.count_of(more, 'more metric')}: {path / 'evals'}\n" if more else ""
    return f"{format_table(shown)}\n{others}\n{verdict}"


def held_out_row(path: Path, metrics: Sequence[Record]) -> Record | None:
    """Returns the metrics of held-out pairs under the aligned model; None without any.

    "margin before" is their reward margin before training, where it was measured.
    """
    rows = {row["step"]: row for row in metrics if row["stage"] == held_out.STAGE}
    file = path / held_out.RECORD
    kept = read_json(file).get("kept_step") if file.is_file() else None
    if not rows:
        return None
    before = rows.get(0, {}).get("rewards/margins", 0.0)
    return rows.get(kept, rows[max(rows)]) | {"margin before": before}


def page_size(page: Path) -> str:
    """Returns a page's path and size in words."""
    return f"{page} ({page.stat().st_size / 1e6:.1f} MB)"


def _processing(config: Experiment, shown: Shown) -> ImageProcessing | None:
    """Returns the image pipeline, of the checkpoint if the run has not recorded it."""
    try:
        return shown.image_processing or config.base.assets().processing
    except (DataError, OSError):
        return None


def _prompt_images(config: Experiment) -> tuple[LoadImage | None, tuple[str, ...]]:
    """Returns what loads images of the prompts, or None and a note that says why not."""
    try:
        return config.prompts.open().load_image, ()
    except (DataError, OSError) as error:
        return None, (f"The prompts cannot be opened any more, so pictures are missing: {error}",)


def _notes(pictures: Pictures, shown: Shown) -> list[str]:
    """Returns remarks about pictures that are missing and prompts that could not be asked."""
    notes = [
        f"{markup.count_of(count, 'picture')} missing: {reason}."
        for reason, count in pictures.missing.items()
    ]
    if shown.left_out:
        reasons = ", ".join(f"{count} {reason}" for reason, count in shown.left_out.items())
        notes.append(f"Of the run's own prompts, some could not be asked: {reasons}.")
    return notes


def _pairs(
    path: Path,
    config: Experiment,
    pictures: Pictures,
    load_image: LoadImage | None,
    shown: Shown,
) -> tuple[PairCard, ...]:
    """Returns the cards of the pairs whose margins were recorded; any, if none were."""
    file = path / "pairs.array_record"
    if not file.exists():
        return ()
    comparisons = read_comparisons(file)
    margins = shown.margins or tuple(
        (i, 0.0, math.nan) for i in spread(len(comparisons), config.report.num_pairs)
    )
    return tuple(
        pair_card(pictures, load_image, comparisons[place], before, after)
        for place, before, after in margins
        if before is not None and after is not None and place < len(comparisons)
    )


def _facts(
    config: Experiment,
    index: Mapping[str, Any],
    metrics: Sequence[Record],
    stages: Mapping[str, Record],
    shown: Shown,
) -> tuple[tuple[str, str], ...]:
    base, align = config.base, [row for row in metrics if row["stage"] == "align"]
    path = short_path(base.path) if isinstance(base, Checkpoint) else ""
    if isinstance(base, Checkpoint) and base.adapter:
        path += f" with the adapter {short_path(base.adapter)}"
        path += ", merged" if base.merge else ", trained further; with it, it is the reference"
    if isinstance(base, PriorRun):
        path = f"the result of {short_path(base.workdir)}"
        path += ", merged" if base.merge else ", trained further; the reference is that run's"
    rejected = "the data" if config.prompts.has_answers else ", ".join(map(brief, config.corrupt))
    facts = [
        ("base model", ", ".join(filter(None, (_parameters(shown), path)))),
        ("adapters", shown.adapters),
        ("objective", brief(config.objective)),
        ("rejected answers from", rejected),
    ]
    if index:
        others = index["pairs"] - shown.trained if shown.trained else 0
        kept = f"{index['pairs']:,} of {index['prompts']:,} prompts"
        facts.append(("pairs kept", kept + (f", {others:,} of them held out" * (others > 0))))
    if align:
        steps = f"{align[-1]['step']:,} steps of {config.train.batch_size:,} pairs"
        rate = f"{speed(align):,.1f} pairs/s"
        facts += [("training", steps), ("median speed, without compiling", rate)]
    facts += [
        ("devices", shown.devices),
        ("mesh", shown.mesh),
        ("time", f"{markup.duration(seconds(stages))} before this page"),
        ("cost", cost(stages, config.report)),
        ("software", shown.software),
    ]
    return tuple(fact for fact in facts if fact[1])


def _parameters(shown: Shown) -> str:
    """Returns the number of parameters in words, as transformers counts them."""
    if not shown.parameters:
        return ""
    if not shown.unused:
        return f"{shown.parameters:,} parameters"
    return (
        f"{shown.parameters + shown.unused:,} parameters, {shown.unused:,} of them behind the "
        "image features and not used"
    )


def _stage(name: str, stage: Record) -> Stage:
    if "source" in stage:
        return Stage(name, math.nan, f"{stage['summary']} (taken from {stage['source']})")
    return Stage(name, stage["seconds"], stage["summary"])


def _times(path: Path) -> tuple[TimeShare, ...]:
    goodput = goodput_of(path)
    return tuple(TimeShare(*part) for part in time_parts(goodput)) if goodput else ()


def _curves(metrics: Sequence[Record]) -> tuple[Curve, ...]:
    curves, evaluated = [], [row for row in metrics if row["stage"] == held_out.STAGE]
    for stage, title, unit, names in _CURVES:
        rows = [row for row in metrics if row["stage"] == stage]
        if "speed" in names:
            rows = [{"step": row["step"], "speed": rate} for row, rate in row_speeds(rows)]
        series = tuple(Series.of_rows(label, rows, "step", name) for name, label in names.items())
        if stage == "align" and evaluated and (name := next(iter(names))) in _BOTH:
            series = (
                Series.of_rows("training pairs", rows, "step", name),
                Series.of_rows("held-out pairs", evaluated, "step", name),
            )
        if any(line.xs for line in series):
            curves.append(Curve(title, "optimiser step", unit, series))
    return tuple(curves)


def _eval_row(row: Row, repeats: tuple[str, ...]) -> EvalRow:
    base, aligned, difference = map(_interval, (row.base, row.aligned, row.difference))
    return EvalRow(row.evaluation, row.metric, row.better, base, aligned, difference, repeats)


def _single(results: Results) -> tuple[SingleRow, ...]:
    return tuple(
        SingleRow(result.name, name, model, _interval(metric))
        for model, result in results.alone
        for name, metric in result.metrics.items()
    )


def _interval(metric: Metric) -> Interval:
    return Interval(metric.value, metric.low, metric.high)
