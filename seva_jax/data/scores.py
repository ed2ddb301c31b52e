"""Scores of pairs: taken from a field of the data, or normalised over the whole data set.

What lives here: both as sources around a source. What does not: what a score weighs
(`seva_jax/objectives/weighting.py`).
"""

from __future__ import annotations

import dataclasses
from typing import Annotated

import numpy as np

from seva_jax.data.regions import score_of
from seva_jax.data.sources import PreferenceSet, PreferenceSource, PromptSource
from seva_jax.data.wrapped import opened_pairs, rewritten
from seva_jax.ranges import FROM_0
from seva_jax.types import Comparison, DataError


@dataclasses.dataclass(frozen=True)
class ScoredPairs(PreferenceSource):
    """Pairs whose rejected answers have the score that their prompts' `meta` has in a field.

    Formats such as `TrlPairs` keep further fields of a record there. Chosen answers score 0; a pair
    without a number in the field is left out and counted ("no score").

    Attributes:
        source: the pairs.
        field: the field.
    """

    source: PromptSource = PreferenceSource()
    field: str = "score"

    def open(self) -> PreferenceSet:
        """See `PromptSource.open`."""

        def scored(pair: Comparison) -> Comparison:
            rejected = len(pair.all_answers) - 1
            scores = (0.0, *[score_of(pair.prompt, self.field)] * rejected)
            return dataclasses.replace(pair, scores=scores)

        return rewritten(opened_pairs(self.source, "ScoredPairs"), scored)


@dataclasses.dataclass(frozen=True)
class ClippedZScores(PreferenceSource):
    """Pairs with `clip((s - mean) / std, low, high)` in place of the rejected answers' scores s.

    Mean and (population) standard deviation are those of all pairs of the source, before any is
    left out because it does not fit the model. With `RawScore` as weighting this is MMedPO's paper;
    its release has `RawScore` alone. `objectives.ClippedZScore` does the same with numbers given.

    Attributes:
        source: pairs with scores.
        low: smallest result; at least 0, since it weighs.
        high: largest.
    """

    source: PromptSource = PreferenceSource()
    low: Annotated[float, FROM_0] = 0.0
    high: Annotated[float, FROM_0] = 1.0

    def open(self) -> PreferenceSet:
        """See `PromptSource.open`.

        Raises:
            DataError: a pair has no scores, or all scores are alike.
        """
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
            found = ((np.array(pair.scores[1:]) - mean) / std).clip(self.low, self.high)
            return dataclasses.replace(pair, scores=(0.0, *found.tolist()))

        return rewritten(data, clipped)
