"""Memory of devices: what they have, what a program needs, and a bound before it is compiled.

What lives here: numbers. What does not: what a run keeps in memory before it trains
(`seva_jax/run/enough_memory.py`), which rematerialisation fits (`remat.py`).
"""

from __future__ import annotations

import gc
import math
import os
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from seva_jax.models import Llava, LlavaConfig, QwenVisionConfig
from seva_jax.models.segments import QUERIES
from seva_jax.training.step import TrainState
from seva_jax.types import TreeBatch

_GIB = 2**30


def gib(size: float) -> str:
    """Returns a number of bytes in words.

    >>> gib(3 * 2**29), gib(math.inf)
    ('1.5 GiB', 'more than that')
    """
    return f"{size / _GIB:.1f} GiB" if math.isfinite(size) else "more than that"


def bytes_on_a_device(tree: Any) -> int:
    """Returns the bytes that sharded arrays take on each device."""
    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree)
    )


def least_bytes(
    model: Llava, arguments: Any, trainable: Any, rows: int, length: int, tensor: int = 1
) -> float:
    """Returns a lower bound of the bytes that a step needs on a device.

    It counts the arguments, a gradient for every trained parameter, and the large arrays that the
    backward pass certainly keeps of every layer of the language model.

    Args:
        model: the module.
        arguments: training state and frozen variables.
        trainable: the trained variables.
        rows: rows of a micro-batch on a device.
        length: tokens in a row.
        tensor: number of devices that split the arrays of a layer.
    """
    text, lora = model.config.text, model.lora
    kept = rows * length * text.num_layers * _kept_width(model) / tensor
    if lora is not None and model.remat != "layers":
        kept += rows * length * text.num_layers * sum(lora.of(x).rank for x in lora.targets)
    size = jnp.dtype(model.dtype).itemsize
    return bytes_on_a_device(arguments) + bytes_on_a_device(trainable) + kept * size


def _kept_width(model: Llava) -> int:
    """Returns the numbers of a token that the backward pass certainly keeps of a layer."""
    text = model.config.text
    inputs, heads = text.hidden_size, (text.num_heads + 2 * text.num_kv_heads) * text.head_dim
    if model.remat == "layers":
        return inputs  # of the layer
    if model.remat == "none":  # queries, keys, values; the MLP's input, gate, SiLU of it and up
        return 2 * inputs + heads + 3 * text.mlp_size
    products = heads + inputs + 2 * text.mlp_size  # of all linear layers but the last
    if model.lora is not None:
        widths = {
            "q_proj": text.num_heads * text.head_dim,
            "k_proj": text.num_kv_heads * text.head_dim,
            "v_proj": text.num_kv_heads * text.head_dim,
            "o_proj": inputs,
            "gate_proj": text.mlp_size,
            "up_proj": text.mlp_size,
        }
        products += sum(widths.get(name, 0) for name in model.lora.targets)  # and of adapters
    return inputs + products


def tower_scores(config: LlavaConfig, dtype: Any) -> int:
    """Returns the bytes of a tile's attention scores in a layer of the vision tower.

    Towers compute the whole square of scores of every head, in float32, and keep their softmax in
    the compute dtype beside it (`attention.plain`); those of native resolution the scores of a
    block of queries at a time, or of windows (`segments.py`). `tensor` splits the heads.
    """
    vision = config.vision
    places = vision.num_patches + vision.class_token
    seen = places
    if isinstance(vision, QwenVisionConfig):
        windows = 3 * vision.windows**2 * vision.num_patches
        seen = max(windows, QUERIES)
    return vision.num_heads * places * seen * (4 + jnp.dtype(dtype).itemsize)


def device_limit() -> int | None:
    """Returns the bytes that a program may use on a device; None if unknown (CPU)."""
    return (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")


def machine_limit() -> float | None:
    """Returns the bytes of memory that this machine has for each of its CPU devices.

    None if its devices are no CPUs, or if that is unknown.
    """
    devices = jax.local_devices()
    if devices[0].platform != "cpu" or not hasattr(os, "sysconf"):
        return None
    pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    if pages <= 0 or size <= 0:
        return None
    return min(pages * size, _container_limit()) / len(devices)


def _container_limit() -> float:
    """Returns the bytes that the container of this process may use; infinity without a limit."""
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii").strip()
    except OSError:
        return math.inf
    return float(limit) if limit.isdecimal() else math.inf


def resident_besides(tree: Any) -> int:
    """Returns the bytes in use on a device besides arrays that are on it; 0 if unknown (CPU).

    Args:
        tree: the arrays.
    """
    gc.collect()  # arrays that are not used any more
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    in_use = max(device.get("bytes_in_use", 0) for device in stats)
    return max(in_use - bytes_on_a_device(tree), 0)


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


def compile_if_it_fits(lowered: jax.stages.Lowered) -> tuple[jax.stages.Compiled | None, float]:
    """Compiles a program, and returns it with the bytes that it needs on a device.

    XLA does not compile a program that is too large for a TPU: it is then None, with the bytes that
    XLA names, or infinity.
    """
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        named = re.search(r"\(([\d.]+)G\) exceeds available HBM", str(error))
        return None, float(named[1]) * _GIB if named else math.inf
    return compiled, needed_bytes(compiled)


def needed_bytes(compiled: jax.stages.Compiled) -> float:
    """Returns the bytes on a device that a compiled program needs while it runs."""
    stats = compiled.memory_analysis()
    if stats is None:  # of backends that do not tell
        return 0.0
    outputs = stats.output_size_in_bytes - stats.alias_size_in_bytes
    return stats.argument_size_in_bytes + stats.temp_size_in_bytes + outputs


def least_of_step(model: Llava, state: TrainState, frozen: Any, batch: TreeBatch) -> float:
    """Returns a lower bound of the bytes that a step needs on a device, see `least_bytes`.

    Args:
        model: the module.
        state: training state.
        frozen: frozen variables.
        batch: a batch; leaves [M, B, ...]. Of all of these, shapes and shardings are enough.
    """
    tokens: Any = batch.tokens_BS
    _, rows, length = tokens.sharding.shard_shape(tokens.shape)
    tensor = tokens.sharding.mesh.shape["tensor"]
    return least_bytes(model, (state, frozen), state.trainable, rows, length, tensor)


def advice(state: TrainState, frozen: Any, batch: TreeBatch, needed: float, limit: float) -> str:
    """Returns what may make a step fit that does not.

    Args:
        state: training state.
        frozen: frozen variables.
        batch: see `least_of_step`.
        needed: bytes that the step needs on a device; infinity if that is unknown.
        limit: bytes that it may need.
    """
    tokens: Any = batch.tokens_BS
    micro_batches, rows, _ = tokens.sharding.shard_shape(tokens.shape)
    fixed = bytes_on_a_device((state, frozen, state.trainable))  # and gradients
    by_row = max(needed - fixed, 0) / rows if math.isfinite(needed) else 0.0
    fitting = [n for n in range(1, rows) if rows % n == 0 and fixed + n * by_row <= limit]
    if fitting:
        return f"--train.micro-batches {micro_batches * rows // max(fitting)} may fit"
    return "more devices along --mesh.fsdp or --mesh.tensor, or --compute.base-weights nf4, may fit"
