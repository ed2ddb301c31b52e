"""f-divergences, which replace the log-ratio in DPO (f-DPO, arXiv 2309.16240).

DPO keeps the policy near the reference by the reverse KL. With another divergence D_f, the reward
of an answer is `beta * f'(u)`, u = p_policy / p_ref (their theorem 1). The forms here are those of
TRL, which differ from the paper's table by constants that cancel in a difference.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
from typing_extensions import override

from seva_jax.types import DataError

_MOST = 80.0  # exp of more overflows float32


@dataclasses.dataclass(frozen=True)
class Divergence:
    """Reverse KL, the divergence of ordinary DPO: f'(u) = log u, plus a constant."""

    def __call__(self, ratio: jax.Array) -> jax.Array:
        """Returns f'(u) for log-ratios log u, elementwise."""
        return ratio


@dataclasses.dataclass(frozen=True)
class ForwardKL(Divergence):
    """f'(u) = 1 - 1 / u (TRL's `forward_kl`). Log-ratios below -80 count as -80."""

    @override
    def __call__(self, ratio: jax.Array) -> jax.Array:
        return 1 - jnp.exp(jnp.minimum(-ratio, _MOST))  # the gradient of expm1 loses digits


@dataclasses.dataclass(frozen=True)
class JensenShannon(Divergence):
    """f'(u) = log(2 u / (1 + u)) (TRL's `js_divergence`)."""

    @override
    def __call__(self, ratio: jax.Array) -> jax.Array:
        return math.log(2.0) + jax.nn.log_sigmoid(ratio)


@dataclasses.dataclass(frozen=True)
class AlphaDivergence(Divergence):
    """f'(u) = (u^(alpha - 1) - 1) / (alpha - 1) (TRL's `alpha_divergence`).

    Attributes:
        alpha: as TRL defines it. The paper's f' is (1 - u^-alpha) / alpha, so the paper's alpha is
            1 minus this one. 0 is the forward KL; 1, the reverse KL, is refused.
    """

    alpha: float = 0.5

    def __post_init__(self) -> None:
        if abs(self.alpha - 1) < 1e-6:
            raise DataError("AlphaDivergence: alpha 1 is the reverse KL; use Divergence()")

    @override
    def __call__(self, ratio: jax.Array) -> jax.Array:
        power = self.alpha - 1
        return (jnp.exp(jnp.minimum(power * ratio, _MOST)) - 1) / power
