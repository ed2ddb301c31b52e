"""Plans as text, as a CSV file and as a page with charts."""

from __future__ import annotations

import csv
import dataclasses
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from seva_jax.plan.chips import Topology
from seva_jax.plan.estimate import Memory, Plan
from seva_jax.report import Curve, FiguresData, Series, write_figures

_GIB = 2**30
COLUMNS = (
    *("model", "topology", "chips", "data x fsdp x tensor", "pairs/step", "fits"),
    *("step GiB/chip", "of HBM", "rollout GiB/chip", "GiB sent/chip", "binds"),
    *("s/step", "pairs/s", "chip-hours"),
)
HOW = (
    "Memory and collectives are read from the programs XLA compiled for the slice, the very ones "
    "the trainer runs. Operations are counted from the architecture. The time of a step is a "
    "roofline: the longest of compute, HBM and ICI at the chip's peak rates, as if the others hid "
    "behind it, and as if the network between slices were as fast as that within; real steps take "
    "longer, often half as long again or twice."
)


@dataclasses.dataclass(frozen=True)
class Row:
    """A plan with the name of what was planned.

    Attributes:
        model: what is trained, as "13b full".
        plan: the plan.
        pairs: pairs of the whole run.
    """

    model: str
    plan: Plan
    pairs: int

    @property
    def rate(self) -> float:
        """Pairs a second."""
        return self.plan.batch_size / self.plan.step_seconds

    @property
    def chip_hours(self) -> float:
        """Of the whole run."""
        return self.pairs / self.rate * self.plan.num_chips / 3600

    def cells(self) -> tuple[str, ...]:
        """Text by `COLUMNS`."""
        plan = self.plan

        def gib(memory: Memory | None) -> str:
            return "-" if memory is None else f"{memory.needed / _GIB:.2f}"

        timed = ("-",) * 5
        if plan.step.fits:
            sent = f"{sum(plan.sent.values()) / _GIB:.1f}"
            step = f"{plan.step_seconds:.2f}"
            timed = (sent, plan.binding, step, f"{self.rate:.0f}", f"{self.chip_hours:.1f}")
        return (
            self.model,
            plan.topology,
            str(plan.num_chips),
            " x ".join(map(str, plan.mesh)),
            str(plan.batch_size),
            "yes" if plan.fits else "NO",
            gib(plan.step),
            f"{plan.step.needed / _GIB / plan.chip.hbm_gib:.0%}",
            gib(plan.rollout),
            *timed,
        )


def describe(row: Row) -> str:
    """A plan in full."""
    plan, step, chips = row.plan, row.plan.step, row.plan.num_chips
    lines = [
        f"{row.model} on {plan.topology}: {chips} chips, mesh {' x '.join(map(str, plan.mesh))} "
        f"(data x fsdp x tensor), {plan.batch_size} pairs a step",
        f"  step     {step.needed / _GIB:6.2f} GiB of {plan.chip.hbm_gib} GiB a chip "
        f"({step.needed / _GIB / plan.chip.hbm_gib:.0%}): "
        + (
            f"arguments {step.arguments / _GIB:.2f}, temporaries {step.temporaries / _GIB:.2f}"
            if step.fits
            else "DOES NOT FIT"
        ),
    ]
    if plan.rollout:
        state = "" if plan.rollout.fits else ": DOES NOT FIT"
        lines.append(f"  rollout  {plan.rollout.needed / _GIB:6.2f} GiB a chip{state}")
    lines.append(
        f"  compute  {plan.model_flops / 1e12:,.0f} TFLOP a step, "
        f"{plan.hardware_flops / 1e12:,.0f} with what is computed twice"
    )
    if step.fits:
        kinds = ", ".join(f"{kind} {size / _GIB:.2f}" for kind, size in plan.sent.items())
        limits = ", ".join(f"{name} {s:.2f} s" for name, s in plan.seconds.items())
        lines += [
            f"  network  {sum(plan.sent.values()) / _GIB:.2f} GiB sent a chip and step: {kinds}",
            f"  roofline {limits}; {plan.binding} binds: {plan.step_seconds:.2f} s a step",
            f"  run      {row.rate:.0f} pairs/s, {row.chip_hours:.1f} chip-hours for "
            f"{row.pairs:,} pairs",
        ]
    return "\n".join(lines)


def table(rows: Sequence[Row]) -> str:
    """All plans, a line each."""
    lines = [COLUMNS, *(row.cells() for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(x.ljust(w) for x, w in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def write_csv(rows: Sequence[Row], path: Path) -> None:
    """All plans as a CSV file."""
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([COLUMNS, *(row.cells() for row in rows)])


def write_page(rows: Sequence[Row], skipped: Sequence[str], path: Path) -> None:
    """All plans as charts and a table.

    Args:
        rows: the plans.
        skipped: what was not planned, and why.
        path: the HTML file.
    """
    charts = (
        ("Memory of a step", "GiB a chip", lambda r: r.plan.step.needed / _GIB, False),
        ("Cost of the run", "chip-hours, at least", lambda r: r.chip_hours, True),
        ("Speed", "pairs a second, at most", lambda r: r.rate, True),
        ("Network", "GiB sent a chip and step", lambda r: sum(r.plan.sent.values()) / _GIB, True),
    )
    curves = []
    for title, unit, value, only_fitting in charts:
        lines: dict[str, list[tuple[float, float]]] = {}
        for row in rows:
            if row.plan.step.fits or not only_fitting:
                chip = Topology.parse(row.plan.topology).kind
                lines.setdefault(f"{row.model}, {chip}", []).append(
                    (row.plan.num_chips, value(row))
                )
        series = []
        for label, points in sorted(lines.items()):
            xs, ys = zip(*sorted(points), strict=True)
            series.append(Series(label, xs, ys))
        curves.append(Curve(title, "chips", unit, tuple(series)))
    data = FiguresData(
        title="What the run needs",
        subtitle=f"jax {version('jax')}, libtpu {version('libtpu')}, Python "
        f"{platform.python_version()}",
        what="Memory, network, time and cost of an alignment run on TPU slices, estimated without "
        "one.",
        curves=tuple(curves),
        columns=COLUMNS,
        rows=tuple(row.cells() for row in rows),
        notes=(HOW, *skipped),
    )
    write_figures(data, path)
