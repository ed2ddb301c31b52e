"""Upper bounds of the device's speed, measured in turns with the benchmarks.

Large matrix products bound the speed of a training step and of prefill. Decoding is bounded by
products of matrices with a few rows, for which all weights are read for every token.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from seva_jax.models import LlavaConfig

_PRODUCTS = 8  # pairs of products in a call, so that the time to start it does not count


class Limit(NamedTuple):
    """A calibration.

    Attributes:
        run: makes one call and waits for its end.
        amount: floating point operations of a call, or bytes that it reads.
    """

    run: Callable[[], Any]
    amount: float


def products(config: LlavaConfig, tokens: int, dtype: Any) -> Limit:
    """Returns matrix products of the language model's sizes, [tokens, D] x [D, F] x [F, D].

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
    """Returns products of different matrices, about `size` bytes in all, with `rows` rows each."""
    width, mlp = config.text.hidden_size, config.text.mlp_size
    num = -(-int(size) // (2 * width * mlp * jnp.dtype(dtype).itemsize))
    # Separate arrays: a scan over stacked ones would copy each before reading it.
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
