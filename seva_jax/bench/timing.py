"""Helpers of all timings: measuring sides in turns, describing the machine, printing a table."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from typing import Any

import jax


def in_turns(sides: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Calls every side once per round and returns the seconds of all calls, by side."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            start = time.perf_counter()
            side()
            times[name].append(time.perf_counter() - start)
    return times


def machine(packages: Sequence[str], rounds: int) -> str:
    """Returns a line with the device and the versions of packages."""
    names = ", ".join(f"{name} {version(name)}" for name in ("jax", *packages))
    device = jax.devices()[0]
    kind = platform.processor() or platform.machine() if device.platform == "cpu" else ""
    return (
        f"{device.device_kind} {kind}; Python {platform.python_version()}, {names}; {rounds} "
        "rounds in turns"
    )


def table(
    times: Mapping[str, Sequence[float]],
    width: int,
    unit: str,
    amount: float,
    against: str,
    decimals: int = 1,
    notes: Mapping[str, str] | None = None,
) -> str:
    """Formats the times of sides as text, one line each under a heading.

    Args:
        times: seconds of every call, by side; see `in_turns`.
        width: width of the column of names.
        unit: what is counted, in the plural, such as "pairs".
        amount: number of units that a call computes.
        against: the side that speed-ups are relative to.
        decimals: decimals of the rate.
        notes: text after the line of each side; the note of "" follows the heading.
    """
    notes = notes or {}
    columns = ("median s", "fastest", "slowest", f"{unit}/s", "speed-up")
    lines = [" " * width + "".join(f"{x:>10}" for x in columns) + notes.get("", "")]
    base = statistics.median(times[against])
    for name, seconds in times.items():
        middle = statistics.median(seconds)
        lines.append(
            f"{name:<{width}}{middle:>10.3f}{min(seconds):>10.3f}{max(seconds):>10.3f}"
            f"{amount / middle:>10.{decimals}f}{base / middle:>9.2f}x{notes.get(name, '')}"
        )
    return "\n".join(lines)
