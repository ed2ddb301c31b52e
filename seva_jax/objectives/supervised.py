"""Supervised training on the first answer, for base models and as a control for SeVa."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from typing_extensions import override

from seva_jax.objectives.base import Metrics, Objective, mean_nll
from seva_jax.types import BranchLogps


@dataclasses.dataclass(frozen=True)
class Supervised(Objective):
    """Negative log-likelihood of the first answer.

    Attributes:
        mean: "answers" averages each answer over its tokens, then over answers. "tokens" averages
            over all tokens of the batch, so long answers count more (TRL's `sft`, but over the
            optimiser's batch instead of a device's micro-batch).
    """

    needs_reference: ClassVar[bool] = False
    mean: Literal["answers", "tokens"] = "answers"

    @property
    @override
    def whole_batch(self) -> bool:
        return self.mean == "tokens"

    @override
    def __call__(
        self, policy: BranchLogps, reference: BranchLogps | None
    ) -> tuple[jax.Array, Metrics]:
        nll_N = mean_nll(policy)
        loss_N = nll_N
        if self.mean == "tokens":
            tokens_N = policy.mask_NKT[:, 0].sum(-1)
            weight_N = jnp.ones_like(tokens_N) if policy.weight_N is None else policy.weight_N
            per_answer = (weight_N * tokens_N).sum() / jnp.maximum(weight_N.sum(), 1e-30)
            loss_N = nll_N * tokens_N / jnp.maximum(per_answer, 1e-30)
        return loss_N, {"nll_loss": nll_N, "logps/chosen": policy.sums_NK[:, 0]}
