"""Weighted sums of objectives, such as MPO."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence
from typing import Annotated

import jax
import jax.numpy as jnp
from typing_extensions import override

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
        objective: the loss of this term.
        weight: the factor of this term.
    """

    objective: Objective = DPO()
    weight: Annotated[float, FROM_0] = 1.0


@dataclasses.dataclass(frozen=True)
class Mixed(Objective):
    """A weighted sum of losses, as TRL's lists `loss_type` and `loss_weights`.

    A metric comes from the first part that reports it. The loss of each part is reported as
    `losses/<class>`, that of a second part of the same class as `losses/<class> 2`. Every part has
    its own beta, weighting and so on.

    Attributes:
        parts: the terms of the sum.
    """

    parts: tuple[Part, ...] = (Part(),)

    @property
    @override
    def needs(self) -> frozenset[Need]:
        return NOTHING.union(*(part.objective.needs for part in self.parts))

    @property
    @override
    def computes_reference(self) -> bool:
        return any(part.objective.computes_reference for part in self.parts)

    @property
    @override
    def whole_batch(self) -> bool:
        return any(part.objective.whole_batch for part in self.parts)

    @override
    def check(self, comparisons: Sequence[Comparison]) -> None:
        for part in self.parts:
            part.objective.check(comparisons)

    @override
    def __call__(
        self, policy: BranchLogps, reference: BranchLogps | None
    ) -> tuple[jax.Array, Metrics]:
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
    """Returns mixed preference optimisation (MPO, arXiv 2411.10442): DPO, BCO and supervised loss.

    Args:
        beta: of DPO and BCO.
        preference: weight of DPO.
        quality: weight of BCO.
        generation: weight of `Supervised()`, the chosen answers' negative log-likelihood.
    """
    return Mixed(
        (
            Part(DPO(beta=beta), preference),
            Part(BCOPair(beta=beta), quality),
            Part(Supervised(), generation),
        )
    )
