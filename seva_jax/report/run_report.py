"""Collects what a run left behind: for the report page, the loggers and the terminal's last lines.

The page itself is `seva_jax/report`; which stages there are is `seva_jax/train.py`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import json
import math
import platform
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from seva_jax import report
from seva_jax.batches.pipeline import ComparisonRows
from seva_jax.config.base_models import Checkpoint
from seva_jax.config.options import ReportOptions
from seva_jax.config.prior_run import PriorRun
from seva_jax.config.source import flatten
from seva_jax.evals import EvalResult, comparison_rows
from seva_jax.evals.base import Record
from seva_jax.inference.rollouts import corrupted_pixels
from seva_jax.objectives import DPO
from seva_jax.report import markup
from seva_jax.runtime.loggers import LoggedPair
from seva_jax.runtime.paths import short_path
from seva_jax.types import BranchLogps, Comparison, ExampleError

if TYPE_CHECKING:
    from seva_jax.train import Run

_CURVES = {
    "loss": ("Alignment loss", "loss, mean over pairs", ("loss",)),
    "margin": ("Reward margin", "nats", ("rewards/margins",)),
    "accuracy": ("Pairs ranked right", "share of pairs", ("rewards/accuracies",)),
    "logps": ("Log-probability of answers", "nats", ("logps/chosen", "logps/rejected")),
    "speed": ("Training speed", "pairs a second", ("pairs/s",)),
}
_NUM_LOGGED = 8


def write_run_report(run: Run) -> str:
    """Writes report.html of a finished run and returns a one-line summary.

    All processes compute the margins, process 0 writes.
    """
    shown = [
        run.comparisons[i] for i in _spread(len(run.comparisons), run.experiment.report.num_pairs)
    ]
    found = _margins(run, run.rows(shown, run.images)) if shown else []
    readable = [(c, margin) for c, margin in zip(shown, found, strict=True) if margin is not None]
    if not run.workdir.writes:
        return "written by process 0"
    index = json.loads((run.workdir.path / "pairs.json").read_text(encoding="utf-8"))
    metrics = run.workdir.read_metrics()
    pairs = _pair_cards(run, readable)
    table, examples = (), ()
    if run.experiment.evals:
        base, aligned = run.results()
        table = tuple(_eval_row(row) for row in comparison_rows(base, aligned))
        examples = _examples(run, base, aligned)
    stages, given = run.workdir.stages(), run.experiment.prompts.has_answers
    data = report.ReportData(
        title="A model aligned with given answers"
        if given
        else "SeVa: a model aligned with its own answers",
        given=given,
        subtitle=f"{short_path(str(run.workdir.path))} · seed {run.experiment.seed}",
        facts=_facts(run, index, metrics),
        config=tuple((k, str(v)) for k, v in flatten(run.experiment).items()),
        stages=tuple(_stage(name, stage) for name, stage in stages.items()),
        curves=_curves(metrics),
        funnel=tuple(report.Drop(reason, count) for reason, count in index["drops"].items()),
        pairs_total=index["pairs"],
        pairs=pairs,
        table=table,
        examples=examples,
        notes=(
            "One run with one seed. Intervals cover which questions were asked, not how the "
            "training could have gone otherwise; for that, run several seeds.",
        ),
    )
    path = report.write_report(data, run.workdir.path / "report.html")
    return f"{path} ({path.stat().st_size / 1e6:.1f} MB)"


def _facts(run: Run, index: dict[str, Any], metrics: list[Record]) -> tuple[tuple[str, str], ...]:
    e, align = run.experiment, [row for row in metrics if row["stage"] == "align"]
    stages = run.workdir.stages()
    num_params = sum(x.size for x in jax.tree.leaves(run.base_params))
    path = f", {short_path(e.base.path)}" if isinstance(e.base, Checkpoint) else ""
    if isinstance(e.base, PriorRun):
        path = f", the result of {short_path(e.base.workdir)}"
        path += ", merged" if e.base.merge else ", which goes on; the reference is that run's"
    mesh = " × ".join(f"{name} {size}" for name, size in run.mesh.shape.items())
    versions = [("Python", platform.python_version())]
    versions += [(name, importlib.metadata.version(name)) for name in ("seva_jax", "jax", "flax")]
    facts = [
        ("base model", f"{num_params:,} parameters{path}"),
        ("objective", brief(e.objective)),
        (
            "rejected answers from",
            "the data" if e.prompts.has_answers else ", ".join(map(brief, e.corrupt)),
        ),
        ("pairs kept", f"{index['pairs']:,} of {index['prompts']:,} prompts"),
    ]
    if align:
        steps = f"{align[-1]['step']:,} steps of {e.train.batch_size:,} pairs"
        facts += [("training", steps), ("training speed", f"{_speed(align):,.1f} pairs/s")]
    return (
        *facts,
        ("devices", f"{_devices()}, {markup.count_of(jax.process_count(), 'process', 'es')}"),
        ("mesh", mesh),
        ("time", f"{markup.duration(_seconds(stages))} before this page"),
        ("cost", _cost(stages, e.report)),
        ("software", ", ".join(f"{name} {version}" for name, version in versions)),
    )


def brief(value: object) -> str:
    """A part of the config as an expression, without what is switched off as by default.

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


