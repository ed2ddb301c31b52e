"""Changes to a sequence instead of pixels: images of a prompt, or captions of its clips (TEMPLE).

What lives here: `Drop`, `Shuffle`, `Reverse`, and the way captions are put into a question. What
does not: asking the model (`seva_jax/inference/rollouts.py`), the filters of the resulting pairs
(`seva_jax/pairs/temple.py`).

A sequence of n items is cut into groups of n // m neighbours, at least one; the last group may be
smaller, so there may be more than m groups. With a larger m, the rejected answer is easier to tell
from the chosen one: `Drop` keeps fewer items, and the others separate more neighbours. Source:
TEMPLE, AAAI 2026, and its release.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

import jax
import numpy as np
from typing_extensions import override

from seva_jax.corrupt.base import Corruption, Space, numpy_generator
from seva_jax.ranges import Range
from seva_jax.types import IMAGE_MARKER, Array, DataError, ExampleError, Prompt


def captioned(question: str, captions: Sequence[str]) -> str:
    """Returns a question after the captions of the clips it is about, one line each.

    >>> print(captioned("What happens?", ["A dog runs.", "It sleeps."]))
    A dog runs.
    It sleeps.
    What happens?
    """
    return "\n".join((*captions, question))


@dataclasses.dataclass(frozen=True)
class SequenceCorruption(Corruption):
    """Base class: the same question about a sequence that is reordered, or has fewer items.

    A subclass defines `order`. Prompts with fewer than two items are dropped ("nothing to
    reorder").

    Attributes:
        groups: m, at least 2: a group has n // m of the n items, at least one, and the last group
            the rest. Three items and m = 2 make three groups.
        of: the sequence to change: "images" of the prompt, such as frames, or "captions", which
            `seva_jax.data.CaptionedPrompts` has put into its question.
    """

    space: ClassVar[Space] = "sequence"
    groups: Annotated[int, Range(2)] = 2
    of: Literal["images", "captions"] = "images"

    def order(self, rng: np.random.Generator, num: int) -> list[int]:
        """Returns the indices of the items that are kept, in their new order.

        Args:
            rng: the only source of randomness.
            num: number of items, at least 2.
        """
        raise NotImplementedError(f"{type(self).__name__} must define order")

    def changed(self, key: jax.Array, prompt: Prompt) -> Prompt:
        """Returns the prompt with its sequence changed.

        Where images are dropped, so are their markers in the question, if it has any.

        Args:
            key: a typed PRNG key, the only source of randomness.
            prompt: a prompt with images or captions, see `of`.

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
        order = self.order(numpy_generator(key), len(items))
        kept = tuple(items[i] for i in order)
        if self.of == "captions":
            question = captioned(prompt.meta["question"], kept)
            meta = prompt.meta | {"captions": list(kept)}
            return dataclasses.replace(prompt, question=question, meta=meta)
        before, *parts = prompt.question.split(IMAGE_MARKER)
        if len(parts) == len(items):  # otherwise the template reports the mismatch
            markers = (IMAGE_MARKER if i in order else "" for i in range(len(items)))
            before += "".join(marker + part for marker, part in zip(markers, parts, strict=True))
            return dataclasses.replace(prompt, question=before, images=kept)
        return dataclasses.replace(prompt, images=kept)

    @override
    def __call__(self, key: jax.Array, image_HWC: Array) -> jax.Array:
        """Refuses single images.

        Raises:
            DataError: always.
        """
        raise DataError(
            f"{type(self).__name__} changes the sequence of a prompt, not an image; put it "
            "directly into corrupt=, not inside another corruption"
        )

    def _groups(self, num: int) -> list[list[int]]:
        size = max(1, num // self.groups)
        return [list(range(i, min(i + size, num))) for i in range(0, num, size)]


def _captions(prompt: Prompt) -> list[str]:
    captions, question = prompt.meta.get("captions"), str(prompt.meta.get("question"))
    captions = captions if isinstance(captions, list) else []
    if not all(isinstance(x, str) for x in captions) or (
        captioned(question, captions) != prompt.question
    ):
        raise ExampleError(
            f"{prompt.id!r} has no captions in its question; wrap its source in CaptionedPrompts",
            "no captions",
        )
    return captions


@dataclasses.dataclass(frozen=True)
class Drop(SequenceCorruption):
    """Keeps n / m randomly drawn items (rounded down, at least one), in their order."""

    @override
    def order(self, rng: np.random.Generator, num: int) -> list[int]:
        kept = rng.choice(num, max(1, num // self.groups), replace=False)
        return sorted(kept.tolist())


@dataclasses.dataclass(frozen=True)
class Shuffle(SequenceCorruption):
    """Shuffles the groups, but not within them; every order is equally likely, also the original.

    The answer to the original order is then an answer to the same question, sampled once more.
    """

    @override
    def order(self, rng: np.random.Generator, num: int) -> list[int]:
        groups = self._groups(num)
        return [i for group in rng.permutation(len(groups)) for i in groups[group]]


@dataclasses.dataclass(frozen=True)
class Reverse(SequenceCorruption):
    """Reverses the order of the groups, but not within them."""

    @override
    def order(self, rng: np.random.Generator, num: int) -> list[int]:
        del rng  # nothing is random
        return [i for group in reversed(self._groups(num)) for i in group]
