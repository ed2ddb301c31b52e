"""A finished run as a page: collects what the run left, for `page.py` to render.

What lives here: `RunPage`, the run's page and the pairs that loggers show. What does not:
rendering (`page.py`), the terminal's last lines (`closing.py`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import math
import platform
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from seva_jax import report
from seva_jax.config import Checkpoint, Experiment, PriorRun, flatten
from seva_jax.evals import EvalResult, Row, comparison_rows
from seva_jax.evals.base import Record
from seva_jax.images import ImageProcessing
from seva_jax.inference.corrupted import corrupted_pixels
from seva_jax.report import markup
from seva_jax.report.closing import cost, devices, seconds, speed, time_parts
from seva_jax.runtime.files import read_json
from seva_jax.runtime.goodput import goodput_of
from seva_jax.runtime.loggers import LoggedPair
from seva_jax.runtime.paths import short_path
from seva_jax.runtime.run_records import read_metrics, read_profiles, read_stages
from seva_jax.types import Comparison, ExampleError

# Stage, title, unit, names of metrics.
_CURVES = (
    ("align", "Alignment loss", "loss, mean over pairs", ("loss",)),
    ("align", "Reward margin", "nats", ("rewards/margins",)),
    ("align", "Pairs ranked right", "share of pairs", ("rewards/accuracies",)),
    ("align", "Log-probability of answers", "nats", ("logps/chosen", "logps/rejected")),
    ("align", "Training speed", "pairs a second", ("pairs/s",)),
    ("align", "Where the time goes", "seconds a row", ("time/input", "time/host", "time/device")),
    ("base", "Base model's loss", "nats a token", ("loss",)),
)
_NUM_LOGGED = 8

LoadImage = Callable[[str], np.ndarray]


@dataclasses.dataclass(frozen=True)
class RunPage:
    """What the page of a finished run is made from.

    Attributes:
        config: the run's config.
        path: its work directory.
        mesh: its devices.
        num_params: parameters of the base model.
        processing: image pipeline.
        load_image: gives an image of the prompts by its name.
        pairs: comparisons for the gallery, each with its reward margin under the aligned model.
        base: evaluation results before alignment.
        aligned: evaluation results after it.
    """

    config: Experiment
    path: Path
    mesh: jax.sharding.Mesh
    num_params: int
    processing: ImageProcessing
    load_image: LoadImage
    pairs: Sequence[tuple[Comparison, float]]
    base: list[EvalResult]
    aligned: list[EvalResult]


def write_run_report(page: RunPage) -> str:
    """Writes report.html of a finished run and returns a one-line summary."""
    config, index = page.config, read_json(page.path / "pairs.json")
    metrics, stages = read_metrics(page.path), read_stages(page.path)
    given = config.prompts.has_answers
    data = report.ReportData(
        title="A model aligned with given answers"
        if given
        else "SeVa: a model aligned with its own answers",
        given=given,
        subtitle=f"{short_path(str(page.path))} · seed {config.seed}",
        facts=_facts(page, index, metrics),
        config=tuple((k, str(v)) for k, v in flatten(config).items()),
        stages=tuple(_stage(name, stage) for name, stage in stages.items()),
        times=_times(page.path),
        curves=_curves(metrics),
        profiles=tuple(report.Profile(*item) for item in read_profiles(page.path).items()),
        funnel=tuple(report.Drop(reason, count) for reason, count in index["drops"].items()),
        pairs_total=index["pairs"],
        pairs=tuple(
            _pair_card(config, page.processing, page.load_image, *pair) for pair in page.pairs
        ),
        table=tuple(_eval_row(row) for row in comparison_rows(page.base, page.aligned)),
        examples=_examples(page),
        notes=(
            "One run with one seed. Intervals cover which questions were asked, not how the "
            "training could have gone otherwise; for that, run several seeds.",
        ),
    )
    path = report.write_report(data, page.path / "report.html")
    return f"{path} ({path.stat().st_size / 1e6:.1f} MB)"


def _facts(
    page: RunPage, index: dict[str, Any], metrics: list[Record]
) -> tuple[tuple[str, str], ...]:
    config, align = page.config, [row for row in metrics if row["stage"] == "align"]
    base, stages = config.base, read_stages(page.path)
    path = f", {short_path(base.path)}" if isinstance(base, Checkpoint) else ""
    if isinstance(base, Checkpoint) and base.adapter:
        path += f" with the adapter {short_path(base.adapter)}"
        path += ", merged" if base.merge else ", trained further; with it, it is the reference"
    if isinstance(base, PriorRun):
        path = f", the result of {short_path(base.workdir)}"
        path += ", merged" if base.merge else ", trained further; the reference is that run's"
    mesh = " × ".join(f"{name} {size}" for name, size in page.mesh.shape.items())
    versions = [("Python", platform.python_version())]
    versions += [(name, _version(name)) for name in ("seva_jax", "jax", "flax")]
    rejected = "the data" if config.prompts.has_answers else ", ".join(map(brief, config.corrupt))
    facts = [
        ("base model", f"{page.num_params:,} parameters{path}"),
        ("objective", brief(config.objective)),
        ("rejected answers from", rejected),
        ("pairs kept", f"{index['pairs']:,} of {index['prompts']:,} prompts"),
    ]
    if align:
        steps = f"{align[-1]['step']:,} steps of {config.train.batch_size:,} pairs"
        facts += [("training", steps), ("training speed", f"{speed(align):,.1f} pairs/s")]
    return (
        *facts,
        ("devices", f"{devices()}, {markup.count_of(jax.process_count(), 'process', 'es')}"),
        ("mesh", mesh),
        ("time", f"{markup.duration(seconds(stages))} before this page"),
        ("cost", cost(stages, config.report)),
        ("software", ", ".join(f"{name} {version}" for name, version in versions)),
    )


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # run from a source tree
        return "not installed"


def brief(value: object) -> str:
    """Returns a part of a config as an expression, without what is off by default.

    >>> from seva_jax.objectives import DPO
    >>> brief(DPO(beta=0.5, label_smoothing=0.0))
    'DPO(beta=0.5, ld_alpha=1.0)'
    """
    if isinstance(value, tuple):
        return f"({', '.join(map(brief, value))}{',' if len(value) == 1 else ''})"
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return repr(value)
    usual = {
        f.name: f.default_factory() if callable(f.default_factory) else f.default
        for f in dataclasses.fields(value)
    }
    shown = [
        f"{name}={brief(getattr(value, name))}"
        for name, default in usual.items()
        if getattr(value, name) != default or (default and not dataclasses.is_dataclass(default))
    ]
    return f"{type(value).__name__}({', '.join(shown)})"


def _stage(name: str, stage: Record) -> report.Stage:
    if "source" in stage:
        return report.Stage(name, math.nan, f"{stage['summary']} (taken from {stage['source']})")
    return report.Stage(name, stage["seconds"], stage["summary"])


def _times(path: Path) -> tuple[report.TimeShare, ...]:
    goodput = goodput_of(path)
    return tuple(report.TimeShare(*part) for part in time_parts(goodput)) if goodput else ()


def _curves(metrics: list[Record]) -> tuple[report.Curve, ...]:
    curves = []
    for stage, title, unit, names in _CURVES:
        rows = [row for row in metrics if row["stage"] == stage]
        series = tuple(report.Series.of_rows(name, rows, "step", name) for name in names)
        if any(line.xs for line in series):
            curves.append(report.Curve(title, "optimiser step", unit, series))
    return tuple(curves)


def spread(total: int, shown: int) -> list[int]:
    """Returns at most `shown` indices, evenly spread over `total`."""
    return sorted(set(np.linspace(0, total - 1, min(shown, total)).astype(int).tolist()))


def _pair_card(
    config: Experiment,
    processing: ImageProcessing,
    load_image: LoadImage,
    comparison: Comparison,
    margin: float,
) -> report.PairCard:
    """Returns the gallery card of a comparison and its reward margin."""
    prompt, texts = comparison.prompt, comparison.texts
    used = comparison.corruptions if prompt.images else ()
    corrupted = (
        corrupted_pixels(prompt, load_image, processing, config.corrupt[i], i, config.seed)[0]
        for i in used
    )
    clean = _first_image(load_image, processing, prompt.images)
    images = tuple(map(processing.denormalise, corrupted))
    truth = str(prompt.meta.get("answer", ""))
    names = tuple(markup.shorten(str(config.corrupt[i]), 40) for i in used)
    return report.PairCard(
        prompt.id, prompt.question, clean, images, texts[0], texts[1:], 0.0, margin, truth, names
    )


def logged_pairs(
    config: Experiment,
    processing: ImageProcessing,
    load_image: LoadImage,
    comparisons: Sequence[Comparison],
) -> list[LoggedPair]:
    """Returns a few pairs, evenly spread, for the loggers; without those that do not decode."""
    cards: list[report.PairCard] = []
    for index in spread(len(comparisons), _NUM_LOGGED):
        with contextlib.suppress(ExampleError):
            card = _pair_card(config, processing, load_image, comparisons[index], 0.0)
            cards.append(card)
    return [
        LoggedPair(
            np.concatenate((card.clean, *card.corrupted), axis=1),
            f"{card.question}\nchosen: {card.chosen}\nrejected: "
            + "\nrejected: ".join(card.rejected),
        )
        for card in cards
    ]


def _first_image(
    load_image: LoadImage, processing: ImageProcessing, images: Sequence[str]
) -> np.ndarray:
    """Returns the first image as the model sees it, uint8; a grey square without any."""
    if not images:
        return np.full((32, 32, 3), 128, np.uint8)
    return processing.denormalise(processing(load_image(images[0])))


def _eval_row(row: Row) -> report.EvalRow:
    metrics = (row.base, row.aligned, row.difference)
    intervals = (report.Interval(metric.value, metric.low, metric.high) for metric in metrics)
    return report.EvalRow(row.evaluation, row.metric, row.better, *intervals)


def _goodness(record: Record) -> float:
    """Returns how good an answer is: exact answers, or CHAIR counts."""
    if "correct" in record:
        return record["correct"]
    return record.get("found", 0) - record.get("hallucinated", 0)


def _examples(page: RunPage) -> tuple[report.ExampleCard, ...]:
    """Returns examples of every evaluation: changes for better or worse first, then others."""
    most = page.config.report.num_examples
    cards = []
    for evaluation, before, after in zip(page.config.evals, page.base, page.aligned, strict=True):
        load_image = evaluation.open().load_image
        judged = []
        for old, new in zip(before.records, after.records, strict=True):
            gain = _goodness(new) - _goodness(old)
            unmoved = "same" if old["answer"] == new["answer"] else "changed"
            verdict = "better" if gain > 0 else "worse" if gain < 0 else unmoved
            judged.append((verdict, old, new))
        quota = max(most // 3, 1)
        picked = []
        # The same number of better and worse ones, so as not to flatter.
        for verdict in ("better", "worse", "changed", "same"):
            of_kind = [x for x in judged if x[0] == verdict]
            picked += [of_kind[i] for i in spread(len(of_kind), quota)]
        for verdict, old, new in picked[:most]:
            image = _first_image(load_image, page.processing, old["images"])
            truth = old["truth"] if isinstance(old["truth"], str) else ", ".join(old["truth"])
            asked = (str(old["id"]), image, old["question"], truth)
            answered = (old["answer"], new["answer"], verdict)
            cards.append(report.ExampleCard(*asked, *answered, before.name))
    return tuple(cards)
