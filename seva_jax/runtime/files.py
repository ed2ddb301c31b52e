"""Reads and writes the files of a run: JSON, JSON lines, and JSON in ArrayRecord.

Whole files are written aside, synchronised and renamed, so a reader sees the old file or the new
one, also after a power loss. JSON lines are appended and synchronised, so a killed run keeps every
complete line. ArrayRecord verifies its own hashes. Read next: `journal.py`.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from array_record.python.array_record_data_source import ArrayRecordDataSource
from array_record.python.array_record_module import ArrayRecordWriter

from seva_jax.types import DataError


def _publish(aside: Path, path: Path) -> None:
    """Puts a finished file in place of another, so that not even a power loss leaves half of it."""
    _synchronise(aside)
    aside.replace(path)
    with contextlib.suppress(OSError):  # not every file system lets folders be synchronised
        _synchronise(path.parent)


def _synchronise(path: Path) -> None:
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def write_text(path: Path, text: str) -> None:
    """Writes text in place of what the file held."""
    aside = path.with_name(path.name + ".tmp")
    try:
        aside.write_text(text, encoding="utf-8", newline="")
        _publish(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Writes JSON in place of what the file held."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Reads JSON.

    Raises:
        DataError: the file is missing or damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error})") from None


def write_lines(path: Path, records: Iterable[dict[str, Any]]) -> None:
    """Writes JSON lines in place of what the file held."""
    aside = path.with_name(path.name + ".tmp")
    aside.unlink(missing_ok=True)
    append_lines(aside, records)
    _publish(aside, path)


def append_lines(path: Path, records: Iterable[dict[str, Any]]) -> None:
    """Appends JSON lines and forces them to disk."""
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(r, ensure_ascii=False) + "\n" for r in records)
        file.flush()
        os.fsync(file.fileno())


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Reads JSON lines; a broken last line, which a kill leaves, is cut off the file.

    Raises:
        DataError: a line before the last is not JSON; names file and line.
    """
    if not path.exists():
        return []
    records, good = [], 0
    lines = path.read_bytes().splitlines(keepends=True)
    for number, line in enumerate(lines, 1):
        try:
            if not line.endswith(b"\n"):
                raise ValueError("unfinished line")
            records.append(json.loads(line))
        except ValueError as error:
            if number == len(lines):
                os.truncate(path, good)
                return records
            raise DataError(f"{path}, line {number}: not JSON ({error}); delete the file") from None
        good += len(line)
    return records


def write_records(path: Path, records: Iterable[dict[str, Any]]) -> int:
    """Writes JSON records to an ArrayRecord file and returns their number."""
    aside = path.with_name(path.name + ".tmp")
    writer, num = ArrayRecordWriter(str(aside), "group_size:1"), 0
    for record in records:
        writer.write(json.dumps(record, ensure_ascii=False).encode())
        num += 1
    writer.close()
    _publish(aside, path)
    return num


def read_records(path: Path) -> list[dict[str, Any]]:
    """Reads all records of an ArrayRecord file.

    Raises:
        DataError: the file is missing or damaged.
    """
    if not path.exists():
        raise DataError(f"{path} is missing; delete the work directory and run again")
    try:
        with ArrayRecordDataSource([str(path)]) as source:
            return [json.loads(r) for r in source.__getitems__(range(len(source)))]
    except (RuntimeError, ValueError) as error:
        raise DataError(f"{path} is damaged ({error}); delete it and run again") from None


def read_bytes(path: str | os.PathLike[str], size: int = -1) -> bytes:
    """Returns the bytes of a user's file, all or the first `size`.

    Raises:
        DataError: there is no such file.
    """
    if not path:
        raise DataError("the path of the data is not set; give the file")
    try:
        with Path(path).open("rb") as file:
            return file.read(size)
    except OSError as error:
        reason = error.strerror or error
        raise DataError(f"{path}: cannot be read ({reason}); check the path") from error
