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
from seva_jax.plan.estimate import Plan, Rollout
from seva_jax.plan.roofline import Work
from seva_jax.plan.whole_run import Amounts
from seva_jax.report import Curve, FiguresData, Series, write_figures
from seva_jax.runtime.files import write_text

_GIB = 2**30
_STAGES = ("rollouts", "reference", "training", "evaluation")
COLUMNS = (
    *("model", "topology", "chips", "data x fsdp x tensor", "pairs/step", "fits"),
    *("step GiB/chip", "of memory", "GiB sent/chip", "s/step", "step binds", "pairs/s"),
    *("answering data x tensor", "rows", "rows that fit", "rollout GiB/chip"),
    *("ms/token step", "token step binds", "ms/prefill"),
    *(f"{name} min" for name in _STAGES),
    *("whole run min", "chip-hours", "min at measured rates"),
)
HOW = (
    "On TPU slices memory and collectives are read from the run's own programs, compiled by XLA "
    "for the slice; on GPUs they are counted from shapes. Operations and bytes to and from memory "
    "are counted from shapes. Times are rooflines, lower bounds: the longest of compute, memory "
    "and network at the chip's published peak rates, as if the others hid behind it and the "
    "network between slices were as fast as that within a slice. Real steps take longer. The whole "
    "run is the sum of rollouts, reference, training and evaluation; loading, compiling, preparing "
    "images and saving come on top."
)


@dataclasses.dataclass(frozen=True)
class Row:
    """A plan with the name of what was planned.

    Attributes:
        model: size and what is trained, such as "13b full".
        plan: the plan.
        amounts: how much the run has of everything.
    """

    model: str
    plan: Plan
    amounts: Amounts

    @property
    def mesh(self) -> str:
        """The sizes of the mesh axes data, fsdp and tensor."""
        return " x ".join(map(str, self.plan.mesh))

    @property
    def answering(self) -> str:
        """The groups of chips that answer, and the chips of a group."""
        rollout = self.plan.rollout
        return f"{rollout.layout.data} x {rollout.layout.tensor}" if rollout else "-"

    @property
    def answering_words(self) -> str:
        """The same in words, after a comma; empty if answering is not planned."""
        rollout = self.plan.rollout
        return f", answering {self.answering} with {rollout.layout.rows} rows" if rollout else ""

    @property
    def step_gib(self) -> float:
        """Memory of a step on one chip, GiB."""
        return self.plan.step.memory.needed / _GIB

    @property
    def of_memory(self) -> str:
        """The same as a percentage of the chip's memory."""
        return f"{self.step_gib / self.plan.chip.hbm_gib:.0%}"

    @property
    def sent_gib(self) -> float:
        """What a chip sends in a step, GiB."""
        return self.plan.step.work.sent / _GIB

    @property
    def rate(self) -> float:
        """Pairs a second in training, at most."""
        return self.plan.batch_size / self.plan.step_seconds

    @property
    def chip_hours(self) -> float:
        """Chip-hours of the whole run, at least."""
        return self.plan.seconds * self.plan.num_chips / 3600

    def minutes(self, stage: str) -> str:
        """Returns the minutes of a stage, at least, or "-"."""
        times = [s.seconds(self.plan.chip) for s in self.plan.stages if s.name == stage]
        return f"{sum(times) / 60:.1f}" if times else "-"

    def cells(self) -> tuple[str, ...]:
        """Returns the text of each column of `COLUMNS`."""
        plan, rollout = self.plan, self.plan.rollout
        step = ("-",) * 4
        if plan.step.memory.fits:
            seconds = f"{plan.step_seconds:.2f}"
            step = (f"{self.sent_gib:.1f}", seconds, plan.binding, f"{self.rate:.0f}")
        answers = ("-",) * 7
        if rollout:
            layout = rollout.layout
            times = ("-",) * 3
            if rollout.memory.fits:
                token, prefill = (
                    x.seconds(plan.chip) * 1e3 for x in (layout.token, layout.prefill)
                )
                times = (f"{token:.2f}", layout.token.binds(plan.chip), f"{prefill:.0f}")
            rows = (str(layout.rows), str(rollout.rows_that_fit))
            answers = (self.answering, *rows, f"{rollout.memory.needed / _GIB:.2f}", *times)
        run = ("-",) * 3
        if plan.stages:
            slower = plan.measured_seconds
            measured = "-" if slower is None else f"{slower / 60:.1f}"
            run = (f"{plan.seconds / 60:.1f}", f"{self.chip_hours:.1f}", measured)
        return (
            self.model,
            plan.topology,
            str(plan.num_chips),
            self.mesh,
            str(plan.batch_size),
            "yes" if plan.fits else "NO",
            f"{self.step_gib:.2f}",
            self.of_memory,
            *step,
            *answers,
            *map(self.minutes, _STAGES),
            *run,
        )


