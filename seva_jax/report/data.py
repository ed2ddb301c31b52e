"""The content of the report page, as plain values.

What lives here: the frozen dataclasses that `render` takes, and their checks. What does not:
collecting them from a run (`run_report.py`), and any HTML. Read next: `page.py`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal, get_args

import numpy as np

from seva_jax.runtime.trace_summary import Summary
from seva_jax.types import DataError

Better = Literal["higher", "lower", "neither"]
Verdict = Literal["better", "worse", "same", "changed"]


def _check_image(image_HWC: np.ndarray, where: str) -> None:
    """Raises `DataError` unless the image is a non-empty uint8 RGB array."""
    shape, dtype = np.shape(image_HWC), getattr(image_HWC, "dtype", type(image_HWC).__name__)
    if dtype != np.uint8 or len(shape) != 3 or shape[2] != 3 or 0 in shape:
        raise DataError(
            f"{where}: an image must be uint8 [height, width, 3], got {dtype} {list(shape)}; "
            "convert it to RGB bytes first"
        )


def _check_choice(value: str, choices: tuple[str, ...], where: str) -> None:
    if value not in choices:
        raise DataError(f"{where}: {value!r} is not one of {', '.join(choices)}")


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage of the run.

    Attributes:
        name: its name, such as "pairs".
        seconds: wall-clock time in seconds.
        summary: one sentence about its result.
    """

    name: str
    seconds: float
    summary: str


@dataclasses.dataclass(frozen=True)
class TimeShare:
    """A part of the time since the run was first started.

    Attributes:
        name: what the time went into, such as "training".
        seconds: how long.
        kept: whether it counts as goodput.
    """

    name: str
    seconds: float
    kept: bool


@dataclasses.dataclass(frozen=True)
class Series:
    """One line of a chart.

    Attributes:
        label: name in the legend.
        xs: horizontal values, ascending.
        ys: vertical values, as many as `xs`; values that are not finite are counted, not drawn.
    """

    label: str
    xs: tuple[float, ...]
    ys: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.xs) != len(self.ys):
            raise DataError(
                f"series {self.label!r}: {len(self.xs)} xs but {len(self.ys)} ys; "
                "give one y for each x"
            )

    @classmethod
    def of_rows(cls, label: str, rows: Iterable[Mapping[str, Any]], x: str, y: str) -> Series:
        """Returns the line of two fields of rows, leaving out rows without `y`."""
        points = [(row[x], row[y]) for row in rows if y in row]
        return cls(label, tuple(x for x, _ in points), tuple(y for _, y in points))


@dataclasses.dataclass(frozen=True)
class Curve:
    """One chart.

    Attributes:
        title: heading of the chart.
        x_label: name and unit of the horizontal axis.
        y_label: name and unit of the vertical axis.
        series: the lines drawn in it.
    """

    title: str
    x_label: str
    y_label: str
    series: tuple[Series, ...]


@dataclasses.dataclass(frozen=True)
class Drop:
    """Candidate pairs left out for one reason.

    Attributes:
        reason: the reason in words, such as "both answers equal".
        count: number of pairs, at least 0.
    """

    reason: str
    count: int


@dataclasses.dataclass(frozen=True, eq=False)
class PairCard:
    """One preference pair of the gallery.

    With as many rejected answers as corrupted images, `rejected[i]` belongs to `corrupted[i]`.

    Attributes:
        id: the prompt's id.
        question: the question asked.
        clean: uint8 [H, W, 3], the image without corruption; None if it is missing.
        corrupted: uint8 [H, W, 3] each, the images of the rejected answers.
        chosen: the answer to the clean image.
        rejected: the answers to the corrupted images.
        margin_before: reward margin of the model before training: reward(chosen) minus the mean
            reward(rejected), with reward = beta * (log p_model - log p_reference) of the whole
            answer. 0 if the reference is the model before training.
        margin_after: reward margin of the trained model; NaN if it was not measured.
        truth: the correct answer, "" if unknown.
        corruptions: the corruption of each corrupted image, in a few words; as many as
            `corrupted`, or none if unknown.
    """

    id: str
    question: str
    clean: np.ndarray | None
    corrupted: tuple[np.ndarray, ...]
    chosen: str
    rejected: tuple[str, ...]
    margin_before: float
    margin_after: float
    truth: str = ""
    corruptions: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.corruptions and len(self.corruptions) != len(self.corrupted):
            raise DataError(
                f"pair {self.id!r}: {len(self.corruptions)} names of corruptions for "
                f"{len(self.corrupted)} corrupted images; give one for each, or none"
            )
        if self.clean is not None:
            _check_image(self.clean, f"pair {self.id!r}, clean")
        for index, image_HWC in enumerate(self.corrupted):
            _check_image(image_HWC, f"pair {self.id!r}, corrupted[{index}]")


