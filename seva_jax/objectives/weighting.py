"""Weights of pairs, from a judge's scores or from how likely the policy itself finds a pair.

What lives here: `Weighting` and its subclasses. A weight multiplies the loss of its pair, whatever
the micro-batch, and no gradient flows through it. What does not: `Comparison.weight`, the weight
in the mean over comparisons. Doubling all of those changes nothing; doubling all weights of pairs
doubles the gradient.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
from typing_extensions import override

from seva_jax.objectives.base import NOTHING, Need
from seva_jax.ranges import ABOVE_0, FROM_0, Range
from seva_jax.types import Array, BranchLogps, Comparison, DataError


@dataclasses.dataclass(frozen=True)
class Weighting:
    """Every pair has weight 1. A subclass defines `__call__`."""

    @property
    def needs(self) -> frozenset[Need]:
        """Returns the optional fields of `BranchLogps` it reads, see `Objective.needs`."""
        return NOTHING

    def __call__(self, policy: BranchLogps) -> jax.Array:
        """Returns the weight of the chosen answer with each rejected one, [N, K - 1] or [N, 1]."""
        return jnp.ones((len(policy.mask_NKT), 1))

    def check(self, comparison: Comparison) -> None:
        """Raises `DataError` if a comparison lacks something the weight needs."""


@dataclasses.dataclass(frozen=True)
class OnPolicy(Weighting):
    """Pairs that the policy would itself write count more (WPO, arXiv 2406.11827, eq. 2).

    The weight of a pair is w(chosen) w(rejected), with
    `w(y) = exp(mean_t(log p(y_t) - log sum_v p(v)^2))`: log-probs relative to the expected
    probability of a sample, as the paper recommends and TRL's `use_weighting` does.
    """

    @property
    @override
    def needs(self) -> frozenset[Need]:
        return frozenset({"log_sum_sq"})

    @override
    def __call__(self, policy: BranchLogps) -> jax.Array:
        assert policy.log_sum_sq_NKT is not None, "the step gives what `needs` names"
        aligned_NKT = (policy.logp_NKT - policy.log_sum_sq_NKT) * policy.mask_NKT
        num_NK = jnp.maximum(policy.mask_NKT.sum(-1), 1)
        weight_NK = jnp.exp(aligned_NKT.sum(-1) / num_NK)
        return weight_NK[:, :1] * weight_NK[:, 1:]


@dataclasses.dataclass(frozen=True)
class Scored(Weighting):
    """Base class: weights follow from `Comparison.scores`. A subclass defines `weights`."""

    @property
    @override
    def needs(self) -> frozenset[Need]:
        return frozenset({"scores"})

    def weights(self, chosen: Array, rejected: Array) -> Array:
        """Returns weights of pairs, at least 0, from the scores of their answers, elementwise."""
        raise NotImplementedError(f"{type(self).__name__} must define weights")

    @override
    def __call__(self, policy: BranchLogps) -> jax.Array:
        assert policy.scores_NK is not None, "the step gives what `needs` names"
        return self.weights(policy.scores_NK[:, :1], policy.scores_NK[:, 1:])

    @override
    def check(self, comparison: Comparison) -> None:
        scores, num = comparison.scores, len(comparison.all_answers)
        what = f"{type(self).__name__}: comparison {comparison.prompt.id!r}"
        if len(scores) != num:
            raise DataError(
                f"{what} has {len(scores)} scores for {num} answers; give every answer a score, "
                "or choose another weighting"
            )
        weights: Any = self.weights(np.array(scores[:1]), np.array(scores[1:]))
        if not (weights >= 0).all():  # also refuses NaN
            raise DataError(
                f"{what} would get the weights {weights.tolist()} from its scores {scores}; a "
                "negative weight reverses the preference: put the better answer first"
            )


@dataclasses.dataclass(frozen=True)
class ScoreGap(Scored):
    """How much better the chosen answer is (GAPO, AnimeReward). Equal scores give no gradient.

    With s the scores divided by `scale`, the weight is `base^s_chosen - base^s_rejected`. The
    published code has base 2, and suggests base 3 and the form of `relative` in comments. A public
    note describes the weight as exp(gap / tau), which is not 0 at gap 0 and not what the code does.

    The release multiplies the mean loss of a micro-batch by its mean weight, which weights single
    pairs only if a micro-batch is one pair; here the weights are always those of pairs. GAPO was
    made for diffusion models; only weights and margin carry over to log-probs of text.

    Attributes:
        scale: divides the scores; the published ones range from 0 to 100.
        base: base of the exponentials, above 1; the larger, the more the best answers count.
        relative: use `1 - base^(s_rejected - s_chosen)`, which depends on the gap alone.
    """

    scale: Annotated[float, ABOVE_0] = 100.0
    base: Annotated[float, Range(1, above=True)] = 2.0
    relative: bool = False

    @override
    def weights(self, chosen: Array, rejected: Array) -> Array:
        chosen, rejected = chosen / self.scale, rejected / self.scale
        if self.relative:
            return 1 - self.base ** (rejected - chosen)
        return self.base**chosen - self.base**rejected


@dataclasses.dataclass(frozen=True)
class RawScore(Scored):
    """The score of the rejected answer, unchanged (MMedPO as released).

    In MMedPO the score, in [0, 1], says how much an error matters clinically, or how sure a tool
    is of the region it found. The chosen answer's score is not used.
    """

    @override
    def weights(self, chosen: Array, rejected: Array) -> Array:
        return rejected


@dataclasses.dataclass(frozen=True)
class ClippedZScore(Scored):
    """`clip((s - mean) / std, low, high)` of the rejected answer's score (MMedPO's paper).

    The release does not normalise, see `RawScore`. Mean and standard deviation are numbers of the
    whole data set, never of a batch, so the weight of a pair does not depend on its batch. The
    source `seva_jax.data.ClippedZScores` computes them from the data instead.

    Attributes:
        mean: mean of the scores of the data set.
        std: standard deviation of the same, above 0.
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

    @override
    def weights(self, chosen: Array, rejected: Array) -> Array:
        return ((rejected - self.mean) / self.std).clip(self.low, self.high)
