"""Answers scored by a judge: a Python function, or a large model.

What lives here: `Judge` (the extension point), `LocalJudge`, and `Judged`, the evaluator that lets
a judge score answers. What does not: talking to an endpoint (`endpoint.py`), what each benchmark
asks a judge (`suites/judged.py`). Read next: `endpoint.py`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

from typing_extensions import override

from seva_jax.evals.base import Evaluator, Ratio, Record, each_category, meta_fields
from seva_jax.runtime.processes import say
from seva_jax.types import DataError, ExampleError, Prompt


class Case(NamedTuple):
    """One question whose answers a judge scores.

    Attributes:
        instructions: what to score and by what criteria.
        question: the question as the model was asked.
        reference: the right answer, or what is known about the image.
        answers: the answers to score, with one score each.
        low: lowest possible score.
        high: highest possible score.
    """

    instructions: str
    question: str
    reference: str
    answers: tuple[str, ...]
    low: float
    high: float


class Verdict(NamedTuple):
    """A judge's scores of one case.

    Attributes:
        scores: one for each answer, within the case's scale.
        explanation: the reasons in the judge's words; may be empty.
    """

    scores: tuple[float, ...]
    explanation: str = ""


@dataclasses.dataclass(frozen=True)
class Judge:
    """Base class of judges. Subclass to add one."""

    def __call__(self, case: Case) -> Verdict:
        """Scores the answers of one case.

        Raises:
            ExampleError: this case gets no verdict; the other cases are still scored.
            DataError: the judge cannot be used at all.
        """
        raise NotImplementedError(f"{type(self).__name__} must define __call__")

    def all(self, cases: Sequence[Case]) -> list[Verdict | ExampleError]:
        """Returns each case's verdict, or why there is none. Override to ask many at once."""
        return [self.checked(case) for case in cases]

    def checked(self, case: Case) -> Verdict | ExampleError:
        """Returns the verdict of one case, or why there is no valid one."""
        try:
            return check(self(case), case)
        except ExampleError as error:
            return error


def check(verdict: Verdict, case: Case) -> Verdict:
    """Returns the verdict if it is valid.

    Raises:
        ExampleError: there is not one score per answer, or a score is outside the scale.
    """
    if len(verdict.scores) != len(case.answers):
        raise ExampleError(
            f"{len(verdict.scores)} scores for {len(case.answers)} answers; one each is required",
            "wrong number of scores",
        )
    if not all(case.low <= score <= case.high for score in verdict.scores):
        raise ExampleError(
            f"scores {verdict.scores} are not all in {case.low:g} to {case.high:g}",
            "score out of range",
        )
    return verdict


def exact_or_nothing(case: Case) -> Verdict:
    """Gives the highest score to answers equal to the reference, ignoring case, else the lowest."""
    right = case.reference.strip().lower()
    scores = (case.high if a.strip().lower() == right else case.low for a in case.answers)
    return Verdict(tuple(scores))


@dataclasses.dataclass(frozen=True)
class LocalJudge(Judge):
    """A Python function as a judge.

    Attributes:
        function: takes a `Case` and returns a `Verdict` or raises `ExampleError`. Define it at the
            top level of an importable module, so that the saved config can refer to it by name.
    """

    function: Callable[[Case], Verdict] = exact_or_nothing

    @override
    def __call__(self, case: Case) -> Verdict:
        return self.function(case)


@dataclasses.dataclass(frozen=True)
class Judged(Evaluator):
    """Lets a judge score every answer, given `meta["reference"]`.

    Metrics: `score`, the mean score unless `ratio` is overridden; `unjudged`, the share of answers
    without a verdict, which `score` does not count; `length` in words; `score` within every
    category of the fields in `by`.

    Attributes:
        judge: scores the answers.
        instructions: tells the judge what to score and by what criteria.
        low: lowest possible score.
        high: highest possible score.
        by: fields of `meta` that hold a category or a list of several; the score is also reported
            within each category.
    """

    judge: Judge = LocalJudge()
    instructions: str = ""
    low: float = 0.0
    high: float = 1.0
    by: tuple[str, ...] = ()

    @override
    def truth(self, prompt: Prompt) -> str:
        """Returns the reference that the judge sees."""
        reference = prompt.meta.get("reference")
        if not isinstance(reference, str):
            raise DataError(f"{self.name}: prompt {prompt.id!r} has no text in meta['reference']")
        return reference

    def ratio(self) -> Ratio:
        """Returns how `score` follows from the fields of `record`, all 0 without a verdict."""
        return Ratio("higher", ("score",), ("judged",))

    def answers(self, prompt: Prompt, answer: str) -> tuple[str, ...]:
        """Returns what the judge scores of a model's answer; if empty, the judge is not asked."""
        return (answer.strip(),)

    def record(self, verdict: Verdict) -> Record:
        """Returns the numbers of one verdict, which `ratio` adds up."""
        return {"score": verdict.scores[0]}

    @override
    def definitions(self, prompts: Sequence[Prompt]) -> dict[str, Ratio]:
        score = {"score": self.ratio()}
        metrics = dict(score)
        metrics["unjudged"] = Ratio("lower", ("unjudged",), ("count",))
        metrics["length"] = Ratio("neither", ("words",), ("count",))
        for field in self.by:
            metrics |= each_category(score, prompts, field)
        return metrics

    @override
    def scores(self, prompts: Sequence[Prompt], answers: Sequence[str]) -> list[Record]:
        """Scores all answers in one call of the judge, which may then work in parallel."""
        low, high = self.low, self.high
        cases = [
            Case(self.instructions, p.question, self.truth(p), self.answers(p, a), low, high)
            for p, a in zip(prompts, answers, strict=True)
        ]
        given = iter(self.judge.all([case for case in cases if case.answers]))
        verdicts = [next(given) if case.answers else Verdict(()) for case in cases]
        failed = [v for v in verdicts if isinstance(v, ExampleError)]
        if failed:
            say(f"  {self.name}: {len(failed)} answers have no verdict; the first: {failed[0]}")
        fields = (*self.ratio().numerator, *self.ratio().denominator)
        return [
            meta_fields(prompt, "question_id", *self.by)
            | {"words": len(answer.split()), "judged": 0, "unjudged": 0}
            | (
                dict.fromkeys(fields, 0) | {"unjudged": 1, "why": verdict.reason}
                if isinstance(verdict, ExampleError)
                else self.record(verdict) | {"judged": 1, "explanation": verdict.explanation}
            )
            for prompt, answer, verdict in zip(prompts, answers, verdicts, strict=True)
        ]
