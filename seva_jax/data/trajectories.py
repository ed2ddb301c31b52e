"""Trajectories of actions: ranked by a rule, and made into pairs of steps (GRAPE).

What lives here: the file format, the score (`Gcpg`), and how two trajectories become comparisons.
What does not: the objective (`objectives/trajectory.py`), which says what order of branches it
expects.

A file is a JSON list or JSON lines; a record is one task from one initial state:

    {"id": "7", "task": "put the spoon on the towel", "trajectories": [
        {"steps": [{"images": ["7/a/0.png"], "action": [0.1, -0.2, 0.0]}, ...],
         "success": true, "log_prob": -31.5,
         "stages": [[[12.0, 10.0]], [[3.0, 5.0], [0.0, 1.0]]]},
        ...]}

`stages` has the costs of every stage as `[cost, threshold]`. A trajectory with a number in `score`
needs no `success`, `log_prob` and `stages`. With `chosen` and `rejected` in place of
`trajectories`, which one is better is given and nothing is ranked. An action is a text, or a list
of numbers, see `binned`.
"""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, NamedTuple

import numpy as np

from seva_jax.data.collect import Images, as_object, id_of, images_of, preference_set, text_of
from seva_jax.data.sources import PreferenceSet, PreferenceSource
from seva_jax.data.tables import open_table
from seva_jax.ranges import FROM_0, FROM_1
from seva_jax.types import Comparison, DataError, ExampleError, Prompt, View

PLACE = "{task}"


class Step(NamedTuple):
    """What was seen, and what was done.

    Attributes:
        images: names of the images.
        action: as text.
    """

    images: tuple[str, ...]
    action: str


class Outcome(NamedTuple):
    """What is known of a finished trajectory.

    Attributes:
        log_prob: natural logarithm of the probability that the policy which made it gave it.
        stages: for every stage of the task, its costs as (cost, threshold).
        success: whether the task was done.
    """

    log_prob: float
    stages: tuple[tuple[tuple[float, float], ...], ...]
    success: bool


@dataclasses.dataclass(frozen=True)
class Gcpg:
    """The score that trajectories are ranked by (GRAPE's guided-cost preference generation).

    `likelihood log p + prod_stage exp(-sum_c cost max(0, c - threshold)) + success [done]`
    (arXiv 2411.19309). Costs of a stage are those a vision-language model proposed for it, such as
    distances to keypoints; they are measured outside of this package.

    Attributes:
        likelihood: weight of the log-probability.
        cost: weight of what a cost is above its threshold.
        success: what doing the task adds.
    """

    likelihood: Annotated[float, FROM_0] = 0.01
    cost: Annotated[float, FROM_0] = 0.01
    success: Annotated[float, FROM_0] = 5.0

    def __call__(self, outcome: Outcome) -> float:
        """The score; higher is better."""
        above = sum(max(0.0, c - top) for stage in outcome.stages for c, top in stage)
        # The product over stages of exponentials is the exponential of one sum.
        return (
            self.likelihood * outcome.log_prob
            + math.exp(-self.cost * above)
            + self.success * outcome.success
        )


def binned(values: Sequence[float], low: float = -1.0, high: float = 1.0, bins: int = 256) -> str:
    """Numbers as the words for the bins they fall into, from 0 to `bins - 1`.

    Bins are equally wide; numbers outside of [low, high] go to the outermost. GRAPE's policy,
    OpenVLA, writes bins as the last ids of Llama's vocabulary instead of as decimal numbers: to
    train one, give its own text for them as the action.

    >>> binned([-1.0, -0.001, 0.0, 1.0])
    '0 127 128 255'
    """
    shares = (np.asarray(values, float) - low) / (high - low)
    numbers = np.floor(shares * bins).clip(0, bins - 1).astype(int)
    return " ".join(map(str, numbers.tolist()))


def step_pairs(
    prompt: Prompt, chosen: Sequence[Step], rejected: Sequence[Step], window: int
) -> Iterator[Comparison]:
    """Comparisons of two trajectories, one for each window of steps.

    Branches are chosen step 1, rejected step 1, chosen step 2, and so on; both of a step share a
    tree where they saw the same images. Steps that only one trajectory has are left out, and so
    are windows in which nothing differs. Ids are the prompt's, "#" and the number of the window's
    first step.

    Args:
        prompt: the task in words; images and steps follow.
        chosen: the better trajectory.
        rejected: the worse one.
        window: steps of a comparison; the last may have fewer.
    """
    both = list(zip(chosen, rejected, strict=False))
    for start in range(0, len(both), window):
        views: list[View] = []
        for number, (good, bad) in enumerate(both[start : start + window], start):
            seen = dataclasses.replace(prompt, id=f"{prompt.id}#{number}", images=good.images)
            if good.images == bad.images:
                views.append(View(seen, (good.action, bad.action)))
            else:
                other = dataclasses.replace(seen, images=bad.images)
                views += [View(seen, (good.action,)), View(other, (bad.action,))]
        if any(good != bad for good, bad in both[start : start + window]):
            first, *more = views
            yield Comparison(first.prompt, first.answers, more=tuple(more))


