"""Trajectories of actions, ranked by a score and made into pairs of steps (GRAPE).

What lives here: the file format, the score (`Gcpg`), and how two trajectories become comparisons.
What does not: the objective (`seva_jax/objectives/trajectory.py`), which says what order of
branches it expects.

A file is a JSON list or JSON lines; a record is one task from one initial state:

    {"id": "7", "task": "put the spoon on the towel", "trajectories": [
        {"steps": [{"images": ["7/a/0.png"], "action": [0.1, -0.2, 0.0]}, ...],
         "success": true, "log_prob": -31.5,
         "stages": [[[12.0, 10.0]], [[3.0, 5.0], [0.0, 1.0]]]},
        ...]}

`stages` lists the costs of every stage as `[cost, threshold]`. A trajectory with a number in
`score` needs no `success`, `log_prob` or `stages`. A record with `chosen` and `rejected` in place
of `trajectories` says itself which one is better, and nothing is ranked. An action is a text, or a
list of numbers (see `binned`).
"""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, NamedTuple

import numpy as np
from typing_extensions import override

from seva_jax.data.collect import (
    Images,
    as_object,
    id_of,
    images_of,
    number_of,
    preference_set,
    text_of,
)
from seva_jax.data.fields import given
from seva_jax.data.sources import PreferenceSet, PreferenceSource
from seva_jax.data.tables import open_table
from seva_jax.images.load import FollowsLinks
from seva_jax.ranges import FROM_0, FROM_1
from seva_jax.types import Comparison, DataError, ExampleError, Prompt, View

PLACE = "{task}"


class Step(NamedTuple):
    """What the policy saw in one step, and what it did.

    Attributes:
        images: names of the images.
        action: the action as text.
    """

    images: tuple[str, ...]
    action: str


class Outcome(NamedTuple):
    """The facts about a finished trajectory that its score depends on.

    Attributes:
        log_prob: log-prob (natural logarithm) of the trajectory under the policy that made it.
        stages: the costs of every stage of the task, each as (cost, threshold).
        success: whether the task was completed.
    """

    log_prob: float
    stages: tuple[tuple[tuple[float, float], ...], ...]
    success: bool


@dataclasses.dataclass(frozen=True)
class Gcpg:
    """The score that trajectories are ranked by (GRAPE's guided-cost preference generation).

    `likelihood log p + prod_stage exp(-sum_c cost max(0, c - threshold)) + success [done]`
    (arXiv 2411.19309). The costs of a stage were proposed by a vision-language model, such as
    distances to keypoints, and measured outside of this package.

    Attributes:
        likelihood: weight of the log-prob.
        cost: weight of the amount by which a cost exceeds its threshold.
        success: added to the score if the task was completed.
    """

    likelihood: Annotated[float, FROM_0] = 0.01
    cost: Annotated[float, FROM_0] = 0.01
    success: Annotated[float, FROM_0] = 5.0

    def __call__(self, outcome: Outcome) -> float:
        """Returns the score; higher is better.

        It is rounded to 9 decimals, so that equal trajectories score alike whatever the order of
        their costs: sums of the same numbers in another order differ in the last bits.
        """
        above = sum(max(0.0, c - top) for stage in outcome.stages for c, top in stage)
        # The product over stages of exponentials is the exponential of one sum.
        costs = math.exp(-self.cost * above)
        return round(self.likelihood * outcome.log_prob + costs + self.success * outcome.success, 9)


def binned(values: Sequence[float], low: float = -1.0, high: float = 1.0, bins: int = 256) -> str:
    """Returns the bins that numbers fall into, as words from "0" to `bins - 1`.

    The edges are `bins` equally spaced numbers from low to high, as in OpenVLA, the policy of
    GRAPE. So there are `bins - 1` intervals, the last bin has `high` alone, and numbers outside
    [low, high] become the nearest end. OpenVLA writes bin i as the id `vocabulary size - 1 - i`
    instead of a decimal number: to train it, give the text of those ids as the action.

    >>> binned([-1.0, -0.001, 0.0, 0.999, 1.0])
    '0 127 127 254 255'
    """
    edges = np.linspace(low, high, bins)
    numbers = np.digitize(np.clip(np.asarray(values, float), low, high), edges) - 1
    return " ".join(map(str, numbers.tolist()))


