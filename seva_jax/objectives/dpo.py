"""Direct preference optimisation with one or several rejected answers."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import jax
import jax.numpy as jnp
from typing_extensions import override

from seva_jax.objectives.base import Metrics, mean_existing, mean_nll
from seva_jax.objectives.margin import MarginObjective
from seva_jax.objectives.pairs import Pairs
from seva_jax.ranges import Range
from seva_jax.types import BranchLogps


@dataclasses.dataclass(frozen=True)
class DPO(MarginObjective):
    """Sigmoid DPO (arXiv 2305.18290, eq. 7); several rejected answers are compared as in InfoNCE.

    With rewards `r_k = beta * (log p_policy(y_k) - log p_ref(y_k))`, log-probs summed over the
    answer tokens, the loss is `-log(exp(r_1) / sum_k exp(r_k))`, where branch 1 is chosen. For
    K = 2 this is `-log sigmoid(r_chosen - r_rejected)`, SeVa's loss (arXiv 2404.10501, eq. 4) and
    TRL's `sigmoid`. A comparison is weighted by the mean weight of its pairs.

    Attributes:
        sft_weight: adds this times the chosen answer's negative log-likelihood per token (RPO,
            arXiv 2404.19733); `weighting` does not apply to this term. 0 in SeVa.
        label_smoothing: the assumed probability, in [0, 0.5), that chosen and rejected are swapped
            (cDPO, E. Mitchell, "A note on DPO with noisy preferences"). TRL 1.16's `sigmoid`
            ignores its field of this name.
    """

    sft_weight: Annotated[float, Range(0, 1000)] = 0.0
    label_smoothing: Annotated[float, Range(0, 0.5, below=True)] = 0.0

    @override
    def __call__(
        self, policy: BranchLogps, reference: BranchLogps | None
    ) -> tuple[jax.Array, Metrics]:
        """Adds the likelihood term to the loss of `PairObjective`.

        >>> policy = BranchLogps(jnp.zeros((1, 2, 3)), jnp.ones((1, 2, 3)))
        >>> loss_N, metrics = DPO()(policy, policy)
        >>> round(float(loss_N[0]), 6)
        0.693147
        """
        loss_N, metrics = super().__call__(policy, reference)
        if self.sft_weight:
            loss_N = loss_N + self.sft_weight * mean_nll(policy)
        return loss_N, metrics

    @override
    def loss(self, pairs: Pairs, weight_NJ: jax.Array) -> jax.Array:
        margin_NJ = self.margin(pairs)
        # log-sum-exp of the differences to the chosen reward keeps K = 2 exactly -log sigmoid.
        gap_NJ = jnp.where(pairs.exists_NJ > 0, -margin_NJ, -jnp.inf)
        loss_N = jax.nn.logsumexp(jnp.pad(gap_NJ, ((0, 0), (1, 0))), axis=-1)
        if self.label_smoothing:
            loss_N = loss_N + self.label_smoothing * mean_existing(margin_NJ, pairs.exists_NJ)
        return loss_N * mean_existing(weight_NJ, pairs.exists_NJ)