def describe(row: Row) -> str:
    """Returns a plan in full, several lines of text; `launch/README.md` explains them."""
    plan, step = row.plan, row.plan.step
    memory, chips = step.memory, f"{plan.num_chips} chip{'s' * (plan.num_chips > 1)}"
    parts = f"arguments {memory.arguments / _GIB:.2f}, temporaries {memory.temporaries / _GIB:.2f}"
    lines = [
        f"{row.model} on {plan.topology}: {chips}, mesh {row.mesh} (data x fsdp x tensor), "
        f"{plan.batch_size} pairs a step; memory and network are {_origin(plan)}",
        f"  step        {row.step_gib:.2f} GiB of {plan.chip.hbm_gib} GiB a chip "
        f"({row.of_memory}): {parts if memory.fits else 'DOES NOT FIT'}",
        f"  compute     {step.model_flops / 1e12:,.0f} TFLOP a step, "
        f"{step.hardware_flops / 1e12:,.0f} with what is computed twice (remat {step.remat})",
    ]
    if memory.fits:
        if plan.num_chips > 1:
            kinds = ", ".join(f"{kind} {x / _GIB:.2f}" for kind, x in step.sent.items())
            lines.append(f"  network     {row.sent_gib:.2f} GiB sent a chip and step: {kinds}")
        lines.append(
            f"  roofline    {_limits(step.work, plan, 's', 1)}: {plan.step_seconds:.2f} s a step, "
            f"{row.rate:.0f} pairs/s"
        )
    if plan.rollout:
        lines += _rollout_lines(plan, plan.rollout)
    if plan.stages:
        lines += _stage_lines(row)
    return "\n".join(lines)


def _origin(plan: Plan) -> str:
    """Returns where memory and network of a plan are from."""
    return "those of compiled programs" if plan.compiled else "counted from shapes"


def _rollout_lines(plan: Plan, rollout: Rollout) -> list[str]:
    """Returns the lines about answering."""
    layout, memory = rollout.layout, rollout.memory
    one = "the weights whole on each chip"
    shared = f"the weights shared by {layout.tensor} chips" if layout.tensor > 1 else one
    lines = [
        f"  rows        {layout.rows} answered together, {shared}: "
        f"{memory.needed / _GIB:.2f} GiB a chip{'' if memory.fits else ', DOES NOT FIT'}; "
        f"{rollout.rows_that_fit} rows fit",
        f"  evaluating  as many rows after alignment, with short answers: "
        f"{layout.evaluated / _GIB:.2f} GiB a chip, counted"
        f"{'' if rollout.evaluation_fits else ', DOES NOT FIT: evaluate with fewer rows'}",
    ]
    if memory.fits:
        for name, work, what in (
            ("token step", layout.token, f"{layout.rows} rows with {layout.slots} positions"),
            ("prefill", layout.prefill, f"{layout.fresh} rows of {layout.prompt} tokens"),
        ):
            time = work.seconds(plan.chip) * 1e3
            lines.append(f"  {name:<11} {time:.2f} ms for {what}: {_limits(work, plan, 'ms', 1e3)}")
    return lines


def _stage_lines(row: Row) -> list[str]:
    """Returns a line for each stage, and one for the whole run."""
    plan, chip = row.plan, row.plan.chip
    lines = []
    for stage in plan.stages:
        parts = ""
        if len(stage.parts) > 1:
            prefill, tokens = (
                sum(work.seconds(chip) for kind, work in stage.parts if (kind == "forward") == yes)
                / 60
                for yes in (True, False)
            )
            parts = f" (prefill {prefill:.1f}, token steps {tokens:.1f})"
        lines.append(f"  {stage.name:<11} {stage.seconds(chip) / 60:.1f} min{parts}: {stage.what}")
    lines.append(
        f"  whole run   {plan.seconds / 60:.1f} min, {row.chip_hours:.1f} chip-hours, at least: "
        + " + ".join(stage.name for stage in plan.stages)
    )
    measured, slower = chip.measured, plan.measured_seconds
    if measured and slower is not None:
        each = " + ".join(f"{(x.measured_seconds(chip) or 0) / 60:.1f}" for x in plan.stages)
        lines.append(
            f"  measured    {slower / 60:.1f} min ({each}) at the rates {measured.source}: "
            f"{measured.training:.0%} of the peak operations in training with remat layers, "
            f"{measured.training_kept:.0%} with less, {measured.forward:.0%} in passes without "
            f"gradients; {measured.decoding:.0%} of the peak bytes in token steps, "
            f"{measured.decoding_int8:.0%} with the int8 cache"
        )
    return lines


def _limits(work: Work, plan: Plan, unit: str, factor: float) -> str:
    """Returns the time that each limit allows, and which binds."""
    limits = work.limits(plan.chip)
    if plan.num_chips == 1:
        limits.pop(plan.chip.network)
    times = ", ".join(f"{name} {seconds * factor:.2f} {unit}" for name, seconds in limits.items())
    return f"{times}, {work.binds(plan.chip)} binds"


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
    stepping = [row for row in rows if row.plan.step.memory.fits]
    fitting = [row for row in rows if row.plan.fits]
    libtpu = f"libtpu {version('libtpu')}, " if any(row.plan.compiled for row in rows) else ""
    data = FiguresData(
        title="What the run needs",
        subtitle=f"jax {version('jax')}, {libtpu}Python {platform.python_version()}",
        what="Memory, network, time and cost of an alignment run on TPU slices and GPUs, estimated "
        "without one.",
        curves=(
            _curve("Memory of a step", "GiB a chip", rows, lambda r: r.step_gib),
            _curve("Time of the run", "minutes, at least", fitting, lambda r: r.plan.seconds / 60),
            _curve("Cost of the run", "chip-hours, at least", fitting, lambda r: r.chip_hours),
            _curve("Speed", "pairs a second, at most", stepping, lambda r: r.rate),
            _curve("Network", "GiB sent a chip and step", stepping, lambda r: r.sent_gib),
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