@dataclasses.dataclass(frozen=True)
class Interval:
    """A measured value and its 95 % confidence interval; values not finite mean not measured.

    Attributes:
        value: the estimate.
        low: lower end.
        high: upper end.
    """

    value: float
    low: float
    high: float

    @property
    def measured(self) -> bool:
        """Whether all three are finite."""
        return all(map(math.isfinite, (self.value, self.low, self.high)))


@dataclasses.dataclass(frozen=True)
class EvalRow:
    """One row of the results table.

    Attributes:
        evaluation: the evaluation it belongs to; neighbouring rows of the same one are grouped.
        metric: name of the metric, with its unit if it has one.
        better: the direction that is an improvement.
        base: value of the model before alignment.
        aligned: value of the model after alignment.
        difference: aligned minus base, with the interval of the *paired* difference.
        repeats: other metrics of the evaluation that have exactly these numbers.
    """

    evaluation: str
    metric: str
    better: Better
    base: Interval
    aligned: Interval
    difference: Interval
    repeats: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check_choice(self.better, get_args(Better), f"row {self.metric!r}, better")


@dataclasses.dataclass(frozen=True)
class SingleRow:
    """A metric of an evaluation that only one model was asked, or that cannot be compared.

    Attributes:
        evaluation: the evaluation it belongs to.
        metric: name of the metric.
        model: the model that was asked.
        value: its value.
    """

    evaluation: str
    metric: str
    model: str
    value: Interval


@dataclasses.dataclass(frozen=True)
class RunVerdict:
    """The answer to "Did it help?".

    Attributes:
        sentence: the answer, in one sentence or a few.
        caveat: what the answer does not say.
        commands: what to run to know more, in order; () if nothing is missing.
    """

    sentence: str
    caveat: str
    commands: tuple[str, ...] = ()

    def lines(self) -> str:
        """Returns the verdict for a terminal."""
        commands = "".join(f"\n        {command}" for command in self.commands)
        return f"Did it help? {self.sentence}\n        {self.caveat}{commands}"


@dataclasses.dataclass(frozen=True, eq=False)
class ExampleCard:
    """One question answered before and after training.

    Attributes:
        id: the prompt's id.
        image: uint8 [H, W, 3]; None if it is missing.
        question: the question asked.
        truth: the correct answer, "" if unknown.
        base_answer: answer before training.
        aligned_answer: answer after training.
        verdict: "better" or "worse" if the scores say so; "changed" if the answer differs without
            being either; "same" otherwise.
        evaluation: the evaluation it belongs to, "" if there is only one.
        seen: what training has seen of it, in words; "" says nothing about it.
    """

    id: str
    image: np.ndarray | None
    question: str
    truth: str
    base_answer: str
    aligned_answer: str
    verdict: Verdict
    evaluation: str = ""
    seen: str = ""

    def __post_init__(self) -> None:
        if self.image is not None:
            _check_image(self.image, f"example {self.id!r}, image")
        _check_choice(self.verdict, get_args(Verdict), f"example {self.id!r}, verdict")


@dataclasses.dataclass(frozen=True)
class Profile:
    """A trace of JAX's profiler.

    Attributes:
        name: name of its folder.
        summary: what devices did meanwhile.
    """

    name: str
    summary: Summary


@dataclasses.dataclass(frozen=True, eq=False)
class ReportData:
    """Everything on the page; every text is shown as text, never interpreted as HTML.

    What is empty has no section on the page.

    Attributes:
        title: heading of the page.
        subtitle: one line under it, such as the config's name and the date.
        verdict: whether the run helped.
        facts: (label, value) of the run at a glance.
        changed: (dotted field, value) of the settings that are not at their defaults.
        config: (dotted field, value) of the others.
        stages: stages in the order they ran.
        times: where the time since the first start went.
        curves: charts of the training.
        profiles: traces that were taken.
        funnel: candidate pairs that were dropped, by reason.
        pairs_total: pairs *kept* for training; candidates are these plus the dropped ones.
        pairs: the kept pairs shown in the gallery, at most `pairs_total`.
        table: the results, in reading order.
        single: results that are not a comparison.
        own: answers to the run's own prompts before and after.
        examples: answers to questions of evaluations; the page sorts them by verdict.
        notes: remarks and cautions shown under the verdict.
        given: whether the answers of pairs came with the data instead of from the model.
    """

    title: str
    subtitle: str
    verdict: RunVerdict | None = None
    facts: tuple[tuple[str, str], ...] = ()
    changed: tuple[tuple[str, str], ...] = ()
    config: tuple[tuple[str, str], ...] = ()
    stages: tuple[Stage, ...] = ()
    times: tuple[TimeShare, ...] = ()
    curves: tuple[Curve, ...] = ()
    profiles: tuple[Profile, ...] = ()
    funnel: tuple[Drop, ...] = ()
    pairs_total: int = 0
    pairs: tuple[PairCard, ...] = ()
    table: tuple[EvalRow, ...] = ()
    single: tuple[SingleRow, ...] = ()
    own: tuple[ExampleCard, ...] = ()
    examples: tuple[ExampleCard, ...] = ()
    notes: tuple[str, ...] = ()
    given: bool = False
