"""The contract of an objective. One family per file beside this one."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax

from seva_jax.types import BranchLogps

Metrics = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Objective:
    """Scores comparisons from the log-probs of their branches.

    Attributes:
        needs_reference: whether `reference` must be given.
    """

    needs_reference: ClassVar[bool] = True

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