def _devices() -> str:
    return f"{jax.device_count()} × {jax.devices()[0].device_kind}"


def _speed(align: list[Record]) -> float:
    """Pairs a second between log lines; the median leaves compilation out."""
    return float(np.median([row["pairs/s"] for row in align]))


def _own(stages: dict[str, Record]) -> dict[str, Record]:
    """Stages that this run computed, without those taken from another one."""
    return {name: stage for name, stage in stages.items() if "source" not in stage}


def _stage(name: str, stage: Record) -> report.Stage:
    if "source" in stage:
        return report.Stage(name, math.nan, f"{stage['summary']} (taken from {stage['source']})")
    return report.Stage(name, stage["seconds"], stage["summary"])


def _seconds(stages: dict[str, Record]) -> float:
    return sum(stage["seconds"] for stage in _own(stages).values())


def _cost(stages: dict[str, Record], options: ReportOptions) -> str:
    """Device-hours of the run's own stages, and their price if one is given."""
    own = _own(stages).values()
    hours = sum(stage["seconds"] * stage["devices"] for stage in own) / 3600
    text = f"{hours:,.2f} device-hours"
    if options.device_hour_price:
        money = hours * options.device_hour_price
        each = f"{options.device_hour_price:,.2f} {options.currency}"
        text = f"{money:,.2f} {options.currency} ({text} at {each})"
    return text


def closing_summary(run: Run) -> str:
    """The terminal's last lines: time for each stage, speed and cost, and where the files are."""
    stages, path = run.workdir.stages(), run.workdir.path
    times = ", ".join(f"{n} {markup.duration(s['seconds'])}" for n, s in _own(stages).items())
    align = [row for row in run.workdir.read_metrics() if row["stage"] == "align"]
    speed = f"{_speed(align):,.1f} pairs/s in training, " if align else ""
    return (
        f"time:   {markup.duration(_seconds(stages))}: {times}\n"
        f"speed:  {speed}{_cost(stages, run.experiment.report)} on {_devices()}\n"
        f"files:  {path}: checkpoints/ (the models), evals/ (every answer), pairs.json, "
        "metrics.jsonl\n"
        f"report: {path / 'report.html'}"
    )


def _curves(metrics: list[Record]) -> tuple[report.Curve, ...]:
    align = [row for row in metrics if row["stage"] == "align"]
    curves = []
    for title, unit, names in _CURVES.values():
        series = tuple(
            report.Series(
                name,
                tuple(float(row["step"]) for row in align if name in row),
                tuple(row[name] for row in align if name in row),
            )
            for name in names
        )
        if any(s.xs for s in series):
            curves.append(report.Curve(title, "optimiser step", unit, series))
    base = [row for row in metrics if row["stage"] == "base"]
    if base:
        xs, ys = zip(*((float(row["step"]), row["loss"]) for row in base), strict=True)
        loss = report.Series("loss", xs, ys)
        curves.append(report.Curve("Base model's loss", "optimiser step", "nats a token", (loss,)))
    return tuple(curves)


def _spread(total: int, shown: int) -> list[int]:
    """At most `shown` indices, evenly spread over `total`."""
    return sorted(set(np.linspace(0, total - 1, min(shown, total)).astype(int).tolist()))


def _pair_cards(run: Run, shown: Sequence[tuple[Comparison, float]]) -> tuple[report.PairCard, ...]:
    """Gallery cards, with the reward margin of the aligned model."""
    e, processing = run.experiment, run.assets.processing
    cards = []
    for comparison, margin in shown:
        prompt = comparison.prompt
        corrupted = []
        used = comparison.corruptions if prompt.images else ()
        labels = tuple(markup.shorten(str(e.corrupt[index]), 40) for index in used)
        for index in used:
            corruption = e.corrupt[index]
            pixels = corrupted_pixels(
                prompt, run.prompts.load_image, processing, corruption, index, e.seed
            )
            corrupted.append(processing.denormalise(pixels[0]))
        clean = _first_image(run.prompts.load_image, processing, prompt.images)
        truth = str(prompt.meta.get("answer", ""))
        cards.append(
            report.PairCard(
                prompt.id,
                prompt.question,
                clean,
                tuple(corrupted),
                comparison.texts[0],
                comparison.texts[1:],
                0.0,
                margin,
                truth,
                labels,
            )
        )
    return tuple(cards)


