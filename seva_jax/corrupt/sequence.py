"""Changes to a sequence instead of to pixels: images of a prompt, captions of its clips (TEMPLE).

What lives here: `Drop`, `Shuffle`, `Reverse`, and how captions are put into a question. What does
not: asking the model (`seva_jax/inference/rollouts.py`), which pairs count (`seva_jax/pairs/temple.py`).

A sequence of n items is cut into m groups of neighbours, as equal as can be. More groups mean a
rejected answer that is easier to tell from the chosen one: Drop keeps fewer items, and the others
tear more neighbours apart. Source: TEMPLE, AAAI 2026.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

import jax
import numpy as np
from typing_extensions import override

from seva_jax.corrupt.base import Corruption, Space
from seva_jax.ranges import Range
from seva_jax.types import IMAGE_MARKER, Array, DataError, ExampleError, Prompt


def captioned(question: str, captions: Sequence[str]) -> str:
    """A question behind the captions of the clips it is about, a line each.

    >>> print(captioned("What happens?", ["A dog runs.", "It sleeps."]))
    A dog runs.
    It sleeps.
    What happens?
    """
    return "\n".join((*captions, question))


@dataclasses.dataclass(frozen=True)
class SequenceCorruption(Corruption):
    """Base class: the question stays, and what it is about comes in another order, or less of it.

    A subclass defines `order`. It needs at least two items, and drops prompts with fewer ("nothing
    to reorder").

    Attributes:
        groups: m, at least 2; as many as there are items where these are fewer.
        of: "images" of the prompt, such as frames; or "captions", which are in its question as
            `seva_jax.data.captions.CaptionedPrompts` puts them there.
    """

    space: ClassVar[Space] = "sequence"
    groups: Annotated[int, Range(2)] = 2
    of: Literal["images", "captions"] = "images"

    def order(self, rng: np.random.Generator, num: int) -> list[int]:
        """Numbers of the items that are kept, in their new order.

        Args:
            rng: random numbers.
            num: of items, at least 2.
        """
        raise NotImplementedError(f"{type(self).__name__} must define order")

    def changed(self, key: jax.Array, prompt: Prompt) -> Prompt:
        """The prompt with its sequence changed.

        Where images are dropped, so are their places in the question, if it names any.

        Args:
            key: a typed PRNG key; every random choice follows from it.
            prompt: see `of`.

        Raises:
            ExampleError: there are fewer than two items, or no captions.
        """
        items = prompt.images if self.of == "images" else _captions(prompt)
        if len(items) < 2:
            raise ExampleError(
                f"{type(self).__name__} needs at least two {self.of}, {prompt.id!r} has "
                f"{len(items)}; leave the prompt out",
                "nothing to reorder",
            )
        rng = np.random.default_rng(np.asarray(jax.random.key_data(key)).tolist())
        order = self.order(rng, len(items))
        kept = tuple(items[i] for i in order)
        if self.of == "captions":
            question = captioned(prompt.meta["question"], kept)
            return dataclasses.replace(
                prompt, question=question, meta=prompt.meta | {"captions": list(kept)}
            )
        before, *parts = prompt.question.split(IMAGE_MARKER)
        if len(parts) == len(items):  # otherwise the template says what is wrong
            places = (IMAGE_MARKER if i in order else "" for i in range(len(items)))
            before += "".join(place + part for place, part in zip(places, parts, strict=True))
            return dataclasses.replace(prompt, question=before, images=kept)
        return dataclasses.replace(prompt, images=kept)

    def __call__(self, key: jax.Array, image_HWC: Array) -> jax.Array:
        """Not for single images."""
        raise DataError(
            f"{type(self).__name__} changes what a prompt is about, not an image; give it in "
            "corrupt=, by itself"
        )

    def _groups(self, num: int) -> list[list[int]]:
        return [group.tolist() for group in np.array_split(np.arange(num), min(self.groups, num))]


def _captions(prompt: Prompt) -> list[str]:
    found, question = prompt.meta.get("captions"), str(prompt.meta.get("question"))
    captions = found if isinstance(found, list) else []
    if not all(isinstance(x, str) for x in captions) or (
        captioned(question, captions) != prompt.question
    ):
        raise ExampleError(
            f"{prompt.id!r} has no captions in its question; use CaptionedPrompts for its source",
            "no captions",
        )
    return captions


@dataclasses.dataclass(frozen=True)
class Drop(SequenceCorruption):
    """Keeps n / m items, rounded down and at least one, drawn at random, in their order."""

    @override
    def order(self, rng: np.random.Generator, num: int) -> list[int]:
        kept = rng.choice(num, max(1, num // self.groups), replace=False)
        return sorted(kept.tolist())


@dataclasses.dataclass(frozen=True)
class Shuffle(SequenceCorruption):
    """Puts the groups into any other order than theirs, all alike; inside of one nothing moves."""

    @override
    def order(self, rng: np.random.Generator, num: int) -> list[int]:
        groups = self._groups(num)
        same = list(range(len(groups)))
        while (order := rng.permutation(len(groups)).tolist()) == same:
            pass
        return [i for group in order for i in groups[group]]


@dataclasses.dataclass(frozen=True)
class Reverse(SequenceCorruption):
    """Puts the last group first and so on; inside of a group nothing moves."""

    @override
    def order(self, rng: np.random.Generator, num: int) -> list[int]:
        del rng  # there is one way
        return [i for group in reversed(self._groups(num)) for i in group]
