"""The base class of preference objectives: a chosen answer against each of its rejected answers.

What lives here: `Pairs`, the numbers a loss works on, and `PairObjective`, which computes them,
weights the losses and reports rewards. What does not: any loss. Read next: `margin.py`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
from typing_extensions import override

from seva_jax.objectives.base import Metrics, Need, Objective, mean_existing, mean_nll
from seva_jax.objectives.weighting import Weighting
from seva_jax.ranges import Range
from seva_jax.types import BranchLogps, Comparison


class Pairs(NamedTuple):
    """Each chosen answer next to its J = K - 1 rejected answers.

    Attributes:
        chosen_NJ: summed log-prob of the chosen answer under the policy, [N, 1]; [N, J] with
            `PairObjective.ld_alpha`, where it depends on the length of the rejected answer.
        rejected_NJ: summed log-prob of each rejected answer under the policy.
        ref_chosen_NJ: as `chosen_NJ` under the reference, without gradient.
        ref_rejected_NJ: as `rejected_NJ` under the reference, without gradient.
        chosen_tokens_N1: number of tokens of the chosen answer, at least 1.
        rejected_tokens_NJ: number of tokens of each rejected answer, at least 1.
        exists_NJ: 1 where there is a rejected answer, 0 for padding.
        weight_N: weight of the comparison, see `BranchLogps.weight_N`.
    """

    chosen_NJ: jax.Array
    rejected_NJ: jax.Array
    ref_chosen_NJ: jax.Array
    ref_rejected_NJ: jax.Array
    chosen_tokens_N1: jax.Array
    rejected_tokens_NJ: jax.Array
    exists_NJ: jax.Array
    weight_N: jax.Array

    @property
    def chosen_ratio_NJ(self) -> jax.Array:
        """Returns the chosen answer's log-ratio of policy and reference."""
        return self.chosen_NJ - self.ref_chosen_NJ

    @property
    def rejected_ratio_NJ(self) -> jax.Array:
        """Returns each rejected answer's log-ratio of policy and reference."""
        return self.rejected_NJ - self.ref_rejected_NJ


@dataclasses.dataclass(frozen=True)
class PairObjective(Objective):
    """Base class: one loss for each pair of a chosen and a rejected answer.

    The loss of a comparison with several rejected answers is the mean over its pairs. A subclass
    defines `pair_loss`.

    Attributes:
        beta: how strongly the policy is held to the reference; larger stays closer.
        ld_alpha: weight, in [0, 1], of tokens beyond the length of the shorter answer of a pair
            (LD-DPO, arXiv 2409.06411). Below 1, longer answers gain less from their length; 1
            changes nothing.
        weighting: multiplies the loss of each pair by a weight; the default weighs all alike.
    """

    beta: Annotated[float, Range(0, 1000, above=True)] = 0.1
    ld_alpha: Annotated[float, Range(0, 1)] = 1.0
    weighting: Weighting = Weighting()

    @property
    @override
    def needs(self) -> frozenset[Need]:
        return self.weighting.needs

    @override
    def check(self, comparisons: Sequence[Comparison]) -> None:
        for comparison in comparisons:
            self.weighting.check(comparison)

    @override
    def __call__(
        self, policy: BranchLogps, reference: BranchLogps | None
    ) -> tuple[jax.Array, Metrics]:
        """Names and meanings of the metrics are TRL's."""
        assert reference is not None, "preference objectives compare with a reference"
        pairs = self.pairs(policy, reference)
        weight_NJ = jax.lax.stop_gradient(self.weighting(policy))
        return self.loss(pairs, weight_NJ), self.metrics(policy, pairs)

    def pair_loss(self, pairs: Pairs) -> jax.Array:
        """Returns the loss of every pair, [N, J]; any finite value where there is none."""
        raise NotImplementedError(f"{type(self).__name__} must define pair_loss")

    def loss(self, pairs: Pairs, weight_NJ: jax.Array) -> jax.Array:
        """Returns the loss of every comparison, [N]: the weighted mean over its pairs."""
        return mean_existing(weight_NJ * self.pair_loss(pairs), pairs.exists_NJ)

    def pairs(self, policy: BranchLogps, reference: BranchLogps) -> Pairs:
        """Returns the log-probs of the answers of every pair."""
        mask_NKT = policy.mask_NKT
        tokens_NK = jnp.maximum(mask_NKT.sum(-1), 1)
        if self.ld_alpha == 1.0:
            weight_N1KT = mask_NKT[:, None]
        else:  # [N, J, K, T]: weights in the pair of the chosen answer and rejected answer j
            shorter_NJ = jnp.minimum(tokens_NK[:, :1], tokens_NK[:, 1:])
            rank_N1KT = jnp.cumsum(mask_NKT, axis=-1)[:, None]  # first token of an answer: 1
            shared = rank_N1KT <= shorter_NJ[..., None, None]
            weight_N1KT = mask_NKT[:, None] * jnp.where(shared, 1.0, self.ld_alpha)

        def chosen_and_rejected(logps: BranchLogps) -> tuple[jax.Array, jax.Array]:
            sums_NJK = (logps.logp_NKT[:, None] * weight_N1KT).sum(-1)
            chosen_NJ = sums_NJK[:, :, 0]
            if self.ld_alpha == 1.0:
                return chosen_NJ, sums_NJK[:, 0, 1:]
            return chosen_NJ, jnp.diagonal(sums_NJK[:, :, 1:], axis1=1, axis2=2)

        weight_N = policy.weight_N
        return Pairs(
            *chosen_and_rejected(policy),
            *jax.lax.stop_gradient(chosen_and_rejected(reference)),
            tokens_NK[:, :1],
            tokens_NK[:, 1:],
            policy.exists_NK[:, 1:],
            jnp.ones(len(tokens_NK)) if weight_N is None else weight_N,
        )

    def metrics(self, policy: BranchLogps, pairs: Pairs) -> Metrics:
        """Returns rewards (`beta * log-ratio`), log-probs and accuracies, each [N].

        A comparison is accurate if its chosen answer beats every rejected one.
        """
        exists_NJ = pairs.exists_NJ
        reward_NJ = self.beta * pairs.chosen_ratio_NJ + jnp.zeros_like(exists_NJ)
        rejected_NJ = self.beta * pairs.rejected_ratio_NJ
        chosen_NJ = pairs.chosen_NJ + jnp.zeros_like(exists_NJ)
        wrong_NJ = (exists_NJ > 0) & (reward_NJ <= rejected_NJ)
        chosen_N, rejected_N = (mean_existing(x, exists_NJ) for x in (reward_NJ, rejected_NJ))
        return {
            "rewards/chosen": chosen_N,
            "rewards/rejected": rejected_N,
            "rewards/margins": chosen_N - rejected_N,
            "rewards/accuracies": 1.0 - wrong_NJ.any(-1),
            "logps/chosen": mean_existing(chosen_NJ, exists_NJ),
            "logps/rejected": mean_existing(pairs.rejected_NJ, exists_NJ),
            "nll_loss": mean_nll(policy),
        }
