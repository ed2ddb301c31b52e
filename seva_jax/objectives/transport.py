"""Alignment by optimal transport: rewards of the whole batch are compared rank by rank.

What lives here: AOT (arXiv 2406.05882), paired and unpaired. Read next: `Objective.whole_batch`.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated

import jax
import jax.numpy as jnp

from seva_jax.objectives.pairs import PairObjective, Pairs
from seva_jax.objectives.weighting import Weighting
from seva_jax.ranges import Range
from seva_jax.types import DataError


@dataclasses.dataclass(frozen=True)
class AOT(PairObjective):
    """`aot`: policy's log-ratios of chosen and rejected above the reference's, rank by rank.

    With a = log p_policy(chosen) - log p_policy(rejected) and b the same under the reference,
    both sorted over the batch, the loss is -log sigmoid(beta * (a_(i) - b_(i))) for each rank i
    (arXiv 2406.05882, with the logistic loss).

    The batch is the optimiser's, not TRL's micro-batch of a device: the loss is the same in any
    layout. Answers that do not exist and comparisons of weight 0 have no rank; other weights
    weigh the term of the rank that the pair has by a, they do not move ranks.

    Attributes:
        label_smoothing: e of (1 - e) * loss + e * loss of the negative margin, in [0, 1).
    """

    label_smoothing: Annotated[float, Range(0, 1, below=True)] = 0.0

    def __post_init__(self) -> None:
        if self.weighting != Weighting():
            raise DataError(
                f"{type(self).__name__} sorts pairs, so a weight belongs to none of them; "
                "leave out the weighting"
            )

    @property
    def whole_batch(self) -> bool:
        """See `Objective.whole_batch`."""
        return True

    def sides(self, pairs: Pairs) -> tuple[jax.Array, jax.Array]:
        """What should be above, and what below, [N, J] both."""
        return pairs.chosen_NJ - pairs.rejected_NJ, pairs.ref_chosen_NJ - pairs.ref_rejected_NJ

    def pair_loss(self, pairs: Pairs) -> jax.Array:
        """See `PairObjective.pair_loss`."""
        counts_NJ = (pairs.exists_NJ > 0) & (pairs.weight_N[:, None] > 0)
        above, below = (x.ravel() for x in self.sides(pairs))

        def order(values: jax.Array) -> jax.Array:  # what does not count comes last
            return jnp.argsort(jnp.where(counts_NJ.ravel(), values, jnp.inf))

        rank = jnp.argsort(order(above))
        margin_NJ = self.beta * (above - below[order(below)][rank]).reshape(counts_NJ.shape)
        e = self.label_smoothing
        return (1 - e) * jax.nn.softplus(-margin_NJ) + e * jax.nn.softplus(margin_NJ)


@dataclasses.dataclass(frozen=True)
class AOTUnpaired(AOT):
    """`aot_unpaired`: log-ratios of chosen answers above those of rejected ones, rank by rank.

    As `AOT` with a = log p_policy - log p_ref of chosen answers, and b that of rejected ones, which
    need not answer the same questions.
    """

    def sides(self, pairs: Pairs) -> tuple[jax.Array, jax.Array]:
        """See `AOT.sides`."""
        chosen_NJ = jnp.broadcast_to(pairs.chosen_ratio_NJ, pairs.rejected_NJ.shape)
        return chosen_NJ, pairs.rejected_ratio_NJ
