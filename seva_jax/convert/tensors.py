"""Tensors in safetensors files: reading headers and parts of tensors, and copying into arrays.

Files on a disk are mapped, so that parts of them are read without a copy. Of files in an object
store only the header and the needed byte ranges are read, several at a time. The safetensors
library checks the headers of both. What does not live here: which tensor is which parameter
(`table.py`), and which parts of it a process reads (`load.py`).
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
_ALIGNMENT = 64  # bytes
_STRIP = 16  # columns of 2 or 4 bytes: a cache line, or half of one
_SMALL = 16 * 2**20  # bytes of a tensor that is kept for further parts, see `read_part`


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor in a safetensors file, as the file's header describes it.

    Attributes:
        path: the file.
        name: its name in the file.
        shape: its shape.
        dtype: its dtype, as safetensors names it.
        start: offset of its bytes from the start of the file.
        version: the object in a store when its header was read; None on a disk.
    """

    path: Path
    name: str
    shape: Shape
    dtype: str
    start: int
    version: ObjectStat | None = None


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
    return [dataclasses.replace(tensor, version=version) for tensor in tensors]


def _checked_header(path: Path, shown: Path) -> list[Tensor]:
    """Returns the tensors of a local file; `shown` is the file that they and errors name."""
    try:
        with safe_open(path, framework="np") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            kinds = {name: (x.get_shape(), x.get_dtype()) for name, x in slices.items()}
        starts = data_start(path)
    except (SafetensorError, OSError) as error:
        with contextlib.suppress(OSError), shown.open("rb") as file:
            if file.read(20).startswith(b"version https://git"):
                raise DataError(
                    f"{shown} is a Git LFS pointer, not the weights: run `git lfs pull`"
                ) from None
        raise DataError(
            f"{shown} is not a complete safetensors file ({error}): fetch it again"
        ) from error
    return [
        Tensor(shown, name, tuple(shape), dtype, starts[name])
        for name, (shape, dtype) in kinds.items()
    ]


def data_start(path: Path) -> dict[str, int]:
    """Returns the offset of each tensor's bytes from the start of a safetensors file.

    The safetensors library must have checked the file, as `read_header` has it do.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    return {
        name: 8 + length + entry["data_offsets"][0]
        for name, entry in header.items()
        if name != "__metadata__"
    }


@contextlib.contextmanager
def opened(tensor: Tensor, rows: Sequence[slice] | None = None) -> Iterator[Any]:
    """Yields a tensor as an object that slicing turns into arrays.

    On a disk it is a mapping of the file, of which only what is used is read. From a store, rows
    are read when the tensor is opened, each byte once, because all columns of neighbouring rows are
    one range of bytes.

    Args:
        tensor: the tensor.
        rows: parts of its first dim that will be sliced, with explicit bounds; None means all.
    """
    # Mapped for each tensor: while a file is mapped, its pages count as memory of this process.
    yield _mapped(tensor) if tensor.version is None else _Rows(tensor, rows)


def _mapped(tensor: Tensor) -> np.ndarray:
    size = num_bytes(tensor.dtype, tensor.shape)
    kind = np.dtype(DTYPES[tensor.dtype])
    if not size:
        return np.empty(tensor.shape, kind)
    try:
        data = np.memmap(tensor.path, np.uint8, "r", tensor.start, (size,))
    except (OSError, ValueError) as error:
        raise DataError(f"{tensor.path} cannot be read ({error}): fetch it again") from None
    # A plain array keeps the mapping alive, and slicing it is faster.
    return np.asarray(data).view(kind).reshape(tensor.shape)


def read_part(tensor: Tensor, index: Index) -> np.ndarray:
    """Returns a part of a tensor, given a slice with explicit bounds for each dim.

    Small tensors of a store are kept for a while, for several parts are read of each.
    """
    if tensor.version is not None and num_bytes(tensor.dtype, tensor.shape) <= _SMALL:
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


def read_raw(tensor: Tensor) -> bytes | memoryview:
    """Returns the bytes of a tensor of any dtype."""
    size = num_bytes(tensor.dtype, tensor.shape)
    if tensor.version is not None:
        return _ranges(tensor, [(tensor.start, tensor.start + size)])[0].data
    with tensor.path.open("rb") as file:
        file.seek(tensor.start)
        return file.read(size)


def aligned(shape: Sequence[int], dtype: np.dtype) -> np.ndarray:
    """Returns an uninitialised array, aligned so that JAX on a CPU uses it without a copy."""
    size = math.prod(shape) * dtype.itemsize
    memory = np.empty(size + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    return memory[start : start + size].view(dtype).reshape(shape)


def assign(out: np.ndarray, values: np.ndarray) -> None:
    """Does `out[...] = values`, fast for bfloat16 and for transposed kernels.

    NumPy copies bfloat16 element by element, and integers much faster.
    """
    if values.dtype == out.dtype:
        bits = f"u{out.itemsize}"
        out, values = out.view(bits), values.view(bits)
    if values.ndim == 2 and values.strides[0] < values.strides[1]:
        _assign_transposed(out, values)
    else:
        out[...] = values


def _assign_transposed(out: np.ndarray, values: np.ndarray) -> None:
    """Does `out[...] = values` for matrices, whose columns are contiguous only in `values`.

    Copying a whole matrix touches another cache line for every element. Here columns are copied to
    a strip that fits the cache, and the rows of the strip, each one item to NumPy, to `out`.
    """
    rows, columns = out.shape
    whole = columns - columns % _STRIP
    strip = np.empty((rows, _STRIP), out.dtype)
    line = f"V{strip.itemsize * _STRIP}"
    lines, rows_of_strip = out[:, :whole].view(line), strip.view(line)[:, 0]
    for start in range(0, whole, _STRIP):
        for column in range(_STRIP):
            strip[:, column] = values[:, start + column]
        lines[:, start // _STRIP] = rows_of_strip
    out[:, whole:] = values[:, whole:]


def require_unchanged(tensors: Iterable[Tensor]) -> None:
    """Checks that the objects that hold the tensors are still those whose headers were read.

    It is called when everything has been read, because parts of two versions make no model.

    Raises:
        StoreError: an object was replaced or removed meanwhile.
    """
    for path, version in {t.path: t.version for t in tensors if t.version}.items():
        try:
            if path.stat() == version:
                continue
        except FileNotFoundError:
            pass
        raise StoreError(f"{path}: was replaced or removed while it was read; run it again")


class _Rows:
    """Rows of a tensor in a store, read once. Slices must lie within the rows that were named."""

    def __init__(self, tensor: Tensor, rows: Sequence[slice] | None) -> None:
        kind, self._shape = np.dtype(DTYPES[tensor.dtype]), tensor.shape
        count = tensor.shape[0] if tensor.shape else 1
        row_bytes = num_bytes(tensor.dtype, tensor.shape[1:])
        parts = [(0, count)] if rows is None else _joined([(r.start, r.stop) for r in rows])
        start = tensor.start
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
