"""Trajectories in the world: several images described one after another, well or badly.

What lives here: `WorldTrajectories`, data for methods that compare trajectories. What does not: the
world (`shapes.py`), the score and the pairs of steps (`seva_jax/data/trajectories.py`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
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
    """The best against the worst of several attempts at describing some images in turn.

    Every attempt has its own probability of a mistake in a step. Each step is a stage with one
    cost, the share of the answer that is false, in percent. The task is done if nothing is false.

    Attributes:
        world: how images are drawn.
        split: name of the split; splits of different names have different images.
        num: number of tasks.
        steps: number of images in a task, one for each step.
        mistakes: for each attempt, the probability that a step is wrong.
        judge: scores the attempts; the highest score is chosen, the lowest rejected.
        window: number of steps in a comparison; every such number of successive steps makes one.
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
        tasks = [data.prompts[i : i + self.steps] for i in range(0, num, self.steps)]
        pairs = [pair for number, task in enumerate(tasks) for pair in self._pairs(task, number)]
        return PreferenceSet([c.prompt for c in pairs], data.load_image, comparisons=pairs)

    def _pairs(self, task: Sequence[Prompt], number: int) -> Iterator[Comparison]:
        rng = self.world.rng("attempts", self.split, number)
        attempts = [self._attempt(task, mistakes, rng) for mistakes in self.mistakes]
        ranked = sorted(attempts, key=lambda x: -self.judge(x[1]))
        prompt = Prompt(f"{self.split}/{number}", task[0].question, ())
        return step_pairs(prompt, ranked[0][0], ranked[-1][0], self.window)

    def _attempt(
        self, task: Sequence[Prompt], mistakes: float, rng: np.random.Generator
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
