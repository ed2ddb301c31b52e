"""Whether what a run keeps in memory can fit its devices, before anything is loaded.

What lives here: what is certain not to fit. What does not: the step itself, which is compared when
it is compiled (`seva_jax/training/compiled_step.py`), or before anything runs (`seva_jax/plan`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import jax

from seva_jax.config import Experiment
from seva_jax.models import LlavaConfig
from seva_jax.run.abstract_state import abstract_training
from seva_jax.training.memory import bytes_on_a_device, device_limit, machine_limit
from seva_jax.types import DataError

_GIB = 2**30
_SMALLER: tuple[Literal["int8", "nf4"], ...] = ("int8", "nf4")


def memory_problems(
    config: Experiment, model: LlavaConfig, mesh: jax.sharding.Mesh
) -> Iterator[str]:
    """Yields why the weights and the training state alone cannot be held.

    Args:
        config: the run.
        model: architecture.
        mesh: its devices.
    """
    try:
        needed = _kept(config, model, mesh)
    except DataError as error:  # a dim of a parameter does not divide by the mesh
        yield str(error)
        return
    limit, where = _limit()
    if limit is None or needed <= limit:
        return
    smaller = list[str]()
    if config.compute.base_weights == "float" and "language" not in config.train.trained:
        for kind in _SMALLER:
            compute = dataclasses.replace(config.compute, base_weights=kind)
            size = _kept(dataclasses.replace(config, compute=compute), model, mesh)
            smaller.append(f"--compute.base-weights {kind} ({size / _GIB:.1f} GiB)")
    if config.compute.param_dtype == "float32":
        smaller.insert(0, "--compute.param-dtype bfloat16")
    smaller.append("more devices along --mesh.fsdp or --mesh.tensor")
    yield (
        f"weights and training state take {needed / _GIB:.1f} GiB on each device, and {where} "
        f"{limit / _GIB:.1f} GiB: use {', '.join(smaller[:-1])} or {smaller[-1]} "
        "(python -m seva_jax.plan computes what fits)"
    )


def _kept(config: Experiment, model: LlavaConfig, mesh: jax.sharding.Mesh) -> int:
    """Returns the bytes on each device that stay there from step to step."""
    kept = abstract_training(config, model, mesh)
    return bytes_on_a_device((kept.state, kept.frozen))


def _limit() -> tuple[float | None, str]:
    """Returns the bytes that each device can have at most, and whose they are in words."""
    limit = device_limit()
    if limit is not None:
        return limit, "it has"
    return (None if _swaps() else machine_limit()), "this machine has for each"


def _swaps() -> bool:
    """Returns whether the machine may keep memory on a disk, so that more than its RAM fits."""
    try:
        return len(Path("/proc/swaps").read_text(encoding="utf-8").splitlines()) > 1
    except OSError:
        return True
