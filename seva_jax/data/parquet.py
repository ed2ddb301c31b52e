"""Parquet: its rows as records, and the images embedded in it.

What lives here: reading only what is used, and images that are read when they are needed. What does
not: recognising a file as parquet (`tables.py`), and what its fields mean (`embedded.py`).

The `datasets` library writes an image to parquet as a struct `{bytes, path}`, and several as a list
of those. Records have names in their place.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import itertools
import re
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import pyarrow as pa
import pyarrow.parquet as pq
from typing_extensions import override

from seva_jax.data.collect import FolderImages, Images, listed
from seva_jax.data.fields import LFS, Record, Unread, pointer_error
from seva_jax.runtime.copies import local_copy
from seva_jax.runtime.files import read_bytes
from seva_jax.runtime.read_ahead import read_ahead
from seva_jax.runtime.stores import is_remote
from seva_jax.types import DataError, ExampleError, Size


@dataclasses.dataclass(frozen=True)
class ParquetImages(Images):
    """Images embedded in parquet files, and image files in a folder.

    The name of an embedded image is "FILE/COLUMN/ROW/NUMBER". Only the two row groups read last
    stay in memory, so reading in order is fast and reading at random is slow: `python -m
    seva_jax.data build` writes a copy that is fast to read at random. Of a file in an object store,
    row groups are fetched one by one; when one is needed again, the file is copied to the local
    disk, once.

    Attributes:
        files: name of a file inside image names -> its path.
        root: folder of image files.
        link_roots: folders that symbolic links in it may lead to.
    """

    files: dict[str, Path]
    root: str
    link_roots: tuple[str, ...] = ()

    @property
    @override
    def remote(self) -> bool:
        return any(map(is_remote, self.files.values())) or "://" in self.root

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
            if isinstance(image, bytes):
                return image
            fields = image if isinstance(image, dict) else {}
            if fields.get("bytes") is not None:
                return fields["bytes"]
            if fields.get("path") and self.root:  # other rows of its group embed theirs
                return self._folder.read(fields["path"])
        raise ExampleError(f"{name}: there is no image in this cell", "missing image")

    @override
    def size(self, name: str) -> Size:
        return self._folder.size(name) if self._place(name) is None else super().size(name)

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
_AHEAD = 8  # row groups without their images, of a file in an object store


# Cached here, not in `ParquetImages`, which is sent to other processes.
@functools.lru_cache(maxsize=64)
def _parquet(path: Path) -> pq.ParquetFile:
    try:
        return _opened(path)
    except _DAMAGE as error:
        if read_bytes(path, len(LFS)) == LFS:
            raise pointer_error(path) from error
        raise DataError(f"{path}: not readable as parquet ({error}); fetch it again") from error


def _opened(path: Path, metadata: pq.FileMetaData | None = None) -> pq.ParquetFile:
    """Opens a file. Of one in an object store, only the byte ranges that are needed are read."""
    if not is_remote(path):
        return pq.ParquetFile(path)
    file = cast(io.BufferedReader, path.open("rb")).detach()  # pyarrow knows what it needs
    return pq.ParquetFile(pa.PythonFile(file, "r"), metadata=metadata, pre_buffer=True)


@functools.lru_cache(maxsize=2)
def _row_group(path: Path, group: int, column: str) -> pa.ChunkedArray:
    source = _COPIES.get(path, path)
    if is_remote(source) and (path, group, column) in _FETCHED:
        source = _COPIES[path] = local_copy(path)
    _FETCHED.add((path, group, column))
    return _parquet(source).read_row_group(group, columns=[column]).column(column)


_FETCHED = set[tuple[Path, int, str]]()  # row groups that have been read
_COPIES = dict[Path, Path]()  # local copies of files in object stores


class _Column(NamedTuple):
    """A column of a parquet file.

    Attributes:
        name: its name.
        kind: its type.
        leaves: paths of its leaves: a list or struct is stored as one column for each.
        texts: those of them that hold what JSON can hold.
        image: path of the leaf with encoded images, or empty.
    """

    name: str
    kind: pa.DataType
    leaves: tuple[str, ...]
    texts: tuple[str, ...]
    image: str


def _columns(parquet: pq.ParquetFile) -> list[_Column]:
    paths = iter([parquet.schema.column(i).path for i in range(len(parquet.schema.names))])
    columns = []
    for field in parquet.schema_arrow:
        is_text = _are_texts(field.type)
        leaves = tuple(itertools.islice(paths, len(is_text)))
        texts = tuple(itertools.compress(leaves, is_text))
        image = next((x for x in leaves if len(leaves) == 1 or x.endswith(".bytes")), "")
        image *= _is_image(field.type)
        columns.append(_Column(field.name, field.type, leaves, texts, image))
    return columns


def _are_texts(kind: pa.DataType) -> list[bool]:
    """Returns for each leaf of a type, in order, whether JSON can hold its values."""
    if isinstance(kind, pa.BaseExtensionType):
        storage = kind.storage_type
        return [pa.types.is_string(storage) and each for each in _are_texts(storage)]
    if pa.types.is_map(kind):  # in Python a list of tuples
        return [False for part in (kind.key_type, kind.item_type) for _ in _are_texts(part)]
    if pa.types.is_struct(kind):
        return [each for field in kind for each in _are_texts(field.type)]
    if _is_list(kind) or pa.types.is_dictionary(kind):
        return _are_texts(kind.value_type)
    return [any(is_kind(kind) for is_kind in _TEXTS)]


_TEXTS = (
    pa.types.is_null, pa.types.is_boolean, pa.types.is_integer, pa.types.is_floating,
    pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view,
)  # fmt: skip


def _is_list(kind: pa.DataType) -> bool:
    return any(is_kind(kind) for is_kind in _LISTS)


_LISTS = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)


def _is_image(kind: pa.DataType) -> bool:
    """Returns whether a type is binary, or a struct with binary `bytes`, or a list of these."""
    kind = kind.value_type if _is_list(kind) else kind
    if pa.types.is_struct(kind):
        index = kind.get_field_index("bytes")
        kind = kind.field(index).type if index >= 0 else pa.string()
        return _is_binary(kind) or pa.types.is_null(kind)
    return _is_binary(kind)


def _is_binary(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def parquet_records(files: dict[str, Path]) -> Iterator[Record]:
    """Returns the rows of files; fields with images and of other types are `Unread`.

    Args:
        files: name of a file inside image names -> its path.

    Raises:
        DataError: a file is not parquet, before the first row is read; or is damaged.
    """
    _parquet.cache_clear()  # a file may have changed since
    _row_group.cache_clear()
    _small.cache_clear()
    _FETCHED.clear()
    _COPIES.clear()
    for path in files.values():
        _parquet(path)  # raises for an unreadable file before the first record is used
    return (record for name, path in files.items() for record in _rows(name, path))


def _rows(name: str, path: Path) -> Iterator[Record]:
    columns = _columns(_parquet(path))
    texts = [leaf for column in columns if not column.image for leaf in column.texts]
    row = 0
    for group, rows in enumerate(_row_groups(path, texts)):
        for index, cells in enumerate(_records(rows)):
            record: dict[str, Any] = {}
            for column in columns:
                kind = f"a column of {column.kind}"
                if column.image:
                    cell = _Cell(path, group, column, index, f"{name}/{column.name}/{row}")
                    record[column.name] = Unread(kind, cell)
                elif column.texts:
                    record[column.name] = cells[column.name]
                else:
                    record[column.name] = Unread(kind)
            yield f"{name}, row {row}", record
            row += 1


def _row_groups(path: Path, leaves: Sequence[str]) -> Iterator[pa.Table]:
    """Returns all row groups of a file in order; of one in an object store, some are read ahead."""
    groups = range(_parquet(path).num_row_groups)
    if not is_remote(path):
        return (_read(path, group, leaves) for group in groups)
    return read_ahead(lambda group: _read(path, group, leaves), groups, _AHEAD, _AHEAD)


def _records(rows: pa.Table) -> Iterator[dict[str, Any]]:
    """Yields the rows of a group; text that is not UTF-8 is `Unread`."""
    try:
        yield from rows.to_pylist()
    except UnicodeDecodeError:
        for i in range(rows.num_rows):
            cells = (_cell(column[i]) for column in rows.columns)
            yield dict(zip(rows.column_names, cells, strict=True))


def _read(path: Path, group: int, leaves: Sequence[str]) -> pa.Table:
    parquet = _parquet(path)
    try:
        if is_remote(path):  # one file for each thread
            parquet = _opened(path, parquet.metadata)
        return parquet.read_row_group(group, columns=list(leaves))
    except _DAMAGE as error:
        message = f"{path}: row group {group} is damaged ({error}); fetch it again"
        raise DataError(message) from error


def _cell(value: pa.Scalar) -> Any:
    try:
        return value.as_py()
    except UnicodeDecodeError as error:
        return Unread(f"not UTF-8 ({error})", reason="broken line")


class _Cell(NamedTuple):
    """Finds the images of a cell when they are needed.

    Attributes:
        path: the file.
        group: number of the row group.
        column: the column.
        index: number of the row in the group.
        prefix: beginning of the names of embedded images.
    """

    path: Path
    group: int
    column: _Column
    index: int
    prefix: str

    def __call__(self) -> list[str | None] | None:
        """Returns the names of the images, or None if the cell is empty."""
        embedded = _embedded(self.path, self.group, self.column)
        if embedded == "all" and not _is_list(self.column.kind):
            return [f"{self.prefix}/0"]
        cell = _small(self.path, self.group, self.column)[self.index]
        if not cell.is_valid:
            return None
        images = [cell[i] for i in range(len(cell))] if _is_list(self.column.kind) else [cell]
        if embedded != "none":
            return [f"{self.prefix}/{i}" for i in range(len(images))]
        return [(image.as_py() or {}).get("path") for image in images]


def _embedded(path: Path, group: int, column: _Column) -> Literal["all", "some", "none"]:
    """Returns how many images of a row group are embedded; the others name files."""
    metadata = _parquet(path).metadata.row_group(group)
    for i in range(metadata.num_columns):
        leaf = metadata.column(i)
        counts = leaf.statistics if leaf.path_in_schema == column.image else None
        if counts is not None and counts.has_null_count:
            all_null = counts.null_count >= leaf.num_values
            return "none" if all_null else "some" if counts.null_count else "all"
    return "some"


@functools.lru_cache(maxsize=4)
def _small(path: Path, group: int, column: _Column) -> pa.ChunkedArray:
    """Returns a column of a row group without the bytes of images, if anything else is in it."""
    return _read(path, group, column.texts or column.leaves).column(column.name)
