"""Seconds that the main thread of this process has lost to compiling and to saving.

Both happen deep inside of other work, so they are counted here for whoever measures that work:
steps of training (`seva_jax/training/step_times.py`) and goodput (`goodput.py`).
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

from jax import monitoring

_COMPILING = "/jax/core/compile/"  # JAX's events: tracing, lowering, compiling
_CACHE_HIT = "/jax/compilation_cache/cache_hits"


class Overhead(NamedTuple):
    """Seconds since the start of the process.

    Attributes:
        compile_s: JAX traced a program, and XLA compiled it or its cache was read.
        save_s: waited for a checkpoint, see `saving`.
    """

    compile_s: float
    save_s: float


_compile_s = _save_s = 0.0
_cache_hits = 0
_is_saving = False
_compiling: list[tuple[float, float]] = []  # begin and end; none is inside of another


def overhead() -> Overhead:
    """Returns what the main thread has spent so far."""
    return Overhead(_compile_s, _save_s)


def cache_hits() -> int:
    """Returns how many programs were read from the compile cache so far instead of compiled."""
    return _cache_hits


@contextlib.contextmanager
def saving() -> Iterator[None]:
    """Counts the time of the body as saving; inside of another `saving` only the outer counts."""
    global _is_saving, _save_s
    if _is_saving or threading.current_thread() is not threading.main_thread():
        yield
        return
    _is_saving, start, compiled_s = True, time.monotonic(), _compile_s
    try:
        yield
    finally:
        _is_saving = False
        _save_s += time.monotonic() - start - (_compile_s - compiled_s)


def _count(event: str, duration_secs: float, **_: Any) -> None:
    """Takes an event of JAX, which comes at the end of what it is about."""
    global _compile_s
    if not event.startswith(_COMPILING):
        return
    if threading.current_thread() is not threading.main_thread():
        return
    end = time.monotonic()
    begin = end - duration_secs
    while _compiling and _compiling[-1][0] >= begin:  # tracing a function traces those it calls
        inner = _compiling.pop()
        _compile_s -= inner[1] - inner[0]
    _compiling.append((begin, end))
    _compile_s += duration_secs


def _count_hit(event: str, **_: Any) -> None:
    global _cache_hits
    _cache_hits += event == _CACHE_HIT


monitoring.register_event_duration_secs_listener(_count)
monitoring.register_event_listener(_count_hit)
