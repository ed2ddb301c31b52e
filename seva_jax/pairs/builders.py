"""Which rollouts become comparisons, with a counted reason for every one that does not.

What lives here: the base class and SeVa's own builder. What does not: what a builder may ask of
the model (`model.py`).
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable, Sequence
from typing import ClassVar, Literal

from typing_extensions import override

from seva_jax.data.sources import PromptSet
from seva_jax.pairs.model import PairModel
from seva_jax.text.encode import clean_answer
from seva_jax.types import Comparison, Rollout


@dataclasses.dataclass(frozen=True)
class PairBuilder:
    """Base class: rollouts to comparisons.

    A builder defines `__call__`, or `build` where it needs the images or the model.

    Attributes:
        uses_corruptions: whether rejected answers come from corrupted images, so that a run must
            have some.
    """

    uses_corruptions: ClassVar[bool] = True

    def build(
        self, rollouts: Sequence[Rollout], data: PromptSet, model: PairModel
    ) -> tuple[list[Comparison], collections.Counter[str]]:
        """As `__call__`, with more to work with.

        Args:
            rollouts: what the model answered.
            data: all prompts, and the way to their images.
            model: the model to be aligned, see `PairModel`.
        """
        return self(rollouts)

    def __call__(
        self, rollouts: Iterable[Rollout]
    ) -> tuple[list[Comparison], collections.Counter[str]]:
        """Returns the comparisons, in order, and the number of dropped rollouts by reason."""
        raise NotImplementedError(f"{type(self).__name__} must define __call__")


@dataclasses.dataclass(frozen=True)
class CorruptionPairs(PairBuilder):
    """SeVa's pairs: chosen is the answer on the clean image, rejected those on corrupted ones.

    An empty answer on either side leaves a comparison with one side, so it is always dropped.

    Attributes:
        newline: what becomes of line breaks. SeVa deletes them, which glues words together.
        compare: compare answers before ("raw") or after ("clean") cleaning. SeVa compares raw
            answers, so pairs that are equal after cleaning survive.
    """

    newline: Literal["space", "delete"] = "space"
    compare: Literal["clean", "raw"] = "clean"

    @override
    def __call__(
        self, rollouts: Iterable[Rollout]
    ) -> tuple[list[Comparison], collections.Counter[str]]:
        comparisons: list[Comparison] = []
        drops: collections.Counter[str] = collections.Counter()
        for rollout in rollouts:
            chosen = clean_answer(rollout.clean, self.newline)
            rejected: dict[str, int] = {}  # answer -> corruption it came from
            num_empty = 0
            for index, raw in enumerate(rollout.corrupted):
                answer = clean_answer(raw, self.newline)
                same = raw == rollout.clean if self.compare == "raw" else answer == chosen
                num_empty += not answer
                if answer and not same:
                    rejected.setdefault(answer, index)
            if not chosen:
                drops["empty chosen answer"] += 1
            elif rejected:
                comparisons.append(
                    Comparison(
                        rollout.prompt,
                        (chosen, *rejected),
                        corruptions=tuple(rejected.values()),
                    )
                )
            elif num_empty:
                drops["empty rejected answer"] += 1
            else:
                drops["equal answers"] += 1
        return comparisons, drops
