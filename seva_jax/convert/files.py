"""Writes exports: directories that appear whole or not at all, safetensors files in pieces.

What does not live here: reading (`load.py`), and what goes into the files (`export.py`,
`rewrite.py`, `peft.py`).
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import cast

import numpy as np

from seva_jax.convert.original import ADAPTER_CONFIG, read_json
from seva_jax.convert.tensors import DTYPES, Tensor, num_bytes
from seva_jax.runtime.copies import upload
from seva_jax.runtime.progress import Progress
from seva_jax.runtime.stores import StorePath, is_remote
from seva_jax.types import DataError

# Written last to an object store; an export without them is not complete.
_LAST = ("config.json", ADAPTER_CONFIG)


@contextlib.contextmanager
def new_directory(out: Path, size: int) -> Iterator[Path]:
    """Yields an empty directory to write to, and renames it to `out` if the body succeeds.

    For an object store, it is a temporary directory, which is uploaded if the body succeeds.
    config.json or adapter_config.json comes last: with it, the upload is complete.

    Args:
        out: a path that does not exist, or an empty directory.
        size: bytes that will be written, approximately.

    Raises:
        DataError: `out` is not empty or cannot be written, or the disk lacks the space.
    """
    if is_remote(out):
        yield from _new_objects(out, size)
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out} exists and is not empty; give another directory, or remove it")
    scratch = out.with_name(f"{out.name}.tmp-{os.getpid()}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _require_space(out.parent, size, "give another directory")
        scratch.mkdir()
        yield scratch
        if out.exists():
            out.rmdir()
        scratch.rename(out)
    except OSError as error:
        raise DataError(f"{out} cannot be written: {error}") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _new_objects(out: Path, size: int) -> Iterator[Path]:
    if there := cast(StorePath, out).below():
        complete = any(name in there for name in _LAST)
        raise DataError(
            f"{out} exists and is not empty; give another directory, or remove it"
            + ". It is a part of an export that was cut off" * (not complete)
        )
    try:
        with tempfile.TemporaryDirectory(prefix="seva_jax_export_") as folder:
            scratch = Path(folder)
            _require_space(scratch, size, "set TMPDIR to another place")
            yield scratch
            files = [path for path in sorted(scratch.rglob("*")) if path.is_file()]
            files.sort(key=lambda path: path.relative_to(scratch).as_posix() in _LAST)
            with Progress("upload", len(files), "file") as bar:
                for path in files:
                    upload(path, out / path.relative_to(scratch).as_posix())
                    bar.update()
    except OSError as error:
        raise DataError(f"{out} cannot be written: {error}") from error


def _require_space(folder: Path, size: int, otherwise: str) -> None:
    free = shutil.disk_usage(folder).free
    if size > free:
        raise DataError(
            f"{folder} has {free / 2**30:.1f} GiB free, but {size / 2**30:.1f} GiB "
            f"are to be written; free some space, or {otherwise}"
        )


def copy_file(path: Path, target: Path) -> None:
    """Copies a checkpoint's file, which may be in an object store, to a local one."""
    if is_remote(path):
        cast(StorePath, path).download(target)
    else:
        shutil.copyfile(path, target)


def write_json(path: Path, fields: Mapping[str, object]) -> None:
    """Writes an indented JSON object to a file."""
    path.write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")


def update_json(path: Path, fields: Mapping[str, object]) -> None:
    """Sets fields of a JSON object in a file, which stays as it is if it has them already."""
    old = read_json(path)
    if old != {**old, **fields}:
        write_json(path, {**old, **fields})


def encode(tensor: Tensor, values: np.ndarray) -> bytes:
    """Returns values as the bytes of a tensor, cast to its dtype.

    Raises:
        DataError: a value is not finite in the tensor's dtype.
    """
    if values.shape != tensor.shape:
        raise AssertionError(f"{tensor.name} is {tensor.shape}, not {values.shape}")
    with np.errstate(over="ignore"):
        stored = values.astype(DTYPES[tensor.dtype])
    if not np.isfinite(stored.astype(np.float32)).all():
        raise DataError(
            f"{tensor.name} has values that are not finite in {tensor.dtype}, the dtype of "
            f"{tensor.path}; did training diverge?"
        )
    return stored.tobytes()


class SafetensorsWriter:
    """Writes one safetensors file tensor by tensor, in any order; a context manager."""

    def __init__(self, path: Path, tensors: Mapping[str, tuple[str, tuple[int, ...]]]) -> None:
        """Writes the header.

        Args:
            path: the new file.
            tensors: the dtype, as safetensors names it, and the shape of each tensor by name.
        """
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        end = 0
        starts = {}
        for name, (dtype, shape) in tensors.items():
            starts[name], end = end, end + num_bytes(dtype, shape)
            offsets = [starts[name], end]
            header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": offsets}
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)  # the data begins aligned
        self._file = path.open("xb")
        self._file.write(len(text).to_bytes(8, "little") + text)
        start = self._file.tell()
        self._file.truncate(start + end)
        self._tensors = {
            name: Tensor(path, name, tuple(shape), dtype, start + starts[name])
            for name, (dtype, shape) in tensors.items()
        }
        self._left = set(tensors)

    def write(self, name: str, values: np.ndarray) -> None:
        """Writes one tensor, cast to its dtype."""
        self.write_bytes(name, encode(self._tensors[name], values))

    def write_bytes(self, name: str, data: bytes | memoryview) -> None:
        """Writes one tensor, given its bytes."""
        tensor = self._tensors[name]
        if len(data) != num_bytes(tensor.dtype, tensor.shape):
            raise AssertionError(f"{name}: {len(data)} bytes for {tensor.dtype} {tensor.shape}")
        self._file.seek(tensor.start)
        self._file.write(data)
        self._left.remove(name)

    def __enter__(self) -> SafetensorsWriter:
        """Returns itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Closes the file; every tensor must have been written."""
        self._file.close()
        if self._left and kind is None:
            raise AssertionError(f"never written: {sorted(self._left)}")
