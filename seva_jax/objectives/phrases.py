"""RRPO: rewards of phrases instead of whole answers, with a KL penalty on every token."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Annotated

import jax
from typing_extensions import override

from seva_jax.objectives.base import Metrics, Need
from seva_jax.objectives.margin import MarginObjective
from seva_jax.objectives.pairs import Pairs
from seva_jax.ranges import FROM_0
from seva_jax.types import BranchLogps, Comparison, DataError


@dataclasses.dataclass(frozen=True)
class RRPO(MarginObjective):
    """Refined regularised preference optimisation (arXiv 2504.12083).

    `-log sigmoid(beta u) + alpha sum_t KL(p_ref || p_policy)`. u is the log-ratio of the chosen
    answer minus that of the rejected one, each summed only over the tokens in which the two
    differ. The KL is that of whole next-token distributions, summed over all tokens of the chosen
    answer.

    The differing tokens are those of phrases marked in the data (`seva_jax/data/marked.py`). Where
    nothing is marked, aligning the two answers finds them, as the release does for VideoChat2: only
    phrases that replace one another, not those that one answer has in addition (`differing` in
    `seva_jax/batches/trees.py`). A pair without any such token has the KL only, as in that release;
    the metric "unmarked" is the share of such pairs. Published values: beta 0.1 and alpha 0.01 for
    LLaVA-Video, 0.5 and 0.05 for LongVU. For VideoChat2 the release has two pairs of values, 0.5
    and 0.1 in its file of settings and 0.9 and 0.01 in the script that overrides it.

    Attributes:
        alpha: weight of the KL; larger keeps the policy closer to the reference.
    """

    alpha: Annotated[float, FROM_0] = 0.01

    @property
    @override
    def needs(self) -> frozenset[Need]:
        return super().needs | frozenset[Need]({"spans", "kl"})

    @property
    @override
    def computes_reference(self) -> bool:
        return True

    @override
    def check(self, comparisons: Sequence[Comparison]) -> None:
        super().check(comparisons)
        for comparison in comparisons:
            if len(comparison.answers) != 2 or comparison.more:
                raise DataError(
                    f"RRPO: comparison {comparison.prompt.id!r} needs one chosen and one rejected "
                    "answer to the same images"
                )

    @override
    def __call__(
        self, policy: BranchLogps, reference: BranchLogps | None
    ) -> tuple[jax.Array, Metrics]:
        assert policy.kl_NKT is not None, "the step gives what `needs` names"
        assert policy.spans_NKT is not None, "the step gives what `needs` names"
        loss_N, metrics = super().__call__(policy, reference)
        kl_N = policy.kl_NKT[:, 0].sum(-1)
        unmarked_N = 1.0 * (policy.spans_NKT.sum((1, 2)) == 0)
        return loss_N + self.alpha * kl_N, metrics | {"kl": kl_N, "unmarked": unmarked_N}

    @override
    def pairs(self, policy: BranchLogps, reference: BranchLogps) -> Pairs:
        spans_NKT = policy.spans_NKT
        assert spans_NKT is not None, "the step gives what `needs` names"
        policy = policy._replace(logp_NKT=policy.logp_NKT * spans_NKT)
        reference = reference._replace(logp_NKT=reference.logp_NKT * spans_NKT)
        return super().pairs(policy, reference)

    @override
    def pair_loss(self, pairs: Pairs) -> jax.Array:
        return jax.nn.softplus(-self.margin(pairs))
