"""Scores of pairs: read from a field of the data, or normalised over the whole data set.

What lives here: both, as sources that wrap another source. What does not: how scores weight
comparisons (`seva_jax/objectives/weighting.py`).
"""

from __future__ import annotations

import dataclasses
from typing import Annotated

import numpy as np
from typing_extensions import override

from seva_jax.data.collect import number_of
from seva_jax.data.sources import PreferenceSet, PreferenceSource, PromptSource
from seva_jax.data.wrapped import opened_pairs, rewritten
from seva_jax.ranges import FROM_0
from seva_jax.types import Comparison, DataError


@dataclasses.dataclass(frozen=True)
class ScoredPairs(PreferenceSource):
    """The pairs of a source; rejected answers get the score in a field of their prompt's `meta`.

    Formats such as `TrlPairs` keep the other fields of a record there. The score of chosen answers
    is 0. Pairs without a number in the field are left out and counted ("no score").

    Attributes:
        source: the pairs.
        field: the field with the score.
    """

    source: PromptSource = PreferenceSource()
    field: str = "score"

    @override
    def open(self) -> PreferenceSet:

        def scored(pair: Comparison) -> Comparison:
            rejected = len(pair.all_answers) - 1
            score = number_of(pair.prompt.meta.get(self.field), self.field)
            return dataclasses.replace(pair, scores=(0.0, *[score] * rejected))

        return rewritten(opened_pairs(self.source, "ScoredPairs"), scored)


@dataclasses.dataclass(frozen=True)
class ClippedZScores(PreferenceSource):
    """Pairs whose rejected answers have `clip((s - mean) / std, low, high)` in place of a score s.

    Mean and (population) standard deviation are those of all pairs of the source, before any is
    left out because it does not fit the model. With the weighting `RawScore`, this is the method
    of MMedPO's paper; its release uses `RawScore` alone. `seva_jax.objectives.ClippedZScore` does
    the same with a given mean and standard deviation.

    Attributes:
        source: pairs with scores.
        low: smallest result; at least 0, because it is a weight.
        high: largest result.
    """

    source: PromptSource = PreferenceSource()
    low: Annotated[float, FROM_0] = 0.0
    high: Annotated[float, FROM_0] = 1.0

    @override
    def open(self) -> PreferenceSet:
        """Raises `DataError` also if a pair lacks scores, or if all scores are alike."""
        if self.low >= self.high:
            raise DataError(f"ClippedZScores: low {self.low} must be below high {self.high}")
        data = opened_pairs(self.source, "ClippedZScores")
        for pair in data.comparisons:
            if len(pair.scores) != len(pair.all_answers):
                raise DataError(
                    f"ClippedZScores: pair {pair.prompt.id!r} has {len(pair.scores)} scores for "
                    f"{len(pair.all_answers)} answers; ScoredPairs takes them from a field"
                )
        scores = np.array([score for pair in data.comparisons for score in pair.scores[1:]], float)
        mean, std = scores.mean(), scores.std()
        if not std > 1e-9 * abs(mean):
            raise DataError("ClippedZScores: all scores are alike; use RawScore, or no weighting")

        def clipped(pair: Comparison) -> Comparison:
            scores = ((np.array(pair.scores[1:]) - mean) / std).clip(self.low, self.high)
            return dataclasses.replace(pair, scores=(0.0, *scores.tolist()))

        return rewritten(data, clipped)
