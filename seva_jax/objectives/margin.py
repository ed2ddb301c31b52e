"""Losses that depend on the margin between the rewards of the chosen and the rejected answer.

What lives here: hinge, IPO, EXO, robust DPO, DiscoPOP and length-normalised DPO. What does not: DPO
itself, which takes several rejected answers (`dpo.py`), and losses of each answer's own reward
(`pointwise.py`). Names, values and gradients are those of TRL 1.16 (`loss_type`).
"""

from __future__ import annotations

import dataclasses
from typing import Annotated

import jax
import jax.numpy as jnp
from typing_extensions import override

from seva_jax.objectives.divergences import Divergence
from seva_jax.objectives.pairs import PairObjective, Pairs
from seva_jax.ranges import ABOVE_0, Range


@dataclasses.dataclass(frozen=True)
class MarginObjective(PairObjective):
    """Base class: the loss of a pair depends only on the difference of two rewards.

    Attributes:
        divergence: measures the distance of the policy from the reference (f-DPO); the default is
            the reverse KL of ordinary DPO.
    """

    divergence: Divergence = Divergence()

    def margin(self, pairs: Pairs) -> jax.Array:
        """Returns `beta * (f'(u_chosen) - f'(u_rejected))`, [N, J]."""
        chosen, rejected = pairs.chosen_ratio_NJ, pairs.rejected_ratio_NJ
        return self.beta * (self.divergence(chosen) - self.divergence(rejected))

    def mean_margin(self, pairs: Pairs) -> jax.Array:
        """Returns `margin / beta` with each side divided by its number of tokens, [N, J]."""
        chosen, rejected = pairs.chosen_ratio_NJ, pairs.rejected_ratio_NJ
        chosen_NJ = self.divergence(chosen) / pairs.chosen_tokens_N1
        return chosen_NJ - self.divergence(rejected) / pairs.rejected_tokens_NJ


@dataclasses.dataclass(frozen=True)
class Hinge(MarginObjective):
    """`hinge`: max(0, 1 - margin) (SLiC-HF, arXiv 2305.10425; RSO, arXiv 2309.06657)."""

    @override
    def pair_loss(self, pairs: Pairs) -> jax.Array:
        return jax.nn.relu(1 - self.margin(pairs))


@dataclasses.dataclass(frozen=True)
class IPO(MarginObjective):
    """`ipo`: (difference of log-ratios - 1 / (2 beta))^2 (arXiv 2310.12036, eq. 17; beta is tau).

    The log-ratio of each answer is a mean over its tokens. The paper does not say so; TRL does so
    after asking its authors.
    """

    @override
    def pair_loss(self, pairs: Pairs) -> jax.Array:
        return (self.mean_margin(pairs) - 1 / (2 * self.beta)) ** 2


@dataclasses.dataclass(frozen=True)
class SigmoidNorm(MarginObjective):
    """`sigmoid_norm`: DPO on log-ratios per token, the length normalisation of Tülu 3.

    Source: arXiv 2411.15124.
    """

    @override
    def pair_loss(self, pairs: Pairs) -> jax.Array:
        return -jax.nn.log_sigmoid(self.beta * self.mean_margin(pairs))


@dataclasses.dataclass(frozen=True)
class ExoPair(MarginObjective):
    """`exo_pair`: KL((q, 1 - q) || (1 - e, e)), q = sigmoid(margin) (arXiv 2402.00856, eq. 16).

    Attributes:
        label_smoothing: e, in (0, 1). The loss is infinite at 0, where TRL silently uses 1e-3.
    """

    label_smoothing: Annotated[float, Range(0, 1, above=True, below=True)] = 1e-3

    @override
    def pair_loss(self, pairs: Pairs) -> jax.Array:
        margin_NJ = self.margin(pairs)

        def part(sign: float, smoothed: float) -> jax.Array:
            log_q_NJ = jax.nn.log_sigmoid(sign * margin_NJ)
            return jnp.exp(log_q_NJ) * (log_q_NJ - jnp.log(smoothed))

        return part(1.0, 1 - self.label_smoothing) + part(-1.0, self.label_smoothing)


@dataclasses.dataclass(frozen=True)
class Robust(MarginObjective):
    """`robust`: unbiased DPO when a share e of the labels is flipped (rDPO, arXiv 2403.00409).

    `((1 - e) L(margin) - e L(-margin)) / (1 - 2 e)` with L = -log sigmoid. Unlike label smoothing
    (`DPO.label_smoothing`, cDPO) it has no lower bound.

    Attributes:
        label_smoothing: e, the share of flipped labels, in [0, 0.5).
    """

    label_smoothing: Annotated[float, Range(0, 0.5, below=True)] = 0.0

    @override
    def pair_loss(self, pairs: Pairs) -> jax.Array:
        margin_NJ, e = self.margin(pairs), self.label_smoothing
        right, flipped = jax.nn.softplus(-margin_NJ), jax.nn.softplus(margin_NJ)
        return ((1 - e) * right - e * flipped) / (1 - 2 * e)


@dataclasses.dataclass(frozen=True)
class DiscoPOP(MarginObjective):
    """`discopop`: a blend of logistic and exponential loss (arXiv 2406.08414, eq. 5).

    `(1 - m) * -log sigmoid(margin) + m * exp(-margin)` with `m = sigmoid(margin / tau)`.

    Attributes:
        tau: temperature of the blend; the smaller, the more abruptly it switches at margin 0.
    """

    tau: Annotated[float, ABOVE_0] = 0.05

    @override
    def pair_loss(self, pairs: Pairs) -> jax.Array:
        margin_NJ = self.margin(pairs)
        blend_NJ = jax.nn.sigmoid(margin_NJ / self.tau)
        # Where exp(-margin) would overflow, the blend is 0, and 0 * inf must not give NaN.
        exponential_NJ = jnp.exp(jnp.minimum(-margin_NJ, 80.0))
        return (1 - blend_NJ) * jax.nn.softplus(-margin_NJ) + blend_NJ * exponential_NJ
