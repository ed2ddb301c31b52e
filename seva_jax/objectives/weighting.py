"""What the loss of a pair is multiplied by: scores of a judge, or how likely the policy finds it.

What lives here: `Weighting` and its kinds. What does not: `Comparison.weight`, which is the weight
in the mean over comparisons (doubling all of them changes nothing; doubling these doubles the
gradient). Weights have no gradient, and are those of each pair whatever the micro-batch.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np

from seva_jax.objectives.base import NOTHING, Need
from seva_jax.ranges import ABOVE_0, FROM_0, Range
from seva_jax.types import Array, BranchLogps, Comparison, DataError


@dataclasses.dataclass(frozen=True)
class Weighting:
    """Every pair counts 1. A subclass defines `__call__`."""

    @property
    def needs(self) -> frozenset[Need]:
        """See `Objective.needs`."""
        return NOTHING

    def __call__(self, policy: BranchLogps) -> jax.Array:
        """Weight of the pair of the chosen and each rejected answer, [N, K - 1] or [N, 1]."""
        return jnp.ones((len(policy.mask_NKT), 1))

    def check(self, comparison: Comparison) -> None:
        """Raises `DataError` where a comparison lacks what the weight needs."""


@dataclasses.dataclass(frozen=True)
class OnPolicy(Weighting):
    """Pairs that the policy would itself write count more (WPO, arXiv 2406.11827, eq. 2).

    The weight of a pair is w(chosen) w(rejected) with
    `w(y) = exp(mean_t(log p(y_t) - log sum_v p(v)^2))`, the alignment by the expected
    probability of a sample that the paper recommends and TRL calls `use_weighting`.
    """

    @property
    def needs(self) -> frozenset[Need]:
        """See `Objective.needs`."""
        return frozenset({"log_sum_sq"})

    def __call__(self, policy: BranchLogps) -> jax.Array:
        """See `Weighting.__call__`."""
        assert policy.log_sum_sq_NKT is not None, "the step gives what `needs` names"
        aligned_NKT = (policy.logp_NKT - policy.log_sum_sq_NKT) * policy.mask_NKT
        num_NK = jnp.maximum(policy.mask_NKT.sum(-1), 1)
        weight_NK = jnp.exp(aligned_NKT.sum(-1) / num_NK)
        return weight_NK[:, :1] * weight_NK[:, 1:]


@dataclasses.dataclass(frozen=True)
class Scored(Weighting):
    """Base class: the weight follows from `Comparison.scores`. A subclass defines `weights`."""

    @property
    def needs(self) -> frozenset[Need]:
        """See `Objective.needs`."""
        return frozenset({"scores"})

    def weights(self, chosen: Array, rejected: Array) -> Array:
        """Weights of pairs, at least 0, from the scores of their answers; elementwise."""
        raise NotImplementedError(f"{type(self).__name__} must define weights")

    def __call__(self, policy: BranchLogps) -> jax.Array:
        """See `Weighting.__call__`."""
        assert policy.scores_NK is not None, "the step gives what `needs` names"
        return self.weights(policy.scores_NK[:, :1], policy.scores_NK[:, 1:])

    def check(self, comparison: Comparison) -> None:
        """See `Weighting.check`."""
        scores, num = comparison.scores, len(comparison.all_answers)
        what = f"{type(self).__name__}: comparison {comparison.prompt.id!r}"
        if len(scores) != num:
            raise DataError(
                f"{what} has {len(scores)} scores for {num} answers; give every answer a score, "
                "or take another weighting"
            )
        weights: Any = self.weights(np.array(scores[:1]), np.array(scores[1:]))
        if not (weights >= 0).all():  # NaN is not, either
            raise DataError(
                f"{what} would get the weights {weights.tolist()} from its scores {scores}; a "
                "negative weight turns the preference round: put the better answer first"
            )


@dataclasses.dataclass(frozen=True)
class ScoreGap(Scored):
    """How much better the chosen answer is (GAPO, AnimeReward). Equal scores give no gradient.

    With s the scores divided by `scale`, the weight is `base^s_chosen - base^s_rejected`: the
    published form has base 2, a comment in its code offers 3. With `relative` it is
    `1 - base^(s_rejected - s_chosen)`, the third form, also a comment. A public note names
    exp(gap / tau), which does not vanish at gap 0 and is not what the code does.

    The release multiplies the mean loss of its micro-batch by the mean weight, so its weights are
    those of pairs with micro-batches of one pair only; here they always are. GAPO was made for
    diffusion models; only weights and margin carry over to log-probs of text.

    Attributes:
        scale: scores are divided by this; the published ones lie in [0, 100].
        base: see above.
        relative: see above.
    """

    scale: Annotated[float, ABOVE_0] = 100.0
    base: Annotated[float, Range(1, above=True)] = 2.0
    relative: bool = False

    def weights(self, chosen: Array, rejected: Array) -> Array:
        """See `Scored.weights`."""
        chosen, rejected = chosen / self.scale, rejected / self.scale
        if self.relative:
            return 1 - self.base ** (rejected - chosen)
        return self.base**chosen - self.base**rejected


@dataclasses.dataclass(frozen=True)
class RawScore(Scored):
    """The score of the rejected answer as it is (MMedPO as released).

    In MMedPO a score says how much an error matters clinically, or how sure a tool is of the
    region it changed, in [0, 1]. The chosen answer's score is not used.
    """

    def weights(self, chosen: Array, rejected: Array) -> Array:
        """See `Scored.weights`."""
        return rejected


@dataclasses.dataclass(frozen=True)
class ClippedZScore(Scored):
    """`clip((s - mean) / std, low, high)` of the rejected answer's score (MMedPO's paper).

    The release does not normalise: `RawScore`. Mean and standard deviation are those of the whole
    data set, given here, never those of a batch: the weight of a pair is the same wherever it is.
    `seva_jax.data.scores.ClippedZScores` computes them from the data.

    Attributes:
        mean: of the scores of the data set.
        std: of the same, positive.
        low: smallest weight, at least 0.
        high: largest weight.
    """

    mean: float
    std: Annotated[float, ABOVE_0]
    low: Annotated[float, FROM_0]
    high: float

    def __post_init__(self) -> None:
        if self.low > self.high:
            raise DataError(f"ClippedZScore: low {self.low} is above high {self.high}")

    def weights(self, chosen: Array, rejected: Array) -> Array:
        """See `Scored.weights`."""
        return ((rejected - self.mean) / self.std).clip(self.low, self.high)
