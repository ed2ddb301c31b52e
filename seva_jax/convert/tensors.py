"""Tensors in safetensors files: reading headers, and parts of tensors.

Files on a disk are mapped by the safetensors library. Of files in an object store only the header
and the needed byte ranges are read, several at a time; the library checks their headers, too. What
does not live here: which tensor is which parameter (`table.py`), and which parts of it a process
reads (`load.py`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import math
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open

from seva_jax.convert.table import Index, Shape
from seva_jax.runtime.store_client import StoreError
from seva_jax.runtime.stores import ObjectStat, StorePath, is_remote
from seva_jax.types import DataError

DTYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": jnp.bfloat16}
_LONGEST_HEADER = 100_000_000  # bytes; the library refuses longer ones
_REQUEST = 32 * 2**20  # bytes that one request asks for at most
_REQUESTS = 8  # at a time, in a process
_SMALL = 16 * 2**20  # bytes of a tensor that is kept for further parts, see `read_part`


@dataclasses.dataclass(frozen=True)
class Stored:
    """Where the bytes of a tensor are in an object store.

    Attributes:
        start: their offset from the start of the object.
        version: the object when its header was read.
    """

    start: int
    version: ObjectStat


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor in a safetensors file, as the file's header describes it.

    Attributes:
        path: the file.
        name: its name in the file.
        shape: its shape.
        dtype: its dtype, as safetensors names it.
        stored: where it is in an object store; None on a disk.
    """

    path: Path
    name: str
    shape: Shape
    dtype: str
    stored: Stored | None = None


def num_bytes(dtype: str, shape: Shape) -> int:
    """Returns the bytes of a tensor, given the name that safetensors has for its dtype."""
    bits = re.match(r"[A-Z]+(\d+)", dtype)  # "BF16", "F8_E4M3"; "BOOL" takes a byte
    return math.prod(shape) * (int(bits[1]) if bits else 8) // 8


def read_header(path: Path) -> list[Tensor]:
    """Returns the tensors of one file; safetensors checks the header and the file's size.

    Raises:
        DataError: the file is damaged, or not a safetensors file.
    """
    if not is_remote(path):
        return _checked_header(path, path)
    version: ObjectStat = cast(StorePath, path).stat()
    prefix = _range(path, 0, min(8, version.st_size))
    length = int.from_bytes(prefix, "little")
    text = b""
    if length <= min(_LONGEST_HEADER, version.st_size - 8):
        text = _range(path, 8, 8 + length)
    # The library takes files only. This one has the header and the size, and no blocks on the disk
    # for the rest.
    with tempfile.TemporaryDirectory() as folder:
        outline = Path(folder) / "model.safetensors"
        outline.write_bytes(prefix + text)
        os.truncate(outline, version.st_size)
        tensors = _checked_header(outline, path)
    entries = json.loads(text)
    placed = []
    for tensor in tensors:
        start = 8 + length + entries[tensor.name]["data_offsets"][0]
        placed.append(dataclasses.replace(tensor, stored=Stored(start, version)))
    return placed


def _checked_header(path: Path, shown: Path) -> list[Tensor]:
    """Returns the tensors of a local file; `shown` is the file that they and errors name."""
    try:
        with safe_open(path, framework="np") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            return [
                Tensor(shown, name, tuple(part.get_shape()), part.get_dtype())
                for name, part in slices.items()
            ]
    except (SafetensorError, OSError) as error:
        with contextlib.suppress(OSError), shown.open("rb") as file:
            if file.read(20).startswith(b"version https://git"):
                raise DataError(
                    f"{shown} is a Git LFS pointer, not the weights: run `git lfs pull`"
                ) from None
        raise DataError(
            f"{shown} is not a complete safetensors file ({error}): fetch it again"
        ) from error


@contextlib.contextmanager
def opened(tensor: Tensor, rows: Sequence[slice] | None = None) -> Iterator[Any]:
    """Yields a tensor as an object that slicing turns into arrays.

    On a disk only what is sliced is read. From a store, rows are read when the tensor is opened,
    each byte once, because all columns of neighbouring rows are one range of bytes.

    Args:
        tensor: the tensor.
        rows: parts of its first dim that will be sliced, with explicit bounds; None means all.
    """
    if tensor.stored is not None:
        yield _Rows(tensor, rows)
        return
    # Opened for each tensor: while a file is mapped, its pages count as memory of this process.
    with safe_open(tensor.path, framework="np") as file:
        yield file.get_slice(tensor.name) if tensor.shape else file.get_tensor(tensor.name)


