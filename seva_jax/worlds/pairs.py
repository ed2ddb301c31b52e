"""Pairs of answers about the world: the truth, and a wrong answer such as the prior would give.

What lives here: `WorldPairs`, for methods that start from preferences, and `wrong_answer`. What
does not: the world (`shapes.py`).
"""

from __future__ import annotations

import dataclasses
from typing import Annotated

import numpy as np
from typing_extensions import override

from seva_jax.data.sources import PreferenceSet, PreferenceSource
from seva_jax.ranges import FROM_1
from seva_jax.types import Comparison, Prompt
from seva_jax.worlds.shapes import (
    COLORS,
    SHAPES,
    Kind,
    ShapeWorld,
    WorldPrompts,
    describe,
    prior_color,
)


@dataclasses.dataclass(frozen=True)
class WorldPairs(PreferenceSource):
    """Questions about images of a world, with the true answer (chosen) and a wrong one (rejected).

    The wrong answer to a question for a colour is the colour of the prior, or any other where that
    is the true one; a description gives some objects a wrong colour, adds an absent object, or
    both. `Comparison.scores` are 1 and the share of what the wrong answer names that is true, so 0
    where it is one word. Everything follows from the world, the split and the image.

    Attributes:
        world: the world.
        split: its name keeps the images of different splits apart.
        skewed: whether colours follow the skewed prior or are uniform.
        kinds: kinds of question, taken in turn.
        num: how many pairs, one image each.
    """

    world: ShapeWorld = ShapeWorld()
    split: str = "preferences"
    skewed: bool = False
    kinds: tuple[Kind, ...] = ("color",)
    num: Annotated[int, FROM_1] = 1000

    @override
    def open(self) -> PreferenceSet:
        data = WorldPrompts(self.world, self.split, self.skewed, self.kinds, self.num).open()
        pairs = [self._pair(prompt, index) for index, prompt in enumerate(data.prompts)]
        return PreferenceSet(data.prompts, data.load_image, comparisons=pairs)

    def _pair(self, prompt: Prompt, index: int) -> Comparison:
        rng = self.world.rng("reject", self.split, index, prompt.meta["kind"])
        rejected, score = wrong_answer(prompt, rng)
        return Comparison(prompt, (str(prompt.meta["answer"]), rejected), scores=(1.0, score))


def wrong_answer(prompt: Prompt, rng: np.random.Generator) -> tuple[str, float]:
    """A wrong answer to a question about a world, and the share of what it names that is true.

    Args:
        prompt: of `WorldPrompts`.
        rng: random numbers.
    """
    answer = str(prompt.meta["answer"])

    def other(color: str, shape: str) -> str:
        wrong = [c for c in COLORS if c != color]
        prior = prior_color(shape)
        return prior if prior != color else wrong[int(rng.integers(len(wrong)))]

    if prompt.meta["kind"] == "presence":
        return "no" if answer == "yes" else "yes", 0.0
    if prompt.meta["kind"] == "color":
        (shape,) = (word for word in prompt.question.split() if word in SHAPES)
        return other(answer, shape), 0.0
    true = [(str(color), str(shape)) for color, shape in prompt.meta["objects"]]
    how = int(rng.integers(3))  # wrong colours, an absent object, both
    named = list(true)
    if how != 1:
        which = rng.random(len(true)) < 0.5
        which[int(rng.integers(len(true)))] = True
        named = [
            (other(*it), it[1]) if wrong else it for it, wrong in zip(true, which, strict=True)
        ]
    if how != 0:
        absent = [s for s in SHAPES if s not in {shape for _, shape in true}]
        shape = absent[int(rng.integers(len(absent)))]
        named.append((prior_color(shape), shape))
    return describe(named), sum(it in true for it in named) / len(named)
