"""Building blocks of all towers: linear layers with optional adapters, norms, rematerialisation.

Parameters carry logical dim names ("embed", "heads", ...); which mesh axis a name stands for is
decided in `seva_jax/sharding.py` alone.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from seva_jax.models.config import LoraConfig
from seva_jax.models.quant import floats, is_quantised
from seva_jax.sharding import constrain_parameter

LORA = "lora"  # the variable collection of the adapters
Remat = Literal["none", "matmuls", "layers"]


def rematerialised(layer: type[nn.Module], remat: Remat) -> type[nn.Module]:
    """Returns a layer for a scan that stores less for the backward pass.

    Args:
        layer: the module.
        remat: what is stored. "none" stores everything; "matmuls" stores the outputs of linear
            layers and recomputes norms, activations and attention; "layers" stores only the input
            of a layer and recomputes the rest.
    """
    if remat == "none":
        return layer
    kept = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
    return nn.remat(layer, prevent_cse=False, policy=kept if remat == "matmuls" else None)


# Number of the projector's first adapter, see `drawing`; those before are the tower's.
PROJECTOR_ADAPTERS = 2**16


class Linear(nn.Module):
    """Linear layer: y = x W (+ b) (+ alpha / R * x A B if the "lora" collection is given).

    In training with dropout the adapter's x is multiplied by a mask / (1 - rate), as by peft.

    Attributes:
        features: output width.
        dims: logical names of the kernel's (input, output) dims.
        bias: whether there is a bias.
        lora: config of the adapter, see `LoraConfig.of`; None for a layer without one.
        dtype: compute dtype.
    """

    features: int
    dims: tuple[str, str]
    bias: bool = False
    lora: LoraConfig | None = None
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, keys: jax.Array | None = None) -> jax.Array:
        """Maps [..., F] to [..., O], O = `features`.

        Args:
            x: the input.
            keys: a random key for each position of x, [...], from which the adapter's dropout
                draws; None drops nothing.
        """
        # Only matters when training from scratch. transformers' standard deviation of 0.02 suits
        # wide models; at the width of the default run it needs several times as many steps.
        init = nn.initializers.lecun_normal()
        kernel: Any = self.param(
            "kernel",
            nn.with_logical_partitioning(init, self.dims),
            (x.shape[-1], self.features),
        )
        # Rows and positions become one dim, so that the gradient of the kernel, a sum over it, is
        # one matrix product: to sum over two dims, XLA copies both operands on a CPU.
        leading = x.shape[:-1]
        x = x.astype(self.dtype).reshape(-1, x.shape[-1])
        if not is_quantised(kernel):
            kernel = constrain_parameter(kernel, *self.dims)
        y = x @ floats(kernel, self.dtype)
        if self.bias:
            bias: Any = self.param(
                "bias",
                nn.with_logical_partitioning(nn.initializers.zeros, (self.dims[1],)),
                (self.features,),
            )
            y = y + bias.astype(self.dtype)
        if self.lora is not None and (self.is_initializing() or self.has_variable(LORA, "a")):
            # Kaiming-uniform A and zero B, as in peft: initially an adapter changes nothing.
            a = self._adapter("a", (x.shape[-1], self.lora.rank), (self.dims[0], "rank"))
            b = self._adapter("b", (self.lora.rank, self.features), ("rank", self.dims[1]))
            scale, kept = self.lora.scale, x
            if keys is not None and self.lora.dropout:
                kept = jnp.where(_drawn(keys.reshape(-1), 1 - self.lora.dropout, x.shape[-1]), x, 0)
                scale /= 1 - self.lora.dropout
            # The scale is applied to x A, the narrowest array.
            y = y + (kept @ a.astype(self.dtype) * scale) @ b.astype(self.dtype)
        return y.reshape(*leading, self.features)

    def _adapter(self, name: str, shape: tuple[int, int], dims: tuple[str, str]) -> Any:
        init = (
            nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
            if name == "a"
            else nn.initializers.zeros
        )
        boxed = nn.with_logical_partitioning(init, dims)
        made: Any = self.variable(LORA, name, lambda: boxed(self.make_rng("params"), shape)).value
        return constrain_parameter(made, *dims)


def drawing(layer: Linear, keys_BS: Any, number: jax.Array | int) -> Callable[..., jax.Array]:
    """Returns a layer whose adapter drops inputs in training.

    Args:
        layer: the layer.
        keys_BS: a random key for each position of its input, the same for all layers; None drops
            nothing.
        number: of its adapter, so that no two adapters draw alike.
    """
    if layer.lora is None or keys_BS is None:
        return layer
    fold = jax.vmap(jax.vmap(lambda key: jax.random.fold_in(key, number)))
    return functools.partial(layer, keys=fold(keys_BS))


def place_keys(keys_N: jax.Array, num: int) -> jax.Array:
    """Returns a random key for each of `num` places of a tile, [N, num], from a key of the tile."""
    fold = jax.vmap(jax.random.fold_in, (None, 0))
    return jax.vmap(fold, (0, None))(keys_N, jnp.arange(num))


def _drawn(keys_N: jax.Array, share: float, num: int) -> jax.Array:
    """Returns `num` booleans for each key, [N, num], true with the probability `share`."""
    return jax.vmap(lambda key: jax.random.bernoulli(key, share, (num,)))(keys_N)


class RMSNorm(nn.Module):
    """Llama's RMSNorm: statistics in float32, result in the compute dtype."""

    eps: float
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalises the last dim."""
        scale: Any = self.param(
            "scale",
            nn.with_logical_partitioning(nn.initializers.ones, ("norm",)),
            (x.shape[-1],),
        )
        x = x.astype(jnp.float32)
        x = x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + self.eps)
        return (x * scale.astype(jnp.float32)).astype(self.dtype)


class LayerNorm(nn.Module):
    """LayerNorm with scale and bias: statistics in float32, result in the compute dtype."""

    eps: float
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalises the last dim."""
        norm = nn.LayerNorm(
            epsilon=self.eps,
            use_fast_variance=False,
            dtype=jnp.float32,
            scale_init=nn.with_logical_partitioning(nn.initializers.ones, ("norm",)),
            bias_init=nn.with_logical_partitioning(nn.initializers.zeros, ("norm",)),
            name="norm",
        )
        return norm(x.astype(jnp.float32)).astype(self.dtype)
