"""Files of records, read by their content: JSON lists, JSON lines, Hugging Face's parquet.

What lives here: bytes to records, and images that lie inside parquet files. What does not: what
the fields mean (`files.py`, `preferences.py`, `messages.py`).

An image in parquet is a struct `{bytes, path}`, or a list of those, which is what the `datasets`
library writes. Records carry a name in its place; the bytes are read when the image is.
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

from seva_jax.data.collect import FolderImages, Images
from seva_jax.runtime.files import read_bytes
from seva_jax.types import DataError, ExampleError

_MAX_LINE = 2**24  # bytes of a JSON line; the text of an example is far shorter

Record = tuple[str, Any]
"""Where a record is ("line 3"), and what is there: usually a dict."""


class Table(NamedTuple):
    """A file of records, and the images they name.

    Attributes:
        records: in file order; a record that is no JSON is an `ExampleError`, not raised.
        images: where the images are.
    """

    records: Iterator[Record]
    images: Images


def open_table(path: str, image_root: str) -> Table:
    """Opens a JSON list, JSON lines, a parquet file, or a folder of parquet files.

    Args:
        path: the file or folder.
        image_root: folder of images that are files; may be empty for parquet that embeds them.

    Raises:
        DataError: nothing can be read; names the file.
    """
    folder = Path(path)
    if path and folder.is_dir():
        files = sorted(folder.rglob("*.parquet"))
        if not files:
            raise DataError(f"{path}: no .parquet files below this folder; give a file")
        return _open_parquet({f.relative_to(folder).as_posix(): f for f in files}, image_root)
    data = read_bytes(path, 4096).lstrip(b"\xef\xbb\xbf \t\r\n")
    if data.startswith(b"PAR1"):
        return _open_parquet({folder.name: folder}, image_root)
    records = json_list(path) if data.startswith(b"[") else json_lines(path)
    return Table(iter(records), FolderImages(image_root))


# --- JSON -----------------------------------------------------------------------------------------


def json_list(path: str) -> list[Record]:
    """The records of a file that holds one JSON list.

    Raises:
        DataError: it cannot be read, is no JSON, or no list.
    """
    data = read_bytes(path)
    try:
        records = json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not JSON ({error}); it may be cut short: fetch it again") from (
            error
        )
    if not isinstance(records, list):
        raise DataError(f"{path}: expected a JSON list of records, found {type(records).__name__}")
    return [(f"record {n}", record) for n, record in enumerate(records, 1)]


def json_lines(path: str) -> list[Record]:
    """The records of a file with one JSON value a line; empty lines do not count.

    Raises:
        DataError: it cannot be read.
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
    """Images inside parquet files, and image files beside them.

    An embedded image is called "FILE/COLUMN/ROW/NUMBER". One row group is held in memory, so
    reading in order is fast and reading at random is not: `python -m seva_jax.data build` writes
    a copy that is made for that.

    Attributes:
        files: by the name that images carry.
        root: folder of images that are files.
    """

    files: dict[str, Path]
    root: str

    def check(self, name: str) -> None:
        """See `Images.check`."""
        if self._place(name) is None:
            self._folder.check(name)

    def read(self, name: str) -> bytes:
        """See `Images.read`."""
        place = self._place(name)
        if place is None:
            return self._folder.read(name)
        file, column, row, number = place
        try:
            cell = self._cell(file, column, row)
        except _DAMAGE as error:
            raise ExampleError(f"{name}: cannot be read ({error})", "unreadable image") from error
        for image in _listed(cell)[number : number + 1]:
            if image is not None and image["bytes"] is not None:
                return image["bytes"]
        raise ExampleError(f"{name}: there is no image in this cell", "missing image")

    @functools.cached_property
    def _folder(self) -> FolderImages:
        return FolderImages(self.root)

    def _place(self, name: str) -> tuple[str, str, int, int] | None:
        file, *rest = name.rsplit("/", 3)
        if file not in self.files or len(rest) != 3 or not all(map(_NUMBER.fullmatch, rest[1:])):
            return None
        return file, rest[0], int(rest[1]), int(rest[2])

    def _cell(self, file: str, column: str, row: int) -> Any:
        with _LOCK:  # ParquetFile is for one thread
            parquet = _parquet(self.files[file])
            for group in range(parquet.num_row_groups):
                size = parquet.metadata.row_group(group).num_rows
                if row < size:
                    return _row_group(self.files[file], group, column)[row].as_py()
                row -= size
        return None


