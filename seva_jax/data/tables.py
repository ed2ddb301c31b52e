"""Files of records, recognised by their content: JSON lists, JSON lines, Hugging Face's parquet.

What lives here: bytes to records, and images embedded in parquet files. What does not: the meaning
of the fields (`files.py`, `preferences.py`, `messages.py`).

The `datasets` library writes an image to parquet as a struct `{bytes, path}`, and several as a list
of those. Records have names in their place; the bytes are read when an image is needed.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from typing_extensions import override

from seva_jax.data.collect import FolderImages, Images, listed
from seva_jax.data.splits import of_split, shard_split
from seva_jax.images.load import files_below
from seva_jax.runtime.files import read_bytes
from seva_jax.types import DataError, ExampleError

_MAX_LINE = 2**24  # bytes of a JSON line; the texts of an example are far shorter

Record = tuple[str, Any]
"""Where a record is ("line 3"), and its value: usually a dict."""


class Table(NamedTuple):
    """A file of records, and the images they name.

    Attributes:
        records: the records in file order; the value of a broken one is an `ExampleError`.
        images: gives access to the images.
    """

    records: Iterator[Record]
    images: Images


def open_table(
    path: str, image_root: str, split: str = "", link_roots: tuple[str, ...] = ()
) -> Table:
    """Opens a JSON list, JSON lines, a parquet file, or a folder of parquet files.

    Args:
        path: the file or folder.
        image_root: folder of image files; may be empty if parquet embeds all images.
        split: the split to read, by the names of the files; see `splits.py`.
        link_roots: folders that symbolic links in `image_root` may lead to.

    Raises:
        DataError: nothing can be read, or a folder holds several splits and none is chosen; the
            message names the file.
    """
    folder = Path(path)
    if path and folder.is_dir():
        files = {f.relative_to(folder).as_posix(): f for f in files_below(folder, lambda _: True)}
        names = sorted(name for name in files if name.endswith(".parquet"))
        if not names:
            raise DataError(f"{path}: no .parquet files below this folder; give a file")
        names = of_split(path, names, split, shard_split)
        return _open_parquet({name: files[name] for name in names}, image_root, link_roots)
    of_split(path, [folder.name], split, shard_split)
    data = read_bytes(path, 4096).lstrip(b"\xef\xbb\xbf \t\r\n")
    if data.startswith(b"PAR1"):
        return _open_parquet({folder.name: folder}, image_root, link_roots)
    records = json_list(path) if data.startswith(b"[") else json_lines(path)
    return Table(iter(records), FolderImages(image_root, link_roots))


# --- JSON -----------------------------------------------------------------------------------------


def json_list(path: str) -> list[Record]:
    """Returns the records of a file that holds one JSON list.

    Raises:
        DataError: the file cannot be read, or does not hold a JSON list.
    """
    data = read_bytes(path)
    try:
        records = json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        message = f"{path}: not JSON ({error}); it may be cut short: fetch it again"
        raise DataError(message) from error
    if not isinstance(records, list):
        raise DataError(f"{path}: expected a JSON list of records, found {type(records).__name__}")
    return [(f"record {n}", record) for n, record in enumerate(records, 1)]


def json_lines(path: str) -> list[Record]:
    """Returns the records of a file with one JSON value on each line; empty lines are skipped.

    Raises:
        DataError: the file cannot be read.
    """
    # Split bytes, not text: str.splitlines would also cut at U+2028 inside a question.
    lines = enumerate(read_bytes(path).split(b"\n"), 1)
    return [(f"line {n}", _line(line)) for n, line in lines if line.strip()]


def _line(line: bytes) -> Any:
    if len(line) > _MAX_LINE:
        return ExampleError(
            f"{len(line):,} bytes, above {_MAX_LINE:,}; write one object a line", "too long"
        )
    try:
        return json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        return ExampleError(f"not JSON ({error}); write one object a line", "broken line")


# --- parquet --------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class ParquetImages(Images):
    """Images embedded in parquet files, and image files in a folder.

    The name of an embedded image is "FILE/COLUMN/ROW/NUMBER". Only the two row groups read last
    stay in memory, so reading in order is fast and reading at random is slow: `python -m
    seva_jax.data build` writes a copy that is fast to read at random.

    Attributes:
        files: name of a file inside image names -> its path.
        root: folder of image files.
        link_roots: folders that symbolic links in it may lead to.
    """

    files: dict[str, Path]
    root: str
    link_roots: tuple[str, ...] = ()

    @override
    def check(self, name: str) -> None:
        if self._place(name) is None:
            self._folder.check(name)

    @override
    def read(self, name: str) -> bytes:
        place = self._place(name)
        if place is None:
            return self._folder.read(name)
        file, column, row, number = place
        try:
            cell = self._cell(file, column, row)
        except _DAMAGE as error:
            raise ExampleError(f"{name}: cannot be read ({error})", "unreadable image") from error
        for image in listed(cell)[number : number + 1]:
            if image is not None and image["bytes"] is not None:
                return image["bytes"]
        raise ExampleError(f"{name}: there is no image in this cell", "missing image")

    @functools.cached_property
    def _folder(self) -> FolderImages:
        return FolderImages(self.root, self.link_roots)

    def _place(self, name: str) -> tuple[str, str, int, int] | None:
        file, *rest = name.rsplit("/", 3)
        if file not in self.files or len(rest) != 3 or not all(map(_NUMBER.fullmatch, rest[1:])):
            return None
        return file, rest[0], int(rest[1]), int(rest[2])

    def _cell(self, file: str, column: str, row: int) -> Any:
        with _LOCK:  # a ParquetFile is not thread-safe
            parquet = _parquet(self.files[file])
            for group in range(parquet.num_row_groups):
                size = parquet.metadata.row_group(group).num_rows
                if row < size:
                    return _row_group(self.files[file], group, column)[row].as_py()
                row -= size
        return None


_LOCK = threading.Lock()
_DAMAGE = (OSError, pa.ArrowException, ValueError, KeyError)  # raised for damaged files
_NUMBER = re.compile("[0-9]{1,18}")


# Cached here, not in `ParquetImages`, which is sent to other processes.
@functools.lru_cache(maxsize=64)
def _parquet(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path)
    except _DAMAGE as error:
        raise DataError(f"{path}: not readable as parquet ({error}); fetch it again") from error


@functools.lru_cache(maxsize=2)
def _row_group(path: Path, group: int, column: str) -> pa.ChunkedArray:
    parquet = _parquet(path)
    return parquet.read_row_group(group, columns=_byte_leaves(parquet, column)).column(column)


def _leaves(parquet: pq.ParquetFile, column: str) -> list[str]:
    paths = (parquet.schema.column(i).path for i in range(len(parquet.schema.names)))
    return [path for path in paths if _is_of(path, column)]


def _byte_leaves(parquet: pq.ParquetFile, column: str) -> list[str]:
    return [leaf for leaf in _leaves(parquet, column) if leaf.endswith(".bytes")]


def _is_of(leaf: str, column: str) -> bool:
    return leaf == column or leaf.startswith(f"{column}.")


def _is_image(kind: pa.DataType) -> bool:
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        kind = kind.value_type
    if not pa.types.is_struct(kind) or {f.name for f in kind} != {"bytes", "path"}:
        return False
    data = kind.field("bytes").type
    return pa.types.is_binary(data) or pa.types.is_large_binary(data) or pa.types.is_null(data)


def _open_parquet(files: dict[str, Path], image_root: str, link_roots: tuple[str, ...]) -> Table:
    _parquet.cache_clear()  # a file may have changed since
    _row_group.cache_clear()
    for path in files.values():
        _parquet(path)  # raises for an unreadable file before the first record is used
    records = (record for name, path in files.items() for record in _rows(name, path))
    return Table(records, ParquetImages(files, image_root, link_roots))


def _rows(name: str, path: Path) -> Iterator[Record]:
    """Yields the rows of a file; cells with images hold lists of names instead."""
    parquet = _parquet(path)
    schema = parquet.schema_arrow
    images = [field.name for field in schema if _is_image(field.type)]
    leaves = [leaf for column in schema.names for leaf in _leaves(parquet, column)]
    heavy = {leaf for column in images for leaf in _byte_leaves(parquet, column)}
    light = [leaf for leaf in leaves if leaf not in heavy]
    row = 0
    for group in range(parquet.num_row_groups):
        embedded = {c: _has_bytes(parquet, group, c) for c in images}
        for record in _records(path, group, light):
            cells = record if isinstance(record, dict) else {}
            for column in images:
                if cells.get(column) is not None:
                    cells[column] = [
                        f"{name}/{column}/{row}/{i}"
                        if embedded[column]
                        else image and image["path"]
                        for i, image in enumerate(listed(cells[column]))
                    ]
            yield f"{name}, row {row}", record
            row += 1


def _records(path: Path, group: int, columns: list[str]) -> Iterator[Any]:
    """Yields the rows of a group, and an `ExampleError` for a row whose text is not UTF-8."""
    try:
        rows = _parquet(path).read_row_group(group, columns=columns)
    except _DAMAGE as error:
        message = f"{path}: row group {group} is damaged ({error}); fetch it again"
        raise DataError(message) from error
    try:
        yield from rows.to_pylist()
    except UnicodeDecodeError:
        for i in range(rows.num_rows):
            try:
                yield rows.slice(i, 1).to_pylist()[0]
            except UnicodeDecodeError as error:
                yield ExampleError(f"a text is not UTF-8 ({error})", "broken line")


def _has_bytes(parquet: pq.ParquetFile, group: int, column: str) -> bool:
    """Returns whether a row group embeds its images, instead of naming files."""
    metadata = parquet.metadata.row_group(group)
    for i in range(metadata.num_columns):
        leaf = metadata.column(i)
        if _is_of(leaf.path_in_schema, column) and leaf.path_in_schema.endswith(".bytes"):
            counts = leaf.statistics
            return counts is None or counts.null_count < leaf.num_values
    return True
