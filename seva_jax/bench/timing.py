"""Helpers of all timings: measuring sides in turns, describing the machine, printing a table."""

from __future__ import annotations

import contextlib
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax


@contextlib.contextmanager
def one_core() -> Iterator[None]:
    """Keeps this process on one core, where the platform can do that."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def in_turns(sides: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Calls every side once per round and returns the seconds of all calls, by side."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            start = time.perf_counter()
            side()
            times[name].append(time.perf_counter() - start)
    return times


def all_sides(
    sides: Iterable[tuple[str, Callable[[], Any]]], first: int, rounds: int
) -> tuple[dict[str, list[Any]], dict[str, list[float]]]:
    """Warms up every side, and times it: in turns on a CPU, whose speed drifts, or alone.

    Args:
        sides: names and calls. On an accelerator each is made when the one before it is dropped.
        first: number of calls before the timed ones; a side's own `warm_up` stands for them.
        rounds: number of timed calls.

    Returns:
        What the first calls returned, and the seconds of the timed ones, by side.
    """

    def warmed(side: Any) -> list[Any]:
        return side.warm_up() if hasattr(side, "warm_up") else [side() for _ in range(first)]

    if jax.default_backend() == "cpu":
        running = dict(sides)
        results = {name: warmed(side) for name, side in running.items()}
        return results, in_turns(running, rounds)
    results, times = {}, {}
    for name, side in sides:
        results[name] = warmed(side)
        times |= in_turns({name: side}, rounds)
        print(f"{name}: {statistics.median(times[name]):.3f} s", flush=True)
        del side
    return results, times


def machine(packages: Sequence[str], rounds: int) -> str:
    """Returns a line with the device and the versions of packages."""
    names = ", ".join(f"{name} {version(name)}" for name in ("jax", *packages))
    device = jax.devices()[0]
    kind = _processor() if device.platform == "cpu" else ""
    return (
        f"{device.device_kind} {kind}; Python {platform.python_version()}, {names}; {rounds} "
        f"rounds{' in turns' if device.platform == 'cpu' else ''}"
    )


def _processor() -> str:
    """Returns the name of the processor; ratios of times differ between processors."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
            if line.startswith("model name"):
                return f"{line.partition(':')[2].strip()}, {len(os.sched_getaffinity(0))} cores"
    return platform.processor() or platform.machine()


def table(
    times: Mapping[str, Sequence[float]],
    width: int,
    unit: str,
    amount: float | Mapping[str, float],
    against: str,
    decimals: int = 1,
    notes: Mapping[str, str] | None = None,
) -> str:
    """Formats the times of sides as text, one line each under a heading.

    Args:
        times: seconds of every call, by side; see `in_turns`.
        width: width of the column of names.
        unit: what is counted, in the plural, such as "pairs".
        amount: number of units that a call computes, of all sides or of each.
        against: the side that speed-ups, ratios of units per second, are relative to.
        decimals: decimals of the rate.
        notes: text after the line of each side; the note of "" follows the heading.
    """
    notes = notes or {}
    columns = ("median s", "fastest", "slowest", f"{unit}/s", "speed-up")
    lines = [" " * width + "".join(f"{x:>10}" for x in columns) + notes.get("", "")]
    amounts = amount if isinstance(amount, Mapping) else dict.fromkeys(times, amount)
    rates = {name: amounts[name] / statistics.median(seconds) for name, seconds in times.items()}
    for name, seconds in times.items():
        lines.append(
            f"{name:<{width}}{statistics.median(seconds):>10.3f}{min(seconds):>10.3f}"
            f"{max(seconds):>10.3f}{rates[name]:>10.{decimals}f}"
            f"{rates[name] / rates[against]:>9.2f}x{notes.get(name, '')}"
        )
    return "\n".join(lines)
