"""Alignment by optimal transport: compares the rewards of a whole batch rank by rank.

What lives here: AOT (arXiv 2406.05882), paired and unpaired. Read next: `Objective.whole_batch`.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated

import jax
import jax.numpy as jnp
from typing_extensions import override

from seva_jax.objectives.pairs import PairObjective, Pairs
from seva_jax.objectives.weighting import Weighting
from seva_jax.ranges import Range
from seva_jax.types import DataError


@dataclasses.dataclass(frozen=True)
class AOT(PairObjective):
    """`aot`: raises the policy's log-ratios of chosen to rejected above the reference's, by rank.

    With a = log p_policy(chosen) - log p_policy(rejected) and b the same under the reference,
    both sorted over the batch, the loss is -log sigmoid(beta * (a_(i) - b_(i))) for each rank i
    (arXiv 2406.05882, with the logistic loss).

    The batch is the optimiser's, not a device's micro-batch as in TRL, so the loss does not depend
    on the layout. Padding and comparisons of weight 0 have no rank. Other weights multiply the
    term at the rank of their pair's a; they do not change ranks.

    Attributes:
        label_smoothing: e in [0, 1); the loss is (1 - e) L(margin) + e L(-margin).
    """

    label_smoothing: Annotated[float, Range(0, 1, below=True)] = 0.0

    def __post_init__(self) -> None:
        if self.weighting != Weighting():
            raise DataError(
                f"{type(self).__name__} compares sorted rewards of the whole batch, so pairs have "
                "no weights; leave out the weighting"
            )

    @property
    @override
    def whole_batch(self) -> bool:
        return True

    def sides(self, pairs: Pairs) -> tuple[jax.Array, jax.Array]:
        """Returns the values to raise, and the values they are compared with, both [N, J]."""
        return pairs.chosen_NJ - pairs.rejected_NJ, pairs.ref_chosen_NJ - pairs.ref_rejected_NJ

    @override
    def pair_loss(self, pairs: Pairs) -> jax.Array:
        counts_NJ = (pairs.exists_NJ > 0) & (pairs.weight_N[:, None] > 0)
        above, below = (x.ravel() for x in self.sides(pairs))

        def order(values: jax.Array) -> jax.Array:  # pairs that do not count come last
            return jnp.argsort(jnp.where(counts_NJ.ravel(), values, jnp.inf))

        rank = jnp.argsort(order(above))
        margin_NJ = self.beta * (above - below[order(below)][rank]).reshape(counts_NJ.shape)
        e = self.label_smoothing
        return (1 - e) * jax.nn.softplus(-margin_NJ) + e * jax.nn.softplus(margin_NJ)


@dataclasses.dataclass(frozen=True)
class AOTUnpaired(AOT):
    """`aot_unpaired`: raises log-ratios of chosen answers above those of rejected ones, by rank.

    As `AOT`, with a = log p_policy - log p_ref of chosen answers and b that of rejected ones, which
    need not answer the same questions.
    """

    @override
    def sides(self, pairs: Pairs) -> tuple[jax.Array, jax.Array]:
        chosen_NJ = jnp.broadcast_to(pairs.chosen_ratio_NJ, pairs.rejected_NJ.shape)
        return chosen_NJ, pairs.rejected_ratio_NJ
