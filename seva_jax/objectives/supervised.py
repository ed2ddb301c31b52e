"""Supervised training on the first answer: makes base models, and serves as SeVa's control."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from seva_jax.objectives.base import Metrics, Objective
from seva_jax.types import BranchLogps


@dataclasses.dataclass(frozen=True)
class Supervised(Objective):
    """Negative log-likelihood of the first branch, mean over its tokens."""

    needs_reference: ClassVar[bool] = False

    def __call__(
        self, policy: BranchLogps, reference: BranchLogps | None
    ) -> tuple[jax.Array, Metrics]:
        """See `Objective.__call__`."""
        num_tokens_N = jnp.maximum(policy.mask_NKT[:, 0].sum(-1), 1)
        nll_N = -policy.sums_NK[:, 0] / num_tokens_N
        return nll_N, {"nll_loss": nll_N, "logps/chosen": policy.sums_NK[:, 0]}
