"""What the device can do at best, measured in turns with what is compared.

Large matrix products bound a training step and a prefill; matrices times a few rows, which are
read once for every token, bound decoding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from seva_jax.models import LlavaConfig

_PRODUCTS = 8  # pairs of them in a call, so that starting it takes no part of the time


class Limit(NamedTuple):
    """A calibration.

    Attributes:
        run: one call, to its end.
        amount: what a call does: floating point operations, or bytes read.
    """

    run: Callable[[], Any]
    amount: float


def products(config: LlavaConfig, tokens: int, dtype: Any) -> Limit:
    """Matrix products of the language model's own sizes, [tokens, D] x [D, F] x [F, D].

    A multiply-add counts as two operations.
    """
    width, mlp = config.text.hidden_size, config.text.mlp_size
    x, up, down = (
        jax.random.normal(jax.random.key(i), shape, dtype) / np.sqrt(shape[-1])
        for i, shape in enumerate([(tokens, width), (width, mlp), (mlp, width)])
    )

    @jax.jit
    def run(x: jax.Array, up: jax.Array, down: jax.Array) -> jax.Array:
        return jax.lax.fori_loop(0, _PRODUCTS, lambda _, x: (x @ up) @ down, x)

    operations = 4.0 * _PRODUCTS * tokens * width * mlp
    return Limit(lambda: jax.block_until_ready(run(x, up, down)), operations)


def reading(config: LlavaConfig, rows: int, size: float, dtype: Any) -> Limit:
    """Different matrices, `size` bytes or a little more in all, each times `rows` rows."""
    width, mlp = config.text.hidden_size, config.text.mlp_size
    num = -(-int(size) // (2 * width * mlp * jnp.dtype(dtype).itemsize))
    # Arrays of their own: a scan over stacked ones would copy each before it is read.
    pairs = [
        (jnp.full((width, mlp), 1 / width, dtype), jnp.full((mlp, width), 1 / mlp, dtype))
        for _ in range(num)
    ]
    x = jnp.ones((rows, width), dtype)

    @jax.jit
    def run(x: jax.Array, pairs: Any) -> jax.Array:
        for up, down in pairs:
            x = (x @ up) @ down
        return x

    amount = sum(up.nbytes + down.nbytes for up, down in pairs)
    return Limit(lambda: jax.block_until_ready(run(x, pairs)), amount)
