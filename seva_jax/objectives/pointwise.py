"""Losses of each answer's reward on its own, `beta * log-ratio`: chosen up, rejected down.

What lives here: NCA, BCO, SPPO, APO. What does not: losses of the margin alone (`margin.py`).
Names are those of TRL 1.16 (`loss_type`), whose values and gradients they have.
"""

from __future__ import annotations

import dataclasses

import jax

from seva_jax.objectives.pairs import PairObjective, Pairs


@dataclasses.dataclass(frozen=True)
class PointwiseObjective(PairObjective):
    """Base class: a family defines `rewards_loss`."""

    def rewards_loss(self, chosen_NJ: jax.Array, rejected_NJ: jax.Array) -> jax.Array:
        """Loss of every pair, [N, J], from the rewards of its answers."""
        raise NotImplementedError(f"{type(self).__name__} must define rewards_loss")

    def pair_loss(self, pairs: Pairs) -> jax.Array:
        """See `PairObjective.pair_loss`."""
        chosen_NJ, rejected_NJ = pairs.chosen_ratio_NJ, pairs.rejected_ratio_NJ
        return self.rewards_loss(self.beta * chosen_NJ, self.beta * rejected_NJ)


@dataclasses.dataclass(frozen=True)
class NCAPair(PointwiseObjective):
    """`nca_pair`: -log s(c) - (log s(-c) + log s(-r)) / 2, s = sigmoid (arXiv 2402.05369).

    Raises the chosen answer's log-prob itself, not only its lead over the rejected one's.
    """

    def rewards_loss(self, chosen_NJ: jax.Array, rejected_NJ: jax.Array) -> jax.Array:
        """See `PointwiseObjective.rewards_loss`."""
        down = (jax.nn.softplus(chosen_NJ) + jax.nn.softplus(rejected_NJ)) / 2
        return jax.nn.softplus(-chosen_NJ) + down


@dataclasses.dataclass(frozen=True)
class BCOPair(PointwiseObjective):
    """`bco_pair`: -log s(c) - log s(-r), s = sigmoid (arXiv 2404.04656).

    The paper moves both rewards by the running mean of all rewards seen, and earlier versions of
    TRL kept such a mean; TRL 1.16 does not, and neither does this: a running mean would make the
    loss depend on the order of micro-batches and add a state that checkpoints must carry. MPO
    (arXiv 2411.10442), too, is here with a shift of 0.
    """

    def rewards_loss(self, chosen_NJ: jax.Array, rejected_NJ: jax.Array) -> jax.Array:
        """See `PointwiseObjective.rewards_loss`."""
        return jax.nn.softplus(-chosen_NJ) + jax.nn.softplus(rejected_NJ)


@dataclasses.dataclass(frozen=True)
class SPPOHard(PointwiseObjective):
    """`sppo_hard`: (log-ratio of chosen - 1/(2 beta))^2 + (of rejected + 1/(2 beta))^2.

    arXiv 2405.00675, eq. 4.7, with the probabilities that the answers win put to 1 and 0.
    """

    def rewards_loss(self, chosen_NJ: jax.Array, rejected_NJ: jax.Array) -> jax.Array:
        """See `PointwiseObjective.rewards_loss`."""
        return ((chosen_NJ - 0.5) ** 2 + (rejected_NJ + 0.5) ** 2) / self.beta**2


@dataclasses.dataclass(frozen=True)
class APOZero(PointwiseObjective):
    """`apo_zero`: 1 - s(c) + s(r), s = sigmoid (arXiv 2408.06266, eq. 7).

    For chosen answers that are better than what the model writes.
    """

    def rewards_loss(self, chosen_NJ: jax.Array, rejected_NJ: jax.Array) -> jax.Array:
        """See `PointwiseObjective.rewards_loss`."""
        return jax.nn.sigmoid(-chosen_NJ) + jax.nn.sigmoid(rejected_NJ)


@dataclasses.dataclass(frozen=True)
class APODown(PointwiseObjective):
    """`apo_down`: s(c) + 1 - s(c - r), s = sigmoid (arXiv 2408.06266, eq. 8).

    For chosen answers that are worse than what the model writes.
    """

    def rewards_loss(self, chosen_NJ: jax.Array, rejected_NJ: jax.Array) -> jax.Array:
        """See `PointwiseObjective.rewards_loss`."""
        return jax.nn.sigmoid(chosen_NJ) + jax.nn.sigmoid(rejected_NJ - chosen_NJ)
