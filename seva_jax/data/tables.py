"""Files of records, recognised by their content: JSON lists, JSON lines, Hugging Face's parquet.

What lives here: which of them a file is, and JSON to records. What does not: reading parquet
(`parquet.py`), the meaning of the fields (`files.py`, `preferences.py`, `messages.py`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from seva_jax.data.collect import FolderImages, Images
from seva_jax.data.fields import LFS, Record, pointer_error
from seva_jax.data.splits import of_split, shard_split
from seva_jax.images.load import files_below
from seva_jax.runtime.files import each_line, read_bytes
from seva_jax.runtime.garbage import no_search_for_cycles
from seva_jax.runtime.stores import as_path
from seva_jax.types import DataError, ExampleError

_MAX_LINE = 2**24  # bytes of a JSON line; the texts of an example are far shorter

_COMPRESSED = (b"\x1f\x8b", b"PK\x03\x04", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")  # gzip, ...


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
    folder = as_path(path)
    if path and folder.is_dir():
        files = {f.relative_to(folder).as_posix(): f for f in files_below(folder, lambda _: True)}
        names = sorted(name for name in files if name.endswith(".parquet"))
        if not names:
            arrow = any(name.endswith(".arrow") for name in files)
            hint = "write its .arrow files with Dataset.to_parquet" if arrow else "give a file"
            raise DataError(f"{path}: no .parquet files below this folder; {hint}")
        names = of_split(path, names, split, shard_split)
        return _parquet_table({name: files[name] for name in names}, image_root, link_roots)
    of_split(path, [folder.name], split, shard_split)
    start = start_of(path)
    if start.startswith(b"PAR1"):
        return _parquet_table({folder.name: folder}, image_root, link_roots)
    records = json_list(path) if start.startswith(b"[") else json_lines(path)
    return Table(records, FolderImages(image_root, link_roots))


def _parquet_table(files: dict[str, Path], image_root: str, link_roots: tuple[str, ...]) -> Table:
    from seva_jax.data.parquet import ParquetImages, parquet_records

    return Table(parquet_records(files), ParquetImages(files, image_root, link_roots))


def start_of(path: str) -> bytes:
    """Returns the first bytes of a file that are not white space, which tell what it holds.

    Raises:
        DataError: it cannot be read, or is compressed or a pointer of Git LFS.
    """
    start = read_bytes(path, 4096).lstrip(b"\xef\xbb\xbf \t\r\n")
    if start.startswith(LFS):
        raise pointer_error(path)
    if start.startswith(_COMPRESSED):
        raise DataError(f"{path}: is compressed; unpack it first (save a spreadsheet as CSV UTF-8)")
    return start


def json_list(path: str) -> Iterator[Record]:
    """Returns the records of a file that holds one JSON list; each is freed after its use.

    Raises:
        DataError: the file cannot be read, or does not hold a JSON list.
    """
    try:
        with no_search_for_cycles():
            records = json.loads(read_bytes(path).decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 ({error}); save it as UTF-8") from error
    except (ValueError, RecursionError) as error:
        message = f"{path}: not JSON ({error}); it may be cut short: fetch it again"
        raise DataError(message) from error
    if not isinstance(records, list):
        raise DataError(f"{path}: expected a JSON list of records, found {type(records).__name__}")
    return ((f"record {n}", record) for n, record in enumerate(_emptied(records), 1))


def _emptied(values: list[Any]) -> Iterator[Any]:
    """Yields the values of a list in order, and takes each out of it."""
    values.reverse()
    while values:
        yield values.pop()


def json_lines(path: str) -> Iterator[Record]:
    """Returns the records of a file with one JSON value on each line; empty lines are skipped.

    Raises:
        DataError: the file cannot be read.
    """
    # Lines of bytes, not of text: str.splitlines would also cut at U+2028 inside a question.
    lines = enumerate(each_line(path), 1)
    return ((f"line {n}", _line(line)) for n, line in lines if line.strip())


def _line(line: bytes) -> Any:
    if len(line) > _MAX_LINE:
        return ExampleError(
            f"{len(line):,} bytes, above {_MAX_LINE:,}; write one object a line", "too long"
        )
    try:
        return json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        return ExampleError(
            f"not JSON ({error}); write one object a line, or a JSON list", "broken line"
        )
