"""Python's search for reference cycles, which takes a fifth of the time of reading much data."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def no_search_for_cycles() -> Iterator[None]:
    """Lets the body, or a decorated function, make many objects without cycles in less time.

    Python would look at all of them, again whenever their number has grown by a quarter.
    """
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()