def logged_pairs(run: Run) -> list[LoggedPair]:
    """A few pairs, evenly spread, for the loggers; without those whose images do not decode."""
    cards: list[report.PairCard] = []
    for index in _spread(len(run.comparisons), _NUM_LOGGED):
        with contextlib.suppress(ExampleError):
            cards += _pair_cards(run, [(run.comparisons[index], 0.0)])
    return [
        LoggedPair(
            np.concatenate((card.clean, *card.corrupted), axis=1),
            f"{card.question}\nchosen: {card.chosen}\nrejected: "
            + "\nrejected: ".join(card.rejected),
        )
        for card in cards
    ]


def _first_image(load_image: Any, processing: Any, images: tuple[str, ...]) -> np.ndarray:
    """The first image as the model sees it, uint8; a grey square for a text-only prompt."""
    if not images:
        return np.full((32, 32, 3), 128, np.uint8)
    return processing.denormalise(processing(load_image(images[0])))


def _margins(run: Run, rows: ComparisonRows) -> list[float | None]:
    """Reward margin of each comparison under the aligned model; it is 0 before training.

    None for comparisons whose images do not decode.
    """
    reference = run.logps(run.base_model, {"params": run.base_params}, rows, "margins: base")
    policy = run.logps(run.model, run.aligned, rows, "margins: aligned")
    objective = run.experiment.objective
    # Without rewards of its own, or with ones of more than log-probs: show log-ratios, in nats.
    if not objective.needs_reference or objective.needs:
        objective = DPO(beta=1.0)
    margins = []
    for before, after in zip(reference, policy, strict=True):
        if not before or not after:
            margins.append(None)
            continue
        _, metrics = objective(_branches(after), _branches(before))
        margins.append(float(metrics["rewards/margins"][0]))
    return margins


def _branches(logps: list[np.ndarray]) -> BranchLogps:
    longest = max(map(len, logps))
    tokens = np.stack([np.pad(x, (0, longest - len(x))) for x in logps])[None]
    mask = np.stack([np.arange(longest) < len(x) for x in logps])[None]
    return BranchLogps(jnp.asarray(tokens), jnp.asarray(mask, jnp.float32))


def _interval(metric: Any) -> report.Interval:
    return report.Interval(metric.value, metric.low, metric.high)


def _eval_row(row: Any) -> report.EvalRow:
    return report.EvalRow(
        row.evaluation,
        row.metric,
        row.better,
        _interval(row.base),
        _interval(row.aligned),
        _interval(row.difference),
    )


def _goodness(record: Record) -> float:
    """How good an answer is, to tell better from worse: exact answers, or CHAIR counts."""
    if "correct" in record:
        return record["correct"]
    return record.get("found", 0) - record.get("hallucinated", 0)


def _examples(
    run: Run, base: list[EvalResult], aligned: list[EvalResult]
) -> tuple[report.ExampleCard, ...]:
    """For every evaluation, answers that changed for better or worse first, then others."""
    cards = []
    for evaluation, before, after in zip(run.experiment.evals, base, aligned, strict=True):
        load_image = evaluation.open().load_image
        found = []
        for old, new in zip(before.records, after.records, strict=True):
            gain = _goodness(new) - _goodness(old)
            unmoved = "same" if old["answer"] == new["answer"] else "changed"
            verdict = "better" if gain > 0 else "worse" if gain < 0 else unmoved
            found.append((verdict, old, new))
        order = ("better", "worse", "changed", "same")
        quota = max(run.experiment.report.num_examples // 3, 1)
        picked = []
        for verdict in order:  # the same number of better and worse ones, so as not to flatter
            of_kind = [f for f in found if f[0] == verdict]
            picked += [of_kind[i] for i in _spread(len(of_kind), quota)]
        for verdict, old, new in picked[: run.experiment.report.num_examples]:
            image = _first_image(load_image, run.assets.processing, tuple(old["images"]))
            truth = old["truth"] if isinstance(old["truth"], str) else ", ".join(old["truth"])
            cards.append(
                report.ExampleCard(
                    str(old["id"]),
                    image,
                    old["question"],
                    truth,
                    old["answer"],
                    new["answer"],
                    verdict,
                    before.name,
                )
            )
    return tuple(cards)
