"""Answers scored by somebody else: a program of yours, or a large model.

What lives here: `Judge` (the extension point), `LocalJudge`, and `Judged`, the evaluator that
puts answers to a judge. What does not: talking to an endpoint (`endpoint.py`), what each
benchmark asks a judge (`suites/judged.py`). Read next: `endpoint.py`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

from seva_jax.evals.base import Evaluator, Ratio, Record, each_category
from seva_jax.runtime.processes import say
from seva_jax.types import DataError, ExampleError, Prompt


class Case(NamedTuple):
    """What a judge is asked about one question.

    Attributes:
        instructions: what to judge and on what scale.
        question: as the model was asked.
        reference: the right answer, or what is known about the image.
        answers: to be scored, one score each.
        low: least score.
        high: greatest score.
    """

    instructions: str
    question: str
    reference: str
    answers: tuple[str, ...]
    low: float
    high: float


class Verdict(NamedTuple):
    """What a judge said.

    Attributes:
        scores: one for each answer, within the case's scale.
        explanation: in the judge's words; may be empty.
    """

    scores: tuple[float, ...]
    explanation: str = ""


@dataclasses.dataclass(frozen=True)
class Judge:
    """Base class of judges. Subclass to add one."""

    def __call__(self, case: Case) -> Verdict:
        """Scores the answers of one case.

        Raises:
            ExampleError: this case has no verdict; the others go on.
            DataError: the judge cannot be used at all.
        """
        raise NotImplementedError(f"{type(self).__name__} must define __call__")

    def all(self, cases: Sequence[Case]) -> list[Verdict | ExampleError]:
        """A verdict for each case, or why there is none. Override to ask many at once."""
        return [self.checked(case) for case in cases]

    def checked(self, case: Case) -> Verdict | ExampleError:
        """The verdict of one case, if it is one."""
        try:
            return check(self(case), case)
        except ExampleError as error:
            return error


def check(verdict: Verdict, case: Case) -> Verdict:
    """The verdict itself.

    Raises:
        ExampleError: not one score for each answer, or a score outside the scale.
    """
    if len(verdict.scores) != len(case.answers):
        raise ExampleError(
            f"{len(verdict.scores)} scores for {len(case.answers)} answers; a judge gives one each",
            "wrong number of scores",
        )
    if not all(case.low <= score <= case.high for score in verdict.scores):
        raise ExampleError(
            f"scores {verdict.scores} are not all in {case.low:g} to {case.high:g}",
            "score out of range",
        )
    return verdict


def exact_or_nothing(case: Case) -> Verdict:
    """The highest score for an answer that equals the reference but for case, else the lowest."""
    right = case.reference.strip().lower()
    return Verdict(
        tuple(case.high if a.strip().lower() == right else case.low for a in case.answers)
    )


@dataclasses.dataclass(frozen=True)
class LocalJudge(Judge):
    """A Python function as a judge.

    Attributes:
        function: takes a `Case`, gives a `Verdict` or raises `ExampleError`; defined at the top
            of an importable module, so that the written config can name it.
    """

    function: Callable[[Case], Verdict] = exact_or_nothing

    def __call__(self, case: Case) -> Verdict:
        """See `Judge`."""
        return self.function(case)


@dataclasses.dataclass(frozen=True)
class Judged(Evaluator):
    """Puts every answer to a judge.

    The prompt's `meta["reference"]` is what the judge is told. Metrics: `score`, the mean of what
    `record` makes of the verdicts; `unjudged`, the share of answers without a verdict, which no
    other metric counts; `length` in words; `score` of every category of the fields in `by`.

    Attributes:
        judge: who scores.
        instructions: what to judge.
        low: least score.
        high: greatest score.
        by: fields of `meta` that hold a category, or a list of several.
    """

    judge: Judge = LocalJudge()
    instructions: str = ""
    low: float = 0.0
    high: float = 1.0
    by: tuple[str, ...] = ()

    def truth(self, prompt: Prompt) -> str:
        """What the judge is told."""
        reference = prompt.meta.get("reference")
        if not isinstance(reference, str):
            raise DataError(f"{self.name}: prompt {prompt.id!r} has no text in meta['reference']")
        return reference

    def ratio(self) -> Ratio:
        """How `score` follows from what `record` gives, which is 0 where there is no verdict."""
        return Ratio("higher", ("score",), ("judged",))

    def answers(self, prompt: Prompt, answer: str) -> tuple[str, ...]:
        """What the judge scores, given the model's answer; nothing means it is not asked."""
        return (answer.strip(),)

    def record(self, verdict: Verdict) -> Record:
        """The numbers of one verdict that `ratio` adds up."""
        return {"score": verdict.scores[0]}

    def definitions(self, prompts: Sequence[Prompt]) -> dict[str, Ratio]:
        """See the class."""
        score = {"score": self.ratio()}
        metrics = dict(score)
        metrics["unjudged"] = Ratio("lower", ("unjudged",), ("count",))
        metrics["length"] = Ratio("neither", ("words",), ("count",))
        for field in self.by:
            metrics |= each_category(score, prompts, field)
        return metrics

    def scores(self, prompts: Sequence[Prompt], answers: Sequence[str]) -> list[Record]:
        """See `Evaluator`; asks the judge about all answers at once, so that it may hurry."""
        cases = [
            Case(
                self.instructions,
                prompt.question,
                self.truth(prompt),
                self.answers(prompt, answer),
                self.low,
                self.high,
            )
            for prompt, answer in zip(prompts, answers, strict=True)
        ]
        found = iter(self.judge.all([case for case in cases if case.answers]))
        verdicts = [next(found) if case.answers else Verdict(()) for case in cases]
        failed = [v for v in verdicts if isinstance(v, ExampleError)]
        if failed:
            say(f"  {self.name}: {len(failed)} answers have no verdict; the first: {failed[0]}")
        fields = (*self.ratio().numerator, *self.ratio().denominator)
        return [
            {key: prompt.meta[key] for key in ("question_id", *self.by) if key in prompt.meta}
            | {"words": len(answer.split()), "judged": 0, "unjudged": 0}
            | (
                dict.fromkeys(fields, 0) | {"unjudged": 1, "why": verdict.reason}
                if isinstance(verdict, ExampleError)
                else self.record(verdict) | {"judged": 1, "explanation": verdict.explanation}
            )
            for prompt, answer, verdict in zip(prompts, answers, verdicts, strict=True)
        ]
