"""The contract of an objective. Every other file of this package holds one family of them.

What lives here: `Objective`, the statistics it may ask for, and two means that many losses use.
What does not: any loss. Read next: `pairs.py`, which most objectives extend.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp

from seva_jax.types import BranchLogps, Comparison

Metrics = dict[str, jax.Array]
# Optional fields of `BranchLogps`, which defines each (`seva_jax/types.py`); no shape suffix.
Need = Literal["scores", "log_sum_sq", "best_other", "last_argmax", "kl", "spans"]
NOTHING: frozenset[Need] = frozenset()


@dataclasses.dataclass(frozen=True)
class Objective:
    """Scores comparisons from the log-probs of their branches.

    Attributes:
        needs_reference: whether `__call__` needs `reference`.
    """

    needs_reference: ClassVar[bool] = True

    @property
    def needs(self) -> frozenset[Need]:
        """Returns the optional fields of `BranchLogps` it reads; the step computes no others."""
        return NOTHING

    @property
    def computes_reference(self) -> bool:
        """Returns whether the step must run the reference: stored log-probs are not enough."""
        return False

    @property
    def whole_batch(self) -> bool:
        """Returns whether the loss of a comparison depends on the rest of its batch.

        If so, the step calls the objective once, with the comparisons of all micro-batches and
        their weights, so that the gradient does not depend on how the batch is laid out. With
        more than one micro-batch this costs a second forward pass.
        """
        return False

    def check(self, comparisons: Sequence[Comparison]) -> None:
        """Checks the data before training.

        Raises:
            DataError: a comparison lacks something the objective needs; says which and what.
        """

    def __call__(
        self, policy: BranchLogps, reference: BranchLogps | None
    ) -> tuple[jax.Array, Metrics]:
        """Returns the loss and the metrics of each comparison.

        Args:
            policy: log-probs under the policy; gradients flow through them.
            reference: log-probs under the reference, same shapes; None if not needed.

        Returns:
            loss_N, and metrics as [N] arrays. The step averages both, weighted, over all
            comparisons of the global batch, so the gradient does not depend on how the batch
            is laid out. Comparisons of weight 0 may have any finite value.
        """
        raise NotImplementedError(f"{type(self).__name__} must define __call__")


def mean_existing(value_NJ: jax.Array, exists_NJ: jax.Array) -> jax.Array:
    """Returns the mean over the J entries that exist, [N]; 0 where none does."""
    return jnp.where(exists_NJ > 0, value_NJ, 0.0).sum(-1) / jnp.maximum(exists_NJ.sum(-1), 1)


def mean_nll(policy: BranchLogps) -> jax.Array:
    """Returns the chosen answer's negative log-likelihood per token, [N]."""
    return -policy.sums_NK[:, 0] / jnp.maximum(policy.mask_NKT[:, 0].sum(-1), 1)
