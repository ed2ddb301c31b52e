"""Reads what is needed next in threads, while the caller works on what came before."""

from __future__ import annotations

import collections
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

_Item = TypeVar("_Item")
_Read = TypeVar("_Read")

READERS = 32  # requests that are under way at a time where images come from an object store


def read_ahead(
    read: Callable[[_Item], _Read], items: Iterable[_Item], threads: int, ahead: int
) -> Generator[_Read, None, None]:
    """Yields `read(item)` for every item, in order.

    An error is raised where its item would have been yielded, and ends the reading.

    Args:
        read: reads one item; it is called in threads.
        items: what to read. The caller's thread iterates over them.
        threads: how many items are read at a time.
        ahead: the most items that are read, or being read, before they are needed; at least 1.
    """
    waiting: collections.deque[Future[_Read]] = collections.deque()
    with ThreadPoolExecutor(min(threads, ahead)) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(read, item))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
