"""TEMPLE's pairs: the answer to a sequence against the answer to the changed sequence, filtered.

What lives here: the filters. What does not: the changes (`seva_jax/corrupt/sequence.py`) and their
difficulty in each stage (`configs/temple.py`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Annotated, Literal

from typing_extensions import override

from seva_jax.data.captions import without_captions
from seva_jax.pairs.builders import Built, PairBuilder, sift
from seva_jax.ranges import FROM_1
from seva_jax.text.encode import clean_answer
from seva_jax.types import Comparison, DataError, Rollout


@dataclasses.dataclass(frozen=True)
class TemplePairs(PairBuilder):
    """A pair for every answer to a changed sequence that passes the filters.

    A rejected answer must not contain the chosen one. If items were dropped, the chosen answer
    must be longer than the rejected one; if they were reordered, neither answer may be longer than
    the other by more than a factor. Lengths are in characters. A prompt may give several pairs,
    whose ids then end in "#" and the number of the corruption. So drops are counts of answers, not
    of prompts.

    Attributes:
        rules: the filter of lengths for each entry of `corrupt`: "longer" for `Drop`, "ratio" for
            `Shuffle` and `Reverse`, "any" for no filter.
        max_ratio: with "ratio", the largest ratio of the longer to the shorter answer; 1.5 is
            published.
        captions: whether captions stay in the question for training, if the model was asked with
            them. TEMPLE trains on the clip itself.
    """

    rules: tuple[Literal["longer", "ratio", "any"], ...] = ("longer",)
    max_ratio: Annotated[float, FROM_1] = 1.5
    captions: bool = False

    @override
    def __call__(self, rollouts: Iterable[Rollout]) -> Built:
        return sift(pair for rollout in rollouts for pair in self._pairs(rollout))

    def _pairs(self, rollout: Rollout) -> Iterator[Comparison | str]:
        """Yields the pair of each changed sequence; or why it is dropped."""
        if len(rollout.corrupted) != len(self.rules):
            raise DataError(
                f"TemplePairs.rules has {len(self.rules)} rules for {len(rollout.corrupted)} "
                "corruptions; give one for each"
            )
        chosen = clean_answer(rollout.clean)
        prompt = rollout.prompt if self.captions else without_captions(rollout.prompt)
        for index, (raw, rule) in enumerate(zip(rollout.corrupted, self.rules, strict=True)):
            rejected = clean_answer(raw)
            suffix = f"#{index}" if len(self.rules) > 1 else ""
            own = dataclasses.replace(prompt, id=prompt.id + suffix)
            yield self._problem(chosen, rejected, rule) or Comparison(own, (chosen, rejected))

    def _problem(self, chosen: str, rejected: str, rule: str) -> str:
        """Returns why a pair is dropped, or ""."""
        if not chosen or not rejected:
            return "empty chosen answer" if not chosen else "empty rejected answer"
        if chosen == rejected:
            return "equal answers"
        if chosen in rejected:
            return "chosen answer inside the rejected one"
        shorter, longer = sorted((len(chosen), len(rejected)))
        if rule == "longer" and len(chosen) <= len(rejected):
            return "chosen answer not longer"
        if rule == "ratio" and longer > self.max_ratio * shorter:
            return "lengths too different"
        return ""
