"""Upper bounds of the device's speed, measured in turns with the benchmarks.

Large matrix products bound the speed of a training step and of prefill. Decoding is bounded by the
rate at which the device reads its memory, for which all weights and the cache are read for every
token.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from seva_jax.models import LlavaConfig

_PRODUCTS = 4  # pairs of products in a call, so that the time to start it does not count
_SIDES = {"cpu": (1024,)}  # of square products
_LARGE_SIDES = (4096, 8192)
_COPIED = {"cpu": 2**28}  # bytes
_MUCH_COPIED = 2**30
_COPIES = 4  # in a call


class Limit(NamedTuple):
    """A calibration.

    Attributes:
        run: makes one call and waits for its end.
        amount: floating point operations of a call, or bytes that it reads and writes.
    """

    run: Callable[[], Any]
    amount: float


def products(config: LlavaConfig, tokens: int, dtype: Any) -> dict[str, Limit]:
    """Returns large matrix products, of which the fastest shows what the device can do.

    They have the sizes of the language model's MLP, [tokens, D] x [D, F] x [F, D], and squares. A
    multiply-add counts as two operations.

    Args:
        config: the architecture.
        tokens: rows of the products of the model's sizes.
        dtype: dtype of the operands.
    """
    width, mlp = config.text.hidden_size, config.text.mlp_size
    shapes = {f"[{tokens}, {width}] x [{width}, {mlp}]": (tokens, width, mlp)}
    for side in _SIDES.get(jax.default_backend(), _LARGE_SIDES):
        shapes[f"[{side}, {side}] x [{side}, {side}]"] = (side, side, side)
    return {name: _product(*shape, jnp.dtype(dtype)) for name, shape in shapes.items()}


def _product(rows: int, width: int, inner: int, dtype: jnp.dtype) -> Limit:
    x, up, down = (
        # Cast last: a division by a NumPy scalar would turn bfloat16 into float32.
        (jax.random.normal(jax.random.key(i), shape) * shape[-1] ** -0.5).astype(dtype)
        for i, shape in enumerate([(rows, width), (width, inner), (inner, width)])
    )

    @jax.jit
    def run(x: jax.Array, up: jax.Array, down: jax.Array) -> jax.Array:
        return jax.lax.fori_loop(0, _PRODUCTS, lambda _, x: (x @ up) @ down, x)

    operations = 4.0 * _PRODUCTS * rows * width * inner
    return Limit(lambda: jax.block_until_ready(run(x, up, down)), operations)


def copying() -> Limit:
    """Returns passes over an array, each of which reads and writes all of it."""
    size = _COPIED.get(jax.default_backend(), _MUCH_COPIED)
    x = jnp.ones(size // 4, jnp.int32)

    @jax.jit
    def run(x: jax.Array) -> jax.Array:
        return jax.lax.fori_loop(0, _COPIES, lambda i, x: x ^ i, x)

    return Limit(lambda: jax.block_until_ready(run(x)), 2.0 * _COPIES * size)


def best_rate(
    limits: Mapping[str, Limit], times: Mapping[str, Sequence[float]]
) -> tuple[float, str]:
    """Returns the highest rate among calibrations, per second, and its name.

    Args:
        limits: calibrations of the same kind.
        times: seconds of every call, by name; see `in_turns`.
    """
    rates = {name: x.amount / statistics.median(times[name]) for name, x in limits.items()}
    name = max(rates, key=lambda name: rates[name])
    return rates[name], name
