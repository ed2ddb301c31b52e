"""Weighted sums of objectives, such as MPO."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence
from typing import Annotated

import jax
import jax.numpy as jnp

from seva_jax.objectives.base import NOTHING, Metrics, Need, Objective
from seva_jax.objectives.dpo import DPO
from seva_jax.objectives.pointwise import BCOPair
from seva_jax.objectives.supervised import Supervised
from seva_jax.ranges import FROM_0
from seva_jax.types import BranchLogps, Comparison


@dataclasses.dataclass(frozen=True)
class Part:
    """One term of a sum.

    Attributes:
        objective: the term.
        weight: what it is multiplied by.
    """

    objective: Objective = DPO()
    weight: Annotated[float, FROM_0] = 1.0


@dataclasses.dataclass(frozen=True)
class Mixed(Objective):
    """A weighted sum of losses, TRL's lists `loss_type` and `loss_weights`.

    Metrics are those of the first part that reports them, and each part's loss as
    `losses/<class>`, the second one of a class as `losses/<class> 2`. Every part has a beta, a
    weighting and so on of its own.

    Attributes:
        parts: the terms.
    """

    parts: tuple[Part, ...] = (Part(),)

    @property
    def needs(self) -> frozenset[Need]:
        """See `Objective.needs`."""
        return NOTHING.union(*(part.objective.needs for part in self.parts))

    @property
    def computes_reference(self) -> bool:
        """See `Objective.computes_reference`."""
        return any(part.objective.computes_reference for part in self.parts)

    @property
    def whole_batch(self) -> bool:
        """See `Objective.whole_batch`."""
        return any(part.objective.whole_batch for part in self.parts)

    def check(self, comparisons: Sequence[Comparison]) -> None:
        """See `Objective.check`."""
        for part in self.parts:
            part.objective.check(comparisons)

    def __call__(
        self, policy: BranchLogps, reference: BranchLogps | None
    ) -> tuple[jax.Array, Metrics]:
        """See `Objective.__call__`."""
        total_N, metrics = jnp.zeros(len(policy.mask_NKT)), {}
        seen: collections.Counter[str] = collections.Counter()
        for part in self.parts:
            loss_N, own = part.objective(policy, reference)
            total_N = total_N + part.weight * loss_N
            kind = type(part.objective).__name__
            seen[kind] += 1
            number = f" {seen[kind]}" if seen[kind] > 1 else ""
            metrics = own | {f"losses/{kind}{number}": loss_N} | metrics
        return total_N, metrics


def mpo(
    beta: float = 0.1, preference: float = 0.8, quality: float = 0.2, generation: float = 1.0
) -> Mixed:
    """Mixed preference optimisation (MPO, arXiv 2411.10442): DPO, BCO and supervised training.

    Args:
        beta: of DPO and BCO.
        preference: weight of DPO.
        quality: weight of BCO.
        generation: weight of the chosen answers' likelihood, a mean over answers.
    """
    return Mixed(
        (
            Part(DPO(beta=beta), preference),
            Part(BCOPair(beta=beta), quality),
            Part(Supervised(), generation),
        )
    )
