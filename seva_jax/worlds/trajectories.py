"""Trajectories in the world: several images are described one after the other, well or badly.

What lives here: `WorldTrajectories`, on which methods that compare trajectories run. What does not:
the world (`shapes.py`), the score and the pairs (`seva_jax/data/trajectories.py`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Annotated

import numpy as np
from typing_extensions import override

from seva_jax.data.sources import PreferenceSet, PreferenceSource
from seva_jax.data.trajectories import Gcpg, Outcome, Step, step_pairs
from seva_jax.ranges import FROM_1
from seva_jax.types import Comparison, Prompt
from seva_jax.worlds.pairs import wrong_answer
from seva_jax.worlds.shapes import ShapeWorld, WorldPrompts


@dataclasses.dataclass(frozen=True)
class WorldTrajectories(PreferenceSource):
    """A task is to describe some images in turn; of several attempts, the best against the worst.

    An attempt gets each step wrong with its own probability. Every step is a stage whose one cost
    is the share of what is said that is false, in percent; the task is done if nothing is false.

    Attributes:
        world: the world.
        split: its name keeps the images of different splits apart.
        num: how many tasks.
        steps: images of a task.
        mistakes: of each attempt, how likely a step is wrong.
        judge: scores attempts.
        window: steps of a comparison.
    """

    world: ShapeWorld = ShapeWorld()
    split: str = "trajectories"
    num: Annotated[int, FROM_1] = 1000
    steps: Annotated[int, FROM_1] = 8
    mistakes: tuple[float, ...] = (0.1, 0.5, 0.9)
    judge: Gcpg = Gcpg()
    window: Annotated[int, FROM_1] = 8

    @override
    def open(self) -> PreferenceSet:
        num = self.num * self.steps
        data = WorldPrompts(self.world, self.split, False, ("describe",), num).open()
        prompts = list(data.prompts)
        tasks = [prompts[i : i + self.steps] for i in range(0, num, self.steps)]
        pairs = [pair for number, task in enumerate(tasks) for pair in self._pairs(task, number)]
        return PreferenceSet([c.prompt for c in pairs], data.load_image, comparisons=pairs)

    def _pairs(self, task: list[Prompt], number: int) -> Iterator[Comparison]:
        rng = self.world.rng("attempts", self.split, number)
        attempts = [self._attempt(task, mistakes, rng) for mistakes in self.mistakes]
        order = sorted(attempts, key=lambda x: -self.judge(x[1]))
        prompt = Prompt(f"{self.split}/{number}", task[0].question, ())
        return step_pairs(prompt, order[0][0], order[-1][0], self.window)

    def _attempt(
        self, task: list[Prompt], mistakes: float, rng: np.random.Generator
    ) -> tuple[list[Step], Outcome]:
        steps, stages = [], []
        for prompt in task:
            action, true = str(prompt.meta["answer"]), 1.0
            if rng.random() < mistakes:
                action, true = wrong_answer(prompt, rng)
            steps.append(Step(prompt.images, action))
            stages.append(((100 * (1 - true), 0.0),))
        words = sum(len(step.action.split()) for step in steps)
        done = all(cost == 0 for ((cost, _),) in stages)
        return steps, Outcome(-float(words), tuple(stages), done)
