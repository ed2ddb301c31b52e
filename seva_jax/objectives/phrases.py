"""Rewards of phrases instead of answers, with the policy kept near the reference (RRPO)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Annotated

import jax

from seva_jax.objectives.base import Metrics, Need
from seva_jax.objectives.margin import MarginObjective
from seva_jax.objectives.pairs import Pairs
from seva_jax.ranges import FROM_0
from seva_jax.types import BranchLogps, Comparison, DataError


@dataclasses.dataclass(frozen=True)
class RRPO(MarginObjective):
    """Refined regularised preference optimisation (arXiv 2504.12083).

    `-log sigmoid(beta u) + alpha sum_t KL(p_ref || p_policy)`. u is the log-ratio of the chosen
    answer minus that of the rejected one, over those tokens only in which they differ; the KL, of
    whole next-token distributions, is summed over all tokens of the chosen answer.

    These are the tokens of phrases marked in the data (`data/marked.py`); where nothing is marked,
    they are found by aligning the two answers, as the release does for VideoChat2. A pair without
    any such token has no loss; the metric "skipped" is the share of these. Published: beta 0.1 and
    alpha 0.01 for LLaVA-Video, 0.5 and 0.1 for VideoChat2.

    Attributes:
        alpha: weight of the KL.
    """

    alpha: Annotated[float, FROM_0] = 0.01

    @property
    def needs(self) -> frozenset[Need]:
        """See `Objective.needs`."""
        return super().needs | frozenset[Need]({"spans", "kl"})

    @property
    def computes_reference(self) -> bool:
        """See `Objective.computes_reference`."""
        return True

    def check(self, comparisons: Sequence[Comparison]) -> None:
        """See `Objective.check`."""
        super().check(comparisons)
        for comparison in comparisons:
            if len(comparison.answers) != 2 or comparison.more:
                raise DataError(
                    f"RRPO: comparison {comparison.prompt.id!r} needs one chosen and one rejected "
                    "answer to the same images"
                )

    def __call__(
        self, policy: BranchLogps, reference: BranchLogps | None
    ) -> tuple[jax.Array, Metrics]:
        """See `Objective.__call__`."""
        assert policy.kl_NKT is not None, "the step gives what `needs` names"
        assert policy.spans_NKT is not None, "the step gives what `needs` names"
        loss_N, metrics = super().__call__(policy, reference)
        kl_N = policy.kl_NKT[:, 0].sum(-1)
        used_N = 1.0 * (policy.spans_NKT.sum((1, 2)) > 0)
        loss_N = used_N * (loss_N + self.alpha * kl_N)
        return loss_N, metrics | {"kl": kl_N, "skipped": 1.0 - used_N}

    def pairs(self, policy: BranchLogps, reference: BranchLogps) -> Pairs:
        """See `PairObjective.pairs`."""
        spans_NKT = policy.spans_NKT
        assert spans_NKT is not None, "the step gives what `needs` names"
        policy = policy._replace(logp_NKT=policy.logp_NKT * spans_NKT)
        reference = reference._replace(logp_NKT=reference.logp_NKT * spans_NKT)
        return super().pairs(policy, reference)

    def pair_loss(self, pairs: Pairs) -> jax.Array:
        """See `PairObjective.pair_loss`."""
        return jax.nn.softplus(-self.margin(pairs))
