"""f-divergences: what takes the place of the log-ratio in DPO (f-DPO, arXiv 2309.16240).

With the pull towards the reference measured by another divergence D_f than the reverse KL, the
reward of an answer is `beta * f'(u)`, u = p_policy / p_ref (their theorem 1). The forms here are
those of TRL, which differ from the paper's table by constants that cancel in a difference.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp

from seva_jax.types import DataError

_MOST = 80.0  # exp of more overflows float32


@dataclasses.dataclass(frozen=True)
class Divergence:
    """Reverse KL, the divergence of ordinary DPO: f'(u) = log u, plus a constant."""

    def __call__(self, ratio: jax.Array) -> jax.Array:
        """f'(u) of log-ratios log u, elementwise."""
        return ratio


@dataclasses.dataclass(frozen=True)
class ForwardKL(Divergence):
    """f'(u) = 1 - 1 / u (TRL's `forward_kl`). log-ratios below -80 count as -80."""

    def __call__(self, ratio: jax.Array) -> jax.Array:
        """See `Divergence.__call__`."""
        return 1 - jnp.exp(jnp.minimum(-ratio, _MOST))  # the gradient of expm1 loses digits


@dataclasses.dataclass(frozen=True)
class JensenShannon(Divergence):
    """f'(u) = log(2 u / (1 + u)) (TRL's `js_divergence`)."""

    def __call__(self, ratio: jax.Array) -> jax.Array:
        """See `Divergence.__call__`."""
        return math.log(2.0) + jax.nn.log_sigmoid(ratio)


@dataclasses.dataclass(frozen=True)
class AlphaDivergence(Divergence):
    """f'(u) = (u^(alpha - 1) - 1) / (alpha - 1) (TRL's `alpha_divergence`).

    Attributes:
        alpha: in TRL's sense, 0.5 by default: not the paper's, whose f' is
            (1 - u^-alpha) / alpha, that is 1 - alpha here. 1 would be the reverse KL, 0 is the
            forward KL.
    """

    alpha: float = 0.5

    def __post_init__(self) -> None:
        if abs(self.alpha - 1) < 1e-6:
            raise DataError("AlphaDivergence: alpha 1 is the reverse KL; use Divergence()")

    def __call__(self, ratio: jax.Array) -> jax.Array:
        """See `Divergence.__call__`."""
        power = self.alpha - 1
        return (jnp.exp(jnp.minimum(power * ratio, _MOST)) - 1) / power
