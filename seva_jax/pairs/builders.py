"""Builders turn rollouts into comparisons, and count a reason for every rollout they drop.

What lives here: the base class, SeVa's own builder, and `sift`, which counts. What does not: the
questions a builder may put to the model (`model.py`). Read next: `built_pairs.py`, which calls
builders.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable, Sequence
from typing import Annotated, ClassVar, Literal, TypeVar

from typing_extensions import override

from seva_jax.data.sources import PromptSet, generator
from seva_jax.pairs.model import PairModel
from seva_jax.ranges import FROM_1
from seva_jax.text.encode import clean_answer
from seva_jax.types import Comparison, DataError, Rollout

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
        compare: whether answers count as equal by their text after cleaning ("clean") or before it,
            without white space at the beginning ("raw"). SeVa compares raw answers, so it keeps
            pairs that cleaning makes equal.
        most_per_source: keep at most this many comparisons of each source of `Concatenated`, drawn
            by seed and prompt id: one number for each source. Empty keeps all.
            # SeVa: for t = 800, 4,300 of OCR-VQA and 6,500 of TextVQA, about as many as t = 500
            # leaves.
    """

    newline: Literal["space", "delete"] = "space"
    compare: Literal["clean", "raw"] = "clean"
    most_per_source: tuple[Annotated[int, FROM_1], ...] = ()

    @override
    def build(self, rollouts: Sequence[Rollout], data: PromptSet, model: PairModel) -> Built:
        """Makes the comparisons and draws those to keep.

        Raises:
            DataError: `most_per_source` does not fit the sources of the prompts.
        """
        comparisons, drops = self(rollouts)
        if not self.most_per_source:
            return comparisons, drops
        kept = self._drawn(comparisons, model.seed)
        drops["beyond the number of its source"] += len(comparisons) - len(kept)
        return kept, +drops

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
            # SeVa: white space is stripped from decoded text that still ends in "</s>".
            same_raw = raw.lstrip() == rollout.clean.lstrip()
            same = same_raw if self.compare == "raw" else answer == chosen
            num_empty += not answer
            if answer and not same:
                rejected.setdefault(answer, index)
        if not chosen:
            return "empty chosen answer"
        if not rejected:
            return "empty rejected answer" if num_empty else "equal answers"
        corruptions = tuple(rejected.values())
        return Comparison(rollout.prompt, (chosen, *rejected), corruptions=corruptions)

    def _drawn(self, comparisons: Sequence[Comparison], seed: int) -> list[Comparison]:
        """Returns the comparisons that `most_per_source` keeps, in order."""
        ranked: list[list[tuple[float, int]]] = [[] for _ in self.most_per_source]
        for index, comparison in enumerate(comparisons):
            id_ = comparison.prompt.id
            number = id_.partition("/")[0]  # see `Concatenated`
            if "/" not in id_ or not number.isdecimal() or int(number) >= len(ranked):
                raise DataError(
                    f"CorruptionPairs.most_per_source has {len(ranked)} numbers, but prompt "
                    f"{id_!r} is of none of the first {len(ranked)} sources of a Concatenated; "
                    "give one number for each source"
                )
            draw = generator(seed, "most_per_source", id_).random()
            ranked[int(number)].append((draw, index))
        some = zip(ranked, self.most_per_source, strict=True)
        return [comparisons[i] for i in sorted(i for rank, n in some for _, i in sorted(rank)[:n])]
