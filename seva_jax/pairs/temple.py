"""TEMPLE's pairs: the answer to a sequence against that to the changed sequence, with its filters.

What lives here: the filters. What does not: the changes (`seva_jax/corrupt/sequence.py`) and their
difficulty, stage by stage (`configs/temple.py`).
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable
from typing import Annotated, Literal

from typing_extensions import override

from seva_jax.data.captions import without_captions
from seva_jax.pairs.builders import PairBuilder
from seva_jax.ranges import FROM_1
from seva_jax.text.encode import clean_answer
from seva_jax.types import Comparison, DataError, Rollout


@dataclasses.dataclass(frozen=True)
class TemplePairs(PairBuilder):
    """A pair for every answer to a changed sequence that passes the filters.

    A rejected answer must not contain the chosen one. Where items were dropped, the chosen answer
    must be longer than the rejected one; where they were put into another order, neither may be
    longer than the other by more than a factor. Lengths are in characters. Answers that fail are
    counted; a prompt may give several pairs, whose ids then end in "#" and the number of the
    corruption, so counts are of answers, not of prompts.

    Attributes:
        rules: for each corruption of the run, the filter of lengths: "longer" for `Drop`, "ratio"
            for `Shuffle` and `Reverse`, "any" for none.
        max_ratio: see above; as published.
        captions: whether captions that were there when the model was asked stay in the question
            when it is trained. TEMPLE trains on the clip itself.
    """

    rules: tuple[Literal["longer", "ratio", "any"], ...] = ("longer",)
    max_ratio: Annotated[float, FROM_1] = 1.5
    captions: bool = False

    @override
    def __call__(
        self, rollouts: Iterable[Rollout]
    ) -> tuple[list[Comparison], collections.Counter[str]]:
        comparisons: list[Comparison] = []
        drops: collections.Counter[str] = collections.Counter()
        for rollout in rollouts:
            if len(rollout.corrupted) != len(self.rules):
                raise DataError(
                    f"TemplePairs.rules has {len(self.rules)} rules for {len(rollout.corrupted)} "
                    "corruptions; give one for each"
                )
            chosen = clean_answer(rollout.clean)
            prompt = rollout.prompt if self.captions else without_captions(rollout.prompt)
            for index, (raw, rule) in enumerate(zip(rollout.corrupted, self.rules, strict=True)):
                rejected = clean_answer(raw)
                if reason := self._problem(chosen, rejected, rule):
                    drops[reason] += 1
                    continue
                several = f"#{index}" if len(self.rules) > 1 else ""
                own = dataclasses.replace(prompt, id=prompt.id + several)
                comparisons.append(Comparison(own, (chosen, rejected)))
        return comparisons, drops

    def _problem(self, chosen: str, rejected: str, rule: str) -> str:
        """Why a pair is left out, or ""."""
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