def read_part(tensor: Tensor, index: Index) -> np.ndarray:
    """Returns a part of a tensor, given a slice with explicit bounds for each dim.

    Small tensors of a store are kept for a while, for several parts are read of each.
    """
    if tensor.stored is not None and num_bytes(tensor.dtype, tensor.shape) <= _SMALL:
        return _whole(tensor)[index]
    with opened(tensor, index[:1]) as source:
        return source[index]


@functools.lru_cache(maxsize=16)
def _whole(tensor: Tensor) -> np.ndarray:
    return read_whole(tensor)


def read_whole(tensor: Tensor) -> np.ndarray:
    """Returns a tensor in its own dtype."""
    with opened(tensor) as source:
        return source[tuple(slice(0, size) for size in tensor.shape)]


def read_raw(tensor: Tensor, start: int) -> bytes | memoryview:
    """Returns the bytes of a tensor of any dtype, which begin at `start` in its file."""
    size = num_bytes(tensor.dtype, tensor.shape)
    if tensor.stored is not None:
        return _ranges(tensor, [(start, start + size)])[0].data
    with tensor.path.open("rb") as file:
        file.seek(start)
        return file.read(size)


def require_unchanged(tensors: Iterable[Tensor]) -> None:
    """Checks that the objects that hold the tensors are still those whose headers were read.

    It is called when everything has been read, because parts of two versions make no model.

    Raises:
        StoreError: an object was replaced or removed meanwhile.
    """
    for path, version in {t.path: t.stored.version for t in tensors if t.stored}.items():
        try:
            if path.stat() == version:
                continue
        except FileNotFoundError:
            pass
        raise StoreError(f"{path}: was replaced or removed while it was read; run it again")


class _Rows:
    """Rows of a tensor in a store, read once. Slices must lie within the rows that were named."""

    def __init__(self, tensor: Tensor, rows: Sequence[slice] | None) -> None:
        assert tensor.stored is not None
        kind, self._shape = np.dtype(DTYPES[tensor.dtype]), tensor.shape
        count = tensor.shape[0] if tensor.shape else 1
        row_bytes = num_bytes(tensor.dtype, tensor.shape[1:])
        parts = [(0, count)] if rows is None else _joined([(r.start, r.stop) for r in rows])
        start = tensor.stored.start
        ranges = [(start + first * row_bytes, start + last * row_bytes) for first, last in parts]
        self._blocks = [
            (first, data.view(kind).reshape(last - first, *tensor.shape[1:]))
            for (first, last), data in zip(parts, _ranges(tensor, ranges), strict=True)
        ]

    def __getitem__(self, index: Index) -> np.ndarray:
        if not self._shape:
            return self._blocks[0][1].reshape(())[index]
        start, stop = index[0].start, index[0].stop
        for first, block in self._blocks:
            if first <= start and stop <= first + len(block):
                return block[(slice(start - first, stop - first), *index[1:])]
        raise AssertionError(f"rows {start} to {stop} were not read")


def _joined(parts: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Returns the union of ranges as ranges that neither overlap nor touch, in order.

    >>> _joined([(6, 8), (0, 2), (2, 3), (1, 3)])
    [(0, 3), (6, 8)]
    """
    joined: list[tuple[int, int]] = []
    for start, stop in sorted(parts):
        if joined and start <= joined[-1][1]:
            joined[-1] = joined[-1][0], max(stop, joined[-1][1])
        else:
            joined.append((start, stop))
    return joined


def _ranges(tensor: Tensor, ranges: Sequence[tuple[int, int]]) -> list[np.ndarray]:
    """Reads ranges of an object's bytes, several at a time and large ones in pieces."""
    out = [np.empty(stop - start, np.uint8) for start, stop in ranges]

    def read(job: tuple[np.ndarray, int]) -> None:
        target, start = job
        try:
            data = _range(tensor.path, start, start + len(target))
        except (StoreError, DataError):
            require_unchanged([tensor])  # the better reason
            raise
        target[:] = np.frombuffer(data, np.uint8)

    jobs = [
        (whole[at : at + _REQUEST], start + at)
        for whole, (start, _) in zip(out, ranges, strict=True)
        for at in range(0, len(whole), _REQUEST)
    ]
    list(_pool().map(read, jobs))
    return out


@functools.cache
def _pool() -> ThreadPoolExecutor:
    """Returns the threads that wait for a store; one pool bounds the requests of a process."""
    return ThreadPoolExecutor(_REQUESTS, "ranges")


def _range(path: Path, start: int, stop: int) -> bytes:
    try:
        data = cast(StorePath, path).read_range(start, stop) if stop > start else b""
    except FileNotFoundError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}): fetch it again") from None
    if len(data) != stop - start:
        raise StoreError(f"{path}: ends at byte {start + len(data)}, before {stop}; run it again")
    return data
