"""What the timings share: sides measured in turns, and the machine they ran on."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from typing import Any

import jax


def in_turns(sides: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of every call of every side, one call of each a round."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            start = time.perf_counter()
            side()
            times[name].append(time.perf_counter() - start)
    return times


def machine(packages: Sequence[str], rounds: int) -> str:
    """Device and versions, a line."""
    names = ", ".join(f"{name} {version(name)}" for name in ("jax", *packages))
    device = jax.devices()[0]
    kind = platform.processor() or platform.machine() if device.platform == "cpu" else ""
    return (
        f"{device.device_kind} {kind}; Python {platform.python_version()}, {names}; {rounds} "
        "rounds in turns"
    )
