"""Builders turn rollouts into comparisons, and count a reason for every rollout they drop.

What lives here: the base class, SeVa's own builder, and `sift`, which counts. What does not: the
questions a builder may put to the model (`model.py`). Read next: `built_pairs.py`, which calls
builders.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable, Sequence
from typing import ClassVar, Literal, TypeVar

from typing_extensions import override

from seva_jax.data.sources import PromptSet
from seva_jax.pairs.model import PairModel
from seva_jax.text.encode import clean_answer
from seva_jax.types import Comparison, Rollout

Built = tuple[list[Comparison], collections.Counter[str]]
"""Comparisons in order, and the numbers of dropped rollouts by reason."""

_Kept = TypeVar("_Kept")


def sift(results: Iterable[_Kept | str]) -> tuple[list[_Kept], collections.Counter[str]]:
    """Separates results from reasons why there is none.

    Args:
        results: results, and a text in place of each that is missing.

    Returns:
        The results in order, and the number of times each reason was given.
    """
    kept: list[_Kept] = []
    drops: collections.Counter[str] = collections.Counter()
    for result in results:
        if isinstance(result, str):
            drops[result] += 1
        else:
            kept.append(result)
    return kept, drops


@dataclasses.dataclass(frozen=True)
class PairBuilder:
    """Base class: turns rollouts into comparisons.

    A builder defines `__call__`, or `build` if it needs the images or the model.

    Attributes:
        uses_corruptions: whether rejected answers come from corrupted images; if so, the experiment
            needs at least one corruption.
    """

    uses_corruptions: ClassVar[bool] = True

    def build(self, rollouts: Sequence[Rollout], data: PromptSet, model: PairModel) -> Built:
        """Returns the same as `__call__`, with access to the images and the model.

        Args:
            rollouts: the model's answers.
            data: all prompts, and the loader of their images.
            model: the model to be aligned, see `PairModel`.
        """
        return self(rollouts)

    def __call__(self, rollouts: Iterable[Rollout]) -> Built:
        """Returns the comparisons, in order, and the numbers of dropped rollouts by reason."""
        raise NotImplementedError(f"{type(self).__name__} must define __call__")


@dataclasses.dataclass(frozen=True)
class CorruptionPairs(PairBuilder):
    """SeVa's pairs: the answer on the clean image is chosen, those on corrupted images rejected.

    Empty answers are always dropped, because they would leave a comparison with one side.

    Attributes:
        newline: replaces line breaks by a "space", or deletes them ("delete") as SeVa does, which
            joins words.
        compare: whether answers count as equal by their text after cleaning ("clean") or before it
            ("raw"). SeVa compares raw answers, so it keeps pairs that cleaning makes equal.
    """

    newline: Literal["space", "delete"] = "space"
    compare: Literal["clean", "raw"] = "clean"

    @override
    def __call__(self, rollouts: Iterable[Rollout]) -> Built:
        return sift(map(self._pair, rollouts))

    def _pair(self, rollout: Rollout) -> Comparison | str:
        """Returns the comparison of a rollout; or why it is dropped."""
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
            return "empty chosen answer"
        if not rejected:
            return "empty rejected answer" if num_empty else "equal answers"
        corruptions = tuple(rejected.values())
        return Comparison(rollout.prompt, (chosen, *rejected), corruptions=corruptions)
