"""Pairs of answers about the world: the truth, and a wrong answer such as the prior suggests.

What lives here: `WorldPairs`, for methods that start from preferences, and `wrong_answer`. What
does not: the world (`shapes.py`).
"""

from __future__ import annotations

import dataclasses

import numpy as np
from typing_extensions import override

from seva_jax.data.sources import PreferenceSet, PreferenceSource
from seva_jax.types import Comparison, Prompt
from seva_jax.worlds.shapes import (
    SHAPES,
    WorldPrompts,
    absent_shape,
    describe,
    prior_color,
    wrong_color,
)


@dataclasses.dataclass(frozen=True)
class WorldPairs(WorldPrompts, PreferenceSource):
    """Questions about images of a world, with the true answer (chosen) and a wrong one (rejected).

    A wrong colour is the prior's colour, or any other if that is the true one. A wrong description
    gives some objects a wrong colour, adds an absent object, or both. `Comparison.scores` are 1 for
    the true answer and, for the wrong one, the share of the objects it names that is true (0 for an
    answer of one word). Everything follows from the world, the split and the image.

    Attributes:
        split: name of the split; splits of different names have different images.
        num: number of pairs, with one image each.
    """

    split: str = "preferences"

    @override
    def open(self) -> PreferenceSet:
        data = super().open()
        pairs = [self._pair(prompt, index) for index, prompt in enumerate(data.prompts)]
        return PreferenceSet(data.prompts, data.load_image, comparisons=pairs)

    def _pair(self, prompt: Prompt, index: int) -> Comparison:
        rng = self.world.rng("reject", self.split, index, prompt.meta["kind"])
        rejected, score = wrong_answer(prompt, rng)
        return Comparison(prompt, (str(prompt.meta["answer"]), rejected), scores=(1.0, score))


def wrong_answer(prompt: Prompt, rng: np.random.Generator) -> tuple[str, float]:
    """Returns a wrong answer to a question, and the share of the objects it names that is true.

    Args:
        prompt: a prompt of `WorldPrompts`.
        rng: the only source of randomness.
    """
    answer = str(prompt.meta["answer"])
    if prompt.meta["kind"] == "presence":
        return "no" if answer == "yes" else "yes", 0.0
    if prompt.meta["kind"] == "color":
        (shape,) = (word for word in prompt.question.split() if word in SHAPES)
        return wrong_color(answer, shape, rng), 0.0
    true = [(str(color), str(shape)) for color, shape in prompt.meta["objects"]]
    how = int(rng.integers(3))  # 0: wrong colours, 1: an absent object, 2: both
    named = list(true)
    if how != 1:
        is_wrong = rng.random(len(true)) < 0.5
        is_wrong[int(rng.integers(len(true)))] = True
        named = [
            (wrong_color(color, shape, rng) if wrong else color, shape)
            for (color, shape), wrong in zip(true, is_wrong, strict=True)
        ]
    if how != 0:
        shape = absent_shape([shape for _, shape in true], rng)
        named.append((prior_color(shape), shape))
    return describe(named), sum(thing in true for thing in named) / len(named)
