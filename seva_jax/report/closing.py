"""The terminal's last lines about a run: time, speed, cost, and where its files are."""

from __future__ import annotations

import shlex
import urllib.parse
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import numpy as np

from seva_jax.config import ReportOptions
from seva_jax.evals.base import Record
from seva_jax.report import markup
from seva_jax.runtime.goodput import Goodput, goodput_of
from seva_jax.runtime.run_records import read_metrics, read_stages
from seva_jax.runtime.stores import is_remote
from seva_jax.training.held_out import RECORD, read_held_out


def closing_summary(path: Path, options: ReportOptions) -> str:
    """Returns the best and the last step, times, goodput, speed, cost, and where the files are.

    Args:
        path: the work directory.
        options: the price of a device-hour.
    """
    model = f"model:  {read_held_out(path)}\n" if (path / RECORD).exists() else ""
    stages = read_stages(path)
    times = ", ".join(f"{n} {markup.duration(s['seconds'])}" for n, s in own_stages(stages).items())
    align = [row for row in read_metrics(path) if row["stage"] == "align"]
    goodput = goodput_of(path)
    kept = f"        goodput {goodput_line(goodput)}\n" if goodput else ""
    answers = "evals/ (every answer), " if (path / "evals").is_dir() else ""
    rate = f"{speed(align):,.1f} pairs/s in training (median, without compiling), " if align else ""
    page = path / "report.html"
    report = f"{page}{how_to_open(page)}"
    if not page.exists():
        report = f"not written; seva-jax report {shlex.quote(str(path))} writes it"
    return (
        f"{model}"
        f"time:   {markup.duration(seconds(stages))}: {times}\n"
        f"{kept}"
        f"speed:  {rate}{cost(stages, options)} on {devices()}\n"
        f"files:  {path}: checkpoints/ (the models), {answers}pairs.json, metrics.jsonl\n"
        f"report: {report}"
    )


def how_to_open(page: Path) -> str:
    """Returns a line on how to open a page in a bucket, with a line break; "" for a local one.

    >>> how_to_open(Path("runs/a/report.html"))
    ''
    """
    scheme, _, name = str(page).partition("://")
    if not is_remote(page):
        return ""
    if scheme != "gs":
        return "\n        (copy it to this machine to open it)"
    return (
        f"\n        https://storage.cloud.google.com/{urllib.parse.quote(name)} in a browser that "
        f"is signed in,\n        or copy it: gcloud storage cp {shlex.quote(str(page))} ."
    )


def devices() -> str:
    """Returns number and kind of the devices."""
    return f"{jax.device_count()} × {jax.devices()[0].device_kind}"


def speed(align: Sequence[Record]) -> float:
    """Returns the median of `row_speeds`."""
    return float(np.median([rate for _, rate in row_speeds(align)]))


def row_speeds(align: Sequence[Record]) -> list[tuple[Record, float]]:
    """Returns rows of metrics with their pairs a second, without the time that compiling took.

    The first of several rows is left out: programs are loaded and caches are filled in its steps.
    """
    speeds = []
    for row in align[1:] or align:
        if "pairs/s" not in row:
            continue
        compile_s = row.get("time/compile", 0.0)
        share = compile_s / row["seconds"] if row.get("seconds") else 0.0
        speeds.append((row, row["pairs/s"] / (1 - share) if share < 1 else row["pairs/s"]))
    return speeds


def own_stages(stages: Mapping[str, Record]) -> dict[str, Record]:
    """Returns the stages that a run computed, without those taken from another one."""
    return {name: stage for name, stage in stages.items() if "source" not in stage}


def seconds(stages: Mapping[str, Record]) -> float:
    """Returns the time of a run's own stages."""
    return sum(stage["seconds"] for stage in own_stages(stages).values())


def cost(stages: Mapping[str, Record], options: ReportOptions) -> str:
    """Returns device-hours of a run's own stages, and their price if one is given."""
    own = own_stages(stages).values()
    hours = sum(stage["seconds"] * stage["devices"] for stage in own) / 3600
    text = f"{hours:,.2f} device-hours"
    if options.device_hour_price:
        money = hours * options.device_hour_price
        each = f"{options.device_hour_price:,.2f} {options.currency}"
        text = f"{money:,.2f} {options.currency} ({text} at {each})"
    return text


def time_parts(goodput: Goodput) -> tuple[tuple[str, float, bool], ...]:
    """Returns the parts of a run's time: what, seconds, and whether it counts as goodput.

    Parts of less than a thousandth of the time, such as what measuring takes, are left out.
    """
    passed = dict(goodput.passed_s)
    evaluating = sum(passed.pop(name) for name in list(passed) if name.startswith("evaluate"))
    parts = (
        ("training", sum(goodput.trained_s.values()), True),
        ("answering", passed.pop("rollouts", 0.0), True),
        ("evaluating", evaluating, True),
        ("other stages", sum(passed.values()), True),
        ("start-up", goodput.start_up_s, False),
        ("compiling", goodput.compile_s, False),
        ("saving", goodput.save_s, False),
        ("lost to restarts", goodput.lost_s, False),
    )
    return tuple(part for part in parts if part[1] > 1e-3 * goodput.total_s)


def goodput_line(goodput: Goodput) -> str:
    """Returns the goodput and its parts in one line."""
    total = goodput.total_s
    parts = ", ".join(
        f"{name} {markup.percent(seconds, total)}" for name, seconds, _ in time_parts(goodput)
    )
    return (
        f"{markup.percent(goodput.kept_s, total)} of {markup.duration(total)} in "
        f"{markup.count_of(goodput.starts, 'start')}: {parts}"
    )
