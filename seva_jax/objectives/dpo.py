"""Direct preference optimisation with one or several rejected answers."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from seva_jax.objectives.base import Metrics, Objective
from seva_jax.types import BranchLogps


@dataclasses.dataclass(frozen=True)
class DPO(Objective):
    """Sigmoid DPO (arXiv 2305.18290, eq. 7), with K - 1 rejected answers as InfoNCE.

    With rewards `r_k = beta * (log p_policy(y_k) - log p_ref(y_k))`, log-probs summed over the
    answer tokens, the loss is `-log(exp(r_1) / sum_k exp(r_k))` where branch 1 is chosen. For
    K = 2 this is `-log sigmoid(r_chosen - r_rejected)`, SeVa's loss (arXiv 2404.10501, eq. 4).

    Attributes:
        beta: strength of the pull towards the reference; larger is closer.
        sft_weight: adds this times the chosen answer's mean negative log-likelihood per token
            (RPO, arXiv 2404.19733). 0 in SeVa.
    """

    beta: float = 0.1
    sft_weight: float = 0.0

    def __call__(
        self, policy: BranchLogps, reference: BranchLogps | None
    ) -> tuple[jax.Array, Metrics]:
        """See `Objective.__call__`; metric names and meanings are TRL's.

        >>> policy = BranchLogps(jnp.zeros((1, 2, 3)), jnp.ones((1, 2, 3)))
        >>> loss_N, metrics = DPO()(policy, policy)
        >>> round(float(loss_N[0]), 6)
        0.693147
        """
        assert reference is not None, "DPO compares with a reference"
        ratio_NK = policy.sums_NK - jax.lax.stop_gradient(reference.sums_NK)
        reward_NK = self.beta * ratio_NK
        exists_NK = policy.exists_NK
        rejected_NJ, rejected_exists_NJ = reward_NK[:, 1:], exists_NK[:, 1:]
        # log-sum-exp of the differences to the chosen reward keeps K = 2 exactly -log sigmoid.
        gap_NJ = jnp.where(rejected_exists_NJ > 0, rejected_NJ - reward_NK[:, :1], -jnp.inf)
        loss_N = jax.nn.logsumexp(jnp.pad(gap_NJ, ((0, 0), (1, 0))), axis=-1)

        num_rejected_N = jnp.maximum(rejected_exists_NJ.sum(-1), 1)
        rejected_N = (rejected_NJ * rejected_exists_NJ).sum(-1) / num_rejected_N
        hardest_N = jnp.max(jnp.where(rejected_exists_NJ > 0, rejected_NJ, -jnp.inf), axis=-1)
        nll_N = -policy.sums_NK[:, 0] / jnp.maximum(policy.mask_NKT[:, 0].sum(-1), 1)
        if self.sft_weight:
            loss_N = loss_N + self.sft_weight * nll_N
        logps_rejected = (policy.sums_NK[:, 1:] * rejected_exists_NJ).sum(-1) / num_rejected_N
        metrics = {
            "rewards/chosen": reward_NK[:, 0],
            "rewards/rejected": rejected_N,
            "rewards/margins": reward_NK[:, 0] - rejected_N,
            "rewards/accuracies": (reward_NK[:, 0] > hardest_N).astype(jnp.float32),
            "logps/chosen": policy.sums_NK[:, 0],
            "logps/rejected": logps_rejected,
            "nll_loss": nll_N,
        }
        return loss_N, metrics
