"""An open file on top of byte ranges, as an object store gives them."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

from typing_extensions import override

ReadRange = Callable[[int, int], bytes]  # the bytes from one place up to another
_AHEAD = 4 * 2**20  # bytes that are read at a time


def buffered(read_range: ReadRange, size: int) -> io.BufferedReader:
    """Returns an object of some bytes as an open file.

    Args:
        read_range: reads a part of it.
        size: its size in bytes.
    """
    return io.BufferedReader(_RangeReader(read_range, size), min(_AHEAD, max(size, 1)))


class _RangeReader(io.RawIOBase):
    """Reads an object at any place, by byte ranges."""

    def __init__(self, read_range: ReadRange, size: int) -> None:
        self._read_range, self._size, self._at = read_range, size, 0

    @override
    def readable(self) -> bool:
        return True

    @override
    def seekable(self) -> bool:
        return True

    @override
    def tell(self) -> int:
        return self._at

    @override
    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + (0, self._at, self._size)[whence]
        return self._at

    @override
    def readall(self) -> bytes:  # otherwise in pieces of 8 KiB
        data = self._read_range(self._at, self._size) if self._at < self._size else b""
        self._at += len(data)
        return data

    @override
    def readinto(self, buffer: Any) -> int:
        stop = min(self._at + len(buffer), self._size)
        if stop <= self._at:
            return 0
        data = self._read_range(self._at, stop)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)
