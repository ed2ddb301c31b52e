"""Losses of each answer's own reward, `beta * log-ratio`: raise the chosen, lower the rejected.

What lives here: NCA, BCO, SPPO, APO. What does not: losses of the margin alone (`margin.py`).
Names, values and gradients are those of TRL 1.16 (`loss_type`).
"""

from __future__ import annotations

import dataclasses

import jax
from typing_extensions import override

from seva_jax.objectives.pairs import PairObjective, Pairs


@dataclasses.dataclass(frozen=True)
class PointwiseObjective(PairObjective):
    """Base class: the loss of a pair depends on both rewards. A subclass defines `rewards_loss`."""

    def rewards_loss(self, chosen_NJ: jax.Array, rejected_NJ: jax.Array) -> jax.Array:
        """Returns the loss of every pair, [N, J], from the rewards of its answers."""
        raise NotImplementedError(f"{type(self).__name__} must define rewards_loss")

    @override
    def pair_loss(self, pairs: Pairs) -> jax.Array:
        chosen_NJ, rejected_NJ = pairs.chosen_ratio_NJ, pairs.rejected_ratio_NJ
        return self.rewards_loss(self.beta * chosen_NJ, self.beta * rejected_NJ)


@dataclasses.dataclass(frozen=True)
class NCAPair(PointwiseObjective):
    """`nca_pair`: -log s(c) - (log s(-c) + log s(-r)) / 2, s = sigmoid (arXiv 2402.05369).

    It also raises the chosen answer's log-prob itself, not only its lead over the rejected one.
    """

    @override
    def rewards_loss(self, chosen_NJ: jax.Array, rejected_NJ: jax.Array) -> jax.Array:
        down = (jax.nn.softplus(chosen_NJ) + jax.nn.softplus(rejected_NJ)) / 2
        return jax.nn.softplus(-chosen_NJ) + down


@dataclasses.dataclass(frozen=True)
class BCOPair(PointwiseObjective):
    """`bco_pair`: -log s(c) - log s(-r), s = sigmoid (arXiv 2404.04656).

    The paper shifts both rewards by the running mean of all rewards seen, and earlier versions of
    TRL kept such a mean. TRL 1.16 does not, and neither does this class: a running mean would make
    the loss depend on the order of micro-batches and add state that checkpoints must carry. So
    `mpo` (MPO, arXiv 2411.10442) has a shift of 0, too.
    """

    @override
    def rewards_loss(self, chosen_NJ: jax.Array, rejected_NJ: jax.Array) -> jax.Array:
        return jax.nn.softplus(-chosen_NJ) + jax.nn.softplus(rejected_NJ)


@dataclasses.dataclass(frozen=True)
class SPPOHard(PointwiseObjective):
    """`sppo_hard`: (log-ratio of chosen - 1/(2 beta))^2 + (of rejected + 1/(2 beta))^2.

    arXiv 2405.00675, eq. 4.7, with the answers' probabilities of winning set to 1 and 0.
    """

    @override
    def rewards_loss(self, chosen_NJ: jax.Array, rejected_NJ: jax.Array) -> jax.Array:
        return ((chosen_NJ - 0.5) ** 2 + (rejected_NJ + 0.5) ** 2) / self.beta**2


@dataclasses.dataclass(frozen=True)
class APOZero(PointwiseObjective):
    """`apo_zero`: 1 - s(c) + s(r), s = sigmoid (arXiv 2408.06266, eq. 7).

    For chosen answers that are better than the model's own.
    """

    @override
    def rewards_loss(self, chosen_NJ: jax.Array, rejected_NJ: jax.Array) -> jax.Array:
        return jax.nn.sigmoid(-chosen_NJ) + jax.nn.sigmoid(rejected_NJ)


@dataclasses.dataclass(frozen=True)
class APODown(PointwiseObjective):
    """`apo_down`: s(c) + 1 - s(c - r), s = sigmoid (arXiv 2408.06266, eq. 8).

    For chosen answers that are worse than the model's own.
    """

    @override
    def rewards_loss(self, chosen_NJ: jax.Array, rejected_NJ: jax.Array) -> jax.Array:
        return jax.nn.sigmoid(chosen_NJ) + jax.nn.sigmoid(rejected_NJ - chosen_NJ)
