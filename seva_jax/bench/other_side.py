"""The other side of a benchmark in a process of its own, where both would not fit on a GPU.

On a GPU the other side runs first, before this process asks JAX for the device, and has the whole
card: JAX keeps what it has once taken. On a CPU both sides run in one process, in turns, because
times there drift.
"""

from __future__ import annotations

import dataclasses
import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from seva_jax.types import DataError


class Measured(NamedTuple):
    """What the other side measured.

    Attributes:
        results: what its first calls returned.
        seconds: of every timed call.
        fitted: how much it computes at once: pairs or rows.
        peak: bytes that torch had allocated at most; 0 on a CPU.
    """

    results: list[Any]
    seconds: list[float]
    fitted: int
    peak: int = 0


def on_gpu() -> bool:
    """Returns whether the other side runs on a GPU; starts neither JAX nor CUDA."""
    try:
        import torch
    except ImportError:
        return False
    return torch.cuda.is_available()


def measured_alone(module: str, bench: Any) -> Measured:
    """Runs `main` of a module in a process of its own.

    Args:
        module: its name, such as "seva_jax.bench.trl_step".
        bench: the benchmark's options, which the process gets as JSON.

    Raises:
        DataError: the process failed; its error is on the terminal.
    """
    # JAX in that process, which makes nothing but examples, must not take memory of the card.
    child = subprocess.run(
        [sys.executable, "-m", module, json.dumps(dataclasses.asdict(bench))],
        env=os.environ | {"JAX_PLATFORMS": "cpu"}, stdout=subprocess.PIPE, text=True, check=False,
    )  # fmt: skip
    if child.returncode:
        raise DataError(f"{module} failed, see above")
    return Measured(*json.loads(child.stdout.splitlines()[-1]))


def measure(first: list[Any], run: Callable[[], Any], rounds: int, fitted: int) -> Measured:
    """Times calls of a side that has been warmed up.

    Args:
        first: what its first calls returned.
        run: makes one call and waits for its end.
        rounds: number of timed calls.
        fitted: see `Measured`.
    """
    import torch

    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    return Measured(first, seconds, fitted, peak)


def free_memory() -> None:
    """Gives back what a call that ran out of memory left; outside of the handler of its error."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def next_smaller(total: int, size: int) -> int:
    """Returns the largest divisor of `total` that is at most half of `size`.

    >>> next_smaller(8, 8), next_smaller(12, 6), next_smaller(7, 7)
    (4, 3, 1)
    """
    return max(n for n in range(1, size // 2 + 1) if total % n == 0)