_LOCK = threading.Lock()
_DAMAGE = (OSError, pa.ArrowException, ValueError, KeyError)  # what pyarrow says of damaged files
_NUMBER = re.compile("[0-9]{1,18}")


# Opened where they are needed, and not kept in `ParquetImages`: those go to other processes.
@functools.lru_cache(maxsize=64)
def _parquet(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path)
    except _DAMAGE as error:
        raise DataError(f"{path}: not readable as parquet ({error}); fetch it again") from error


@functools.lru_cache(maxsize=2)
def _row_group(path: Path, group: int, column: str) -> pa.ChunkedArray:
    parquet = _parquet(path)
    leaves = [leaf for leaf in _leaves(parquet, column) if leaf.endswith(".bytes")]
    return parquet.read_row_group(group, columns=leaves).column(column)


def _leaves(parquet: pq.ParquetFile, column: str) -> list[str]:
    paths = (parquet.schema.column(i).path for i in range(len(parquet.schema.names)))
    return [path for path in paths if _is_of(path, column)]


def _is_of(leaf: str, column: str) -> bool:
    return leaf == column or leaf.startswith(f"{column}.")


def _listed(cell: Any) -> list[Any]:
    return [] if cell is None else cell if isinstance(cell, list) else [cell]


def _is_image(kind: pa.DataType) -> bool:
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        kind = kind.value_type
    if not pa.types.is_struct(kind) or {f.name for f in kind} != {"bytes", "path"}:
        return False
    data = kind.field("bytes").type
    return pa.types.is_binary(data) or pa.types.is_large_binary(data) or pa.types.is_null(data)


def _open_parquet(files: dict[str, Path], image_root: str) -> Table:
    _parquet.cache_clear()  # a file may have changed since
    _row_group.cache_clear()
    for path in files.values():
        _parquet(path)  # all are readable, before the first is read
    records = (record for name, path in files.items() for record in _rows(name, path))
    return Table(records, ParquetImages(files, image_root))


def _rows(name: str, path: Path) -> Iterator[Record]:
    """The rows without the bytes of their images: those cells hold lists of names."""
    parquet = _parquet(path)
    schema = parquet.schema_arrow
    images = [field.name for field in schema if _is_image(field.type)]
    leaves = [leaf for column in schema.names for leaf in _leaves(parquet, column)]
    heavy = {leaf for column in images for leaf in _leaves(parquet, column)}
    light = [leaf for leaf in leaves if leaf not in heavy or not leaf.endswith(".bytes")]
    row = 0
    for group in range(parquet.num_row_groups):
        embedded = {c: _has_bytes(parquet, group, c) for c in images}
        for record in _records(path, group, light):
            if isinstance(record, ExampleError):
                yield f"{name}, row {row}", record
                row += 1
                continue
            for column in images:
                if record.get(column) is None:
                    continue
                record[column] = [
                    f"{name}/{column}/{row}/{i}" if embedded[column] else image and image["path"]
                    for i, image in enumerate(_listed(record[column]))
                ]
            yield f"{name}, row {row}", record
            row += 1


def _records(path: Path, group: int, columns: list[str]) -> Iterator[Any]:
    """The rows of a group; an `ExampleError` stands for one whose text is not UTF-8."""
    try:
        rows = _parquet(path).read_row_group(group, columns=columns)
    except _DAMAGE as error:
        raise DataError(f"{path}: row group {group} is damaged ({error}); fetch it again") from (
            error
        )
    try:
        yield from rows.to_pylist()
    except UnicodeDecodeError:
        for i in range(rows.num_rows):
            try:
                yield rows.slice(i, 1).to_pylist()[0]
            except UnicodeDecodeError as error:
                yield ExampleError(f"a text is not UTF-8 ({error})", "broken line")


def _has_bytes(parquet: pq.ParquetFile, group: int, column: str) -> bool:
    """Whether a row group embeds its images, or only names files."""
    metadata = parquet.metadata.row_group(group)
    for i in range(metadata.num_columns):
        leaf = metadata.column(i)
        if _is_of(leaf.path_in_schema, column) and leaf.path_in_schema.endswith(".bytes"):
            counts = leaf.statistics
            return counts is None or counts.null_count < leaf.num_values
    return True