def step_pairs(
    prompt: Prompt, chosen: Sequence[Step], rejected: Sequence[Step], window: int, stride: int = 1
) -> Iterator[Comparison]:
    """Yields comparisons of two trajectories, one for each window of steps.

    The branches are chosen step 1, rejected step 1, chosen step 2, and so on; the two actions of a
    step share a tree if they followed the same images. Steps without a counterpart and windows
    without a difference are left out. An id is the prompt's, "#" and the number of the window's
    first step, from 0.

    Args:
        prompt: the task in words, without images.
        chosen: the better trajectory.
        rejected: the worse trajectory.
        window: steps of a comparison; fewer steps make none.
        stride: steps from the start of a window to the start of the next; GRAPE's is 1, so windows
            overlap.
    """
    both = list(zip(chosen, rejected, strict=False))
    for start in range(0, len(both) - window + 1, stride):
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
class TrajectoryPairs(FollowsLinks, PreferenceSource):
    """Trajectories of a task from one initial state, the best paired with the worst.

    Records whose trajectories all score alike or are shorter than a window, or that lack a field,
    are left out and counted; the extra steps of the longer trajectory of a pair are noted.
    `seva_jax/data/trajectories.py` documents the format.

    Attributes:
        path: the file.
        image_root: folder the image names are relative to.
        question: question at every step; "{task}" is the record's task.
        judge: score that trajectories are ranked by.
        pairs: at most this many pairs of each task: best and worst, second best and second worst,
            and so on.
        window: steps of a comparison; 8 as published.
        stride: steps from the start of a window to the start of the next. With 1, as in the
            release, 20 steps make 13 windows of 8; with `window`, windows do not overlap.
        low: lower end of the range of actions given in numbers.
        high: upper end of that range.
        split: the split to read of a folder that holds several, such as "train".
    """

    path: str = ""
    image_root: str = ""
    question: str = "What action should the robot take to {task}?"
    judge: Gcpg = Gcpg()
    pairs: Annotated[int, FROM_1] = 1
    window: Annotated[int, FROM_1] = 8
    stride: Annotated[int, FROM_1] = 1
    low: float = -1.0
    high: float = 1.0
    split: str = dataclasses.field(default="", kw_only=True)

    @override
    def open(self) -> PreferenceSet:
        if self.low >= self.high:
            raise DataError(f"TrajectoryPairs: low {self.low} must be below high {self.high}")
        table = open_table(self.path, self.image_root, self.split, self.link_roots)
        notes: collections.Counter[str] = collections.Counter()
        records = (
            (where, self._parse(record, table.images, notes)) for where, record in table.records
        )
        return preference_set(self.path, table.images, records, notes=notes)

    def _parse(
        self, value: Any, images: Images, notes: collections.Counter[str]
    ) -> Iterator[Comparison]:
        record = as_object(value)
        question = self.question.replace(PLACE, text_of(record, "task"))
        prompt = Prompt(id_of(record), question, ())
        if "trajectories" in record or not {"chosen", "rejected"} & set(record):
            pairs = self._ranked(given(record, "trajectories", "no trajectories"))
        else:
            sides = (given(record, side, "no trajectories") for side in ("chosen", "rejected"))
            good, bad = map(as_object, sides)
            pairs = [(good, bad)]
        for number, (good, bad) in enumerate(pairs):
            chosen, rejected = self._steps(good), self._steps(bad)
            for name in {name for step in (*chosen, *rejected) for name in step.images}:
                images.check(name)
            own = prompt if not number else dataclasses.replace(prompt, id=f"{prompt.id}@{number}")
            if min(len(chosen), len(rejected)) < self.window:
                raise ExampleError(
                    f"a trajectory has fewer than {self.window} steps; lower window, or leave the "
                    "record out",
                    "short trajectory",
                )
            windows = list(step_pairs(own, chosen, rejected, self.window, self.stride))
            if not windows:
                raise ExampleError("both trajectories do the same", "equal trajectories")
            if len(chosen) != len(rejected):
                notes["steps without partner"] += abs(len(chosen) - len(rejected))
            yield from windows

    @override
    @classmethod
    def recognizes(cls, record: Mapping[str, Any]) -> bool:
        sides = (record.get("chosen"), record.get("rejected"))
        return "task" in record and (
            "trajectories" in record or all(isinstance(x, dict) and "steps" in x for x in sides)
        )

    def _ranked(self, trajectories: Any) -> list[tuple[dict[str, Any], dict[str, Any]]]:
        """Returns pairs of a better and a worse trajectory."""
        if not isinstance(trajectories, list) or len(trajectories) < 2:
            raise ExampleError("trajectories must list at least two", "no trajectories")
        scored = [(self._score(as_object(each)), each) for each in trajectories]
        order = sorted(scored, key=lambda x: -x[0])  # of equal scores the first stays first
        half = range(min(self.pairs, len(order) // 2))
        pairs = [(order[i], order[-1 - i]) for i in half]
        kept = [(good[1], bad[1]) for good, bad in pairs if good[0] > bad[0]]
        if not kept:
            raise ExampleError("all trajectories score alike", "equal scores")
        return kept

    def _score(self, trajectory: dict[str, Any]) -> float:
        given = trajectory.get("score")
        score = self.judge(_outcome(trajectory)) if given is None else number_of(given, "score")
        if not math.isfinite(score):
            raise ExampleError("a score is not finite; look at its costs", "no score")
        return score

    def _steps(self, trajectory: dict[str, Any]) -> list[Step]:
        steps = given(trajectory, "steps", "no steps")
        if not isinstance(steps, list) or not steps:
            raise ExampleError("steps must list at least one step", "no steps")
        return [Step(images_of(step), self._action(step)) for step in map(as_object, steps)]

    def _action(self, step: dict[str, Any]) -> str:
        action = given(step, "action", "no action")
        if isinstance(action, list) and action:
            values = [number_of(value, "action", "no action") for value in action]
            return binned(values, self.low, self.high)
        if not isinstance(action, str) or not action.strip():
            raise ExampleError("action must be a text or a list of numbers", "no action")
        return action.strip()


def _outcome(trajectory: dict[str, Any]) -> Outcome:
    stages, success = trajectory.get("stages"), given(trajectory, "success", "no score")
    if not isinstance(success, bool):
        raise ExampleError("success must be true or false", "no score")
    try:
        costs = tuple(
            tuple((number_of(cost, "stages"), number_of(top, "stages")) for cost, top in stage)
            for stage in stages or ()
        )
    except ExampleError:
        raise
    except (TypeError, ValueError) as error:
        message = "stages must list [cost, threshold] for every stage"
        raise ExampleError(message, "no score") from error
    return Outcome(number_of(trajectory.get("log_prob"), "log_prob"), costs, success)
