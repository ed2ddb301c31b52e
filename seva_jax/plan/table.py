"""Shows plans as text, as a CSV file and as a page with charts."""

from __future__ import annotations

import csv
import dataclasses
import io
import platform
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

from seva_jax.plan.chips import Topology
from seva_jax.plan.estimate import Memory, Plan
from seva_jax.report import Curve, FiguresData, Series, write_figures
from seva_jax.runtime.files import write_text

_GIB = 2**30
COLUMNS = (
    *("model", "topology", "chips", "data x fsdp x tensor", "pairs/step", "fits"),
    *("step GiB/chip", "of HBM", "rollout GiB/chip", "GiB sent/chip", "binds"),
    *("s/step", "pairs/s", "chip-hours"),
)
HOW = (
    "Memory and collectives are read from the trainer's own programs, compiled by XLA for the "
    "slice. Operations are counted from the architecture. The time of a step is a roofline, a "
    "lower bound: the longest of compute, HBM and ICI at the chip's peak rates, as if the others "
    "hid behind it and the network between slices were as fast as that within a slice. Real steps "
    "take longer."
)


@dataclasses.dataclass(frozen=True)
class Row:
    """A plan with the name of what was planned.

    Attributes:
        model: size and what is trained, such as "13b full".
        plan: the plan.
        pairs: pairs in the whole run.
    """

    model: str
    plan: Plan
    pairs: int

    @property
    def mesh(self) -> str:
        """The sizes of the mesh axes data, fsdp and tensor."""
        return " x ".join(map(str, self.plan.mesh))

    @property
    def step_gib(self) -> float:
        """Memory of a step on one chip, GiB."""
        return self.plan.step.needed / _GIB

    @property
    def of_hbm(self) -> str:
        """The same as a percentage of the chip's memory."""
        return f"{self.step_gib / self.plan.chip.hbm_gib:.0%}"

    @property
    def sent_gib(self) -> float:
        """What a chip sends in a step, GiB."""
        return sum(self.plan.sent.values()) / _GIB

    @property
    def rate(self) -> float:
        """Pairs a second, at most."""
        return self.plan.batch_size / self.plan.step_seconds

    @property
    def chip_hours(self) -> float:
        """Chip-hours of the whole run, at least."""
        return self.pairs / self.rate * self.plan.num_chips / 3600

    def cells(self) -> tuple[str, ...]:
        """Returns the text of each column of `COLUMNS`."""
        plan = self.plan

        def gib(memory: Memory | None) -> str:
            return "-" if memory is None else f"{memory.needed / _GIB:.2f}"

        timed = ("-",) * 5
        if plan.step.fits:
            step = f"{plan.step_seconds:.2f}"
            rates = (f"{self.rate:.0f}", f"{self.chip_hours:.1f}")
            timed = (f"{self.sent_gib:.1f}", plan.binding, step, *rates)
        return (
            self.model,
            plan.topology,
            str(plan.num_chips),
            self.mesh,
            str(plan.batch_size),
            "yes" if plan.fits else "NO",
            gib(plan.step),
            self.of_hbm,
            gib(plan.rollout),
            *timed,
        )


def describe(row: Row) -> str:
    """Returns a plan in full, several lines of text; `launch/README.md` explains them."""
    plan, step = row.plan, row.plan.step
    parts = f"arguments {step.arguments / _GIB:.2f}, temporaries {step.temporaries / _GIB:.2f}"
    lines = [
        f"{row.model} on {plan.topology}: {plan.num_chips} chips, mesh {row.mesh} "
        f"(data x fsdp x tensor), {plan.batch_size} pairs a step",
        f"  step     {row.step_gib:6.2f} GiB of {plan.chip.hbm_gib} GiB a chip "
        f"({row.of_hbm}): {parts if step.fits else 'DOES NOT FIT'}",
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
            f"  network  {row.sent_gib:.2f} GiB sent a chip and step: {kinds}",
            f"  roofline {limits}; {plan.binding} binds: {plan.step_seconds:.2f} s a step",
            f"  run      {row.rate:.0f} pairs/s, {row.chip_hours:.1f} chip-hours for "
            f"{row.pairs:,} pairs",
        ]
    return "\n".join(lines)


def table(rows: Sequence[Row]) -> str:
    """Returns all plans as a table of text, one line each."""
    lines = [COLUMNS, *(row.cells() for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(x.ljust(w) for x, w in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def write_csv(rows: Sequence[Row], path: Path) -> None:
    """Writes all plans to a CSV file."""
    file = io.StringIO(newline="")
    csv.writer(file).writerows([COLUMNS, *(row.cells() for row in rows)])
    write_text(path, file.getvalue())


def write_page(rows: Sequence[Row], skipped: Sequence[str], path: Path) -> None:
    """Writes a page with charts of all plans and their table.

    Args:
        rows: the plans.
        skipped: one sentence for each combination that could not be planned.
        path: the HTML file.
    """
    fitting = [row for row in rows if row.plan.step.fits]
    data = FiguresData(
        title="What the run needs",
        subtitle=f"jax {version('jax')}, libtpu {version('libtpu')}, Python "
        f"{platform.python_version()}",
        what="Memory, network, time and cost of an alignment run on TPU slices, estimated without "
        "one.",
        curves=(
            _curve("Memory of a step", "GiB a chip", rows, lambda r: r.step_gib),
            _curve("Cost of the run", "chip-hours, at least", fitting, lambda r: r.chip_hours),
            _curve("Speed", "pairs a second, at most", fitting, lambda r: r.rate),
            _curve("Network", "GiB sent a chip and step", fitting, lambda r: r.sent_gib),
        ),
        columns=COLUMNS,
        rows=tuple(row.cells() for row in rows),
        notes=(HOW, *skipped),
    )
    write_figures(data, path)


def _curve(title: str, unit: str, rows: Sequence[Row], value: Callable[[Row], float]) -> Curve:
    """Returns a chart of a value against the number of chips, a line for each model and chip."""
    lines: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        label = f"{row.model}, {Topology.parse(row.plan.topology).kind}"
        lines.setdefault(label, []).append((row.plan.num_chips, value(row)))
    series = []
    for label, points in sorted(lines.items()):
        xs, ys = zip(*sorted(points), strict=True)
        series.append(Series(label, xs, ys))
    return Curve(title, "chips", unit, tuple(series))