@dataclasses.dataclass(frozen=True)
class TrajectoryPairs(PreferenceSource):
    """Pairs of trajectories of a task from one initial state: the best scored against the worst.

    A record whose trajectories all score alike, or that lacks something, is counted and left out;
    steps that only the longer one of two has are noted. See the module for the format.

    Attributes:
        path: the file.
        image_root: folder the image names are relative to.
        question: what is asked at every step; "{task}" is the record's task.
        judge: scores trajectories.
        pairs: of each task, at most so many pairs: best and worst, second best and second worst,
            and so on.
        window: steps of a comparison, as published.
        low: smallest value of an action given in numbers.
        high: largest value.
    """

    path: str = ""
    image_root: str = ""
    question: str = "What action should the robot take to {task}?"
    judge: Gcpg = Gcpg()
    pairs: Annotated[int, FROM_1] = 1
    window: Annotated[int, FROM_1] = 8
    low: float = -1.0
    high: float = 1.0

    def open(self) -> PreferenceSet:
        """See `PromptSource.open`."""
        if self.low >= self.high:
            raise DataError(f"TrajectoryPairs: low {self.low} must be below high {self.high}")
        table = open_table(self.path, self.image_root)
        notes: collections.Counter[str] = collections.Counter()
        records = (
            (where, self._parse(record, table.images, notes)) for where, record in table.records
        )
        return preference_set(self.path, table.images, records, notes=notes)

    def _parse(
        self, found: Any, images: Images, notes: collections.Counter[str]
    ) -> Iterator[Comparison]:
        record = as_object(found)
        question = self.question.replace(PLACE, text_of(record, "task"))
        prompt = Prompt(id_of(record), question, ())
        if "trajectories" in record:
            pairs = self._ranked(record["trajectories"])
        else:
            pairs = [(as_object(record.get("chosen")), as_object(record.get("rejected")))]
        for number, (good, bad) in enumerate(pairs):
            chosen, rejected = self._steps(good), self._steps(bad)
            for name in {name for step in (*chosen, *rejected) for name in step.images}:
                images.check(name)
            own = prompt if not number else dataclasses.replace(prompt, id=f"{prompt.id}@{number}")
            windows = list(step_pairs(own, chosen, rejected, self.window))
            if not windows:
                raise ExampleError("both trajectories do the same", "equal trajectories")
            if len(chosen) != len(rejected):
                notes["steps without partner"] += abs(len(chosen) - len(rejected))
            yield from windows

    def _ranked(self, found: Any) -> list[tuple[dict[str, Any], dict[str, Any]]]:
        """Pairs of better and worse."""
        if not isinstance(found, list) or len(found) < 2:
            raise ExampleError("trajectories must list at least two", "no trajectories")
        scored = [(self._score(as_object(each)), each) for each in found]
        order = sorted(scored, key=lambda x: -x[0])  # of equal scores the first stays first
        half = range(min(self.pairs, len(order) // 2))
        pairs = [(order[i], order[-1 - i]) for i in half]
        kept = [(good[1], bad[1]) for good, bad in pairs if good[0] > bad[0]]
        if not kept:
            raise ExampleError("all trajectories score alike", "equal scores")
        return kept

    def _score(self, trajectory: dict[str, Any]) -> float:
        given = trajectory.get("score")
        score = self.judge(_outcome(trajectory)) if given is None else _number(given, "score")
        if not math.isfinite(score):
            raise ExampleError("a score is not finite; look at its costs", "no score")
        return score

    def _steps(self, trajectory: dict[str, Any]) -> list[Step]:
        steps = trajectory.get("steps")
        if not isinstance(steps, list) or not steps:
            raise ExampleError("steps must list at least one step", "no steps")
        return [Step(images_of(step), self._action(step)) for step in map(as_object, steps)]

    def _action(self, step: dict[str, Any]) -> str:
        action = step.get("action")
        if isinstance(action, list) and action:
            values = [_number(value, "action", "no action") for value in action]
            return binned(values, self.low, self.high)
        if not isinstance(action, str) or not action.strip():
            raise ExampleError("action must be a text or a list of numbers", "no action")
        return action.strip()


def _number(value: Any, field: str, reason: str = "no score") -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ExampleError(f"{field} must hold finite numbers, not {value!r}", reason)
    return float(value)


def _outcome(trajectory: dict[str, Any]) -> Outcome:
    stages, success = trajectory.get("stages"), trajectory.get("success")
    if not isinstance(success, bool):
        raise ExampleError("success must be true or false", "no score")
    try:
        costs = tuple(
            tuple((_number(cost, "stages"), _number(top, "stages")) for cost, top in stage)
            for stage in stages or ()
        )
    except (TypeError, ValueError) as error:
        if isinstance(error, ExampleError):
            raise
        raise ExampleError("stages must list [cost, threshold] for every stage", "no score") from (
            error
        )
    return Outcome(_number(trajectory.get("log_prob"), "log_prob"), costs, success)
