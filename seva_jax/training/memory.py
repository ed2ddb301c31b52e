"""Memory of devices: a lower bound for a training step before it is compiled, and what is in use.

`seva_jax.plan` computes exactly what a step needs.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from seva_jax.models import Llava
from seva_jax.runtime.processes import say
from seva_jax.training.step import TrainState
from seva_jax.types import TreeBatch

_GIB = 2**30


def bytes_on_a_device(tree: Any) -> int:
    """Returns the bytes that sharded arrays take on each device."""
    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree)
    )


def least_bytes(model: Llava, arguments: Any, trainable: Any, rows: int, length: int) -> int:
    """Returns a lower bound of the bytes that a step needs on a device.

    It counts the arguments, a gradient for every trained parameter, and what the backward pass
    keeps of every layer of the language model: the residual stream and, unless layers are
    recomputed, the results of its large matrix products.

    Args:
        model: the module.
        arguments: training state and frozen variables.
        trainable: the trained variables.
        rows: rows of a micro-batch on a device.
        length: tokens in a row.
    """
    text = model.config.text
    width = text.hidden_size
    if model.remat != "layers":
        width += 2 * text.num_heads * text.head_dim + 2 * text.mlp_size
    kept = text.num_layers * rows * length * width * jnp.dtype(model.dtype).itemsize
    return bytes_on_a_device(arguments) + bytes_on_a_device(trainable) + kept


def device_limit() -> int | None:
    """Returns the bytes that a program may use on a device; None if unknown (CPU)."""
    return (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")


def memory_use() -> tuple[float, float] | None:
    """Returns GiB in use now, and the most since the process started; None if unknown (CPU).

    Each is the largest over the devices of this process.
    """
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    names = ("bytes_in_use", "peak_bytes_in_use")
    if not all(name in device for device in stats for name in names):
        return None
    in_use, peak = (max(device[name] for device in stats) / _GIB for name in names)
    return in_use, peak


def warn_if_too_large(model: Llava, state: TrainState, frozen: Any, batch: TreeBatch) -> None:
    """Prints a warning if a step cannot fit, with a number of micro-batches that may.

    Args:
        model: the module.
        state: training state.
        frozen: frozen variables.
        batch: a batch on the devices, leaves [M, B, ...].
    """
    limit = device_limit()
    if limit is None:
        return
    tokens: Any = batch.tokens_BS
    micro_batches, split, length = tokens.sharding.shard_shape(tokens.shape)

    def needed(rows: int) -> int:
        return least_bytes(model, (state, frozen), state.trainable, rows, length)

    if needed(split) <= limit:
        return
    fitting = [n for n in range(1, split) if split % n == 0 and needed(n) <= limit]
    advice = (
        f"--train.micro-batches {micro_batches * split // max(fitting)} may"
        if fitting
        else "more devices along --mesh.fsdp or --mesh.tensor, or --compute.base-weights nf4, may"
    )
    say(
        f"warning: the step needs at least {needed(split) / _GIB:.1f} GiB on each device, which "
        f"has {limit / _GIB:.1f} GiB; {advice} fit (python -m seva_jax.plan tells exactly)"
    )
