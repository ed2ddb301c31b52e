"""The contract of an objective. One family per file beside this one.

What lives here: `Objective`, what it may ask for, and the metrics that all preference objectives
report. What does not: any loss. Read next: `pairs.py`, which most of them extend.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp

from seva_jax.types import BranchLogps, Comparison

Metrics = dict[str, jax.Array]
# Optional fields of `BranchLogps`, without the suffix.
Need = Literal["scores", "log_sum_sq", "best_other", "last_argmax", "kl", "spans"]
NOTHING: frozenset[Need] = frozenset()


@dataclasses.dataclass(frozen=True)
class Objective:
    """Scores comparisons from the log-probs of their branches.

    Attributes:
        needs_reference: whether `reference` must be given.
    """

    needs_reference: ClassVar[bool] = True

    @property
    def needs(self) -> frozenset[Need]:
        """Optional fields of `BranchLogps` that must be there; the step computes no others."""
        return NOTHING

    @property
    def computes_reference(self) -> bool:
        """Whether the reference is needed in the step: stored log-probs are not enough."""
        return False

    @property
    def whole_batch(self) -> bool:
        """Whether the loss of a comparison depends on the others of its batch.

        Then the step calls the objective once, with all comparisons of all micro-batches and
        their weights, so that the gradient does not depend on how the batch is laid out. With
        more than one micro-batch this costs a second forward pass.
        """
        return False

    def check(self, comparisons: Sequence[Comparison]) -> None:
        """Looks at the data before training.

        Raises:
            DataError: a comparison lacks what the objective needs; says which and what.
        """

    def __call__(
        self, policy: BranchLogps, reference: BranchLogps | None
    ) -> tuple[jax.Array, Metrics]:
        """Loss and metrics of each comparison.

        Args:
            policy: log-probs under the policy; gradients flow through them.
            reference: log-probs under the reference, same shapes; None if not needed.

        Returns:
            loss_N, and metrics as [N] arrays. The step takes weighted means of both over all
            comparisons of the global batch, so the gradient does not depend on how the batch
            is laid out. Comparisons with weight 0 may have any finite value.
        """
        raise NotImplementedError(f"{type(self).__name__} must define __call__")


def mean_existing(value_NJ: jax.Array, exists_NJ: jax.Array) -> jax.Array:
    """Mean over what exists, such as rejected answers, [N]; 0 where there is nothing."""
    return jnp.where(exists_NJ > 0, value_NJ, 0.0).sum(-1) / jnp.maximum(exists_NJ.sum(-1), 1)


def mean_nll(policy: BranchLogps) -> jax.Array:
    """Negative log-likelihood of the chosen answer, mean over its tokens, [N]."""
    return -policy.sums_NK[:, 0] / jnp.maximum(policy.mask_NKT[:, 0].sum(-1), 1)
