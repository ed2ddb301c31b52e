"""Reads and writes the files of a run: JSON, JSON lines, and JSON in ArrayRecord.

How each promise is kept on a disk, and in an object store (`stores.py`):

- A whole file is old or new, never half: written aside, synchronised and renamed; in a store, one
  object written in one request.
- Appended lines survive a kill: appended and synchronised, and the unfinished line of a kill is cut
  off by the next reader; in a store, which cannot append, the file is a folder of numbered parts,
  "000007.jsonl", each an object that is never written twice. A part "000007.all.jsonl" takes the
  place of all parts before it, so replacing the lines is one request, too.
- What is listed is there: stores that are used here show an object in listings as soon as it is
  written. Lines that were replaced since they were listed are listed again.
- A result is complete: the file that says so (`stages.json`, `digests.json`, Orbax's
  `commit_success.txt`) is written last.
- Damage is noticed: the digests of checkpoints (`training/digests.py`) are SHA-256 on a disk; in a
  store they are the checksums that it computed itself.
- There is one writer: a lock (`lock.py`) is a file and `flock`; in a store, an object that is
  written only if its generation is still the one that was read.
- A request is repeated after a failure that may pass, also when only its answer was lost; what
  must not be done twice is written under a name that may not exist yet (`StorePath.create`).

ArrayRecord verifies its own hashes. Read next: `journal.py`.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

from array_record.python.array_record_data_source import ArrayRecordDataSource
from array_record.python.array_record_module import ArrayRecordWriter

from seva_jax.runtime.copies import local_copy
from seva_jax.runtime.stores import StorePath, as_path, is_remote
from seva_jax.types import DataError

_ALL = ".all.jsonl"
_PART = re.compile(r"(\d{6,})(\.all)?\.jsonl")


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
    if is_remote(path):
        path.write_bytes(text.encode())
        return
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
    write_text(path, _text(records))


def replace_lines(path: Path, records: Iterable[dict[str, Any]]) -> None:
    """Writes JSON lines in place of those that `append_lines` wrote; more can be appended."""
    if not _in_parts(path):
        write_lines(path, records)
        return
    before = _parts(path)
    _add_part(path, _text(records), _ALL)
    for name in before:
        (path / name).unlink(missing_ok=True)
    if is_remote(path) and path.is_file():  # a whole file that was copied into the store
        path.unlink()


def append_lines(path: Path, records: Iterable[dict[str, Any]]) -> None:
    """Appends JSON lines and forces them to disk."""
    text = _text(records)
    if _in_parts(path):
        if text:
            _add_part(path, text, ".jsonl")
        return
    with path.open("a", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Reads JSON lines; a broken last line, which a kill leaves, is cut off the file.

    Raises:
        DataError: a line before the last is not JSON; names file and line.
    """
    if _in_parts(path):
        return _read_parts(path)
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
            raise _not_json(path, number, error) from None
        good += len(line)
    return records


def _text(records: Iterable[dict[str, Any]]) -> str:
    return "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records)


def _not_json(path: Path, number: int, error: ValueError) -> DataError:
    return DataError(f"{path}, line {number}: not JSON ({error}); delete the file")


def _in_parts(path: Path) -> bool:
    """Returns whether lines are kept in parts: in a store, or copied from one to a disk."""
    return is_remote(path) or path.is_dir()


def _parts(path: Path) -> list[str]:
    """Returns the names of all parts in order."""
    remote = is_remote(path)
    names = cast(StorePath, path).below() if remote else [p.name for p in path.iterdir()]
    return sorted((name for name in names if _PART.fullmatch(name)), key=_number)


def _number(part: str) -> int:
    return int(part.partition(".")[0])


def _add_part(path: Path, text: str, ending: str) -> None:
    """Writes one more part. Only one process does, but its last attempt may have succeeded."""
    data = text.encode()
    while True:
        number = max(map(_number, _parts(path)), default=-1) + 1
        part = path / f"{number:06}{ending}"
        if not is_remote(part):
            write_text(part, text)
            return
        if cast(StorePath, part).create(data):
            return


def _read_parts(path: Path) -> list[dict[str, Any]]:
    for _ in range(4):
        parts = _parts(path)
        try:
            return _records_of_parts(path, parts)
        except FileNotFoundError:  # another process has just replaced the lines
            continue
    return _records_of_parts(path, _parts(path))


def _records_of_parts(path: Path, parts: list[str]) -> list[dict[str, Any]]:
    whole = [i for i, name in enumerate(parts) if name.endswith(_ALL)]
    parts = parts[whole[-1] :] if whole else parts
    if is_remote(path):
        contents = cast(StorePath, path).read_below(parts)
        if not whole and path.is_file():  # a whole file that was copied into the store
            content = path.read_bytes()
            contents.insert(0, content[: content.rfind(b"\n") + 1])  # a kill left the rest
            parts.insert(0, "")
    else:
        contents = [(path / name).read_bytes() for name in parts]
    records = []
    for name, content in zip(parts, contents, strict=True):
        for number, line in enumerate(content.splitlines(), 1):
            try:
                records.append(json.loads(line))
            except ValueError as error:
                raise _not_json(path / name, number, error) from None
    return records


def write_records(path: Path, records: Iterable[dict[str, Any]]) -> int:
    """Writes JSON records to an ArrayRecord file and returns their number."""
    if is_remote(path):
        with tempfile.TemporaryDirectory() as folder:
            local = Path(folder) / path.name
            num = write_records(local, records)
            cast(StorePath, path).upload(local)
            return num
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
        raise DataError(
            f"{path} is missing; put back a copy, or run seva_jax.train again, which makes it "
            "again or says what it needs"
        )
    try:
        with ArrayRecordDataSource([str(local_copy(path))]) as source:
            return [json.loads(r) for r in source.__getitems__(range(len(source)))]
    except (RuntimeError, ValueError) as error:
        raise DataError(f"{path} is damaged ({error}); delete it and run again") from None


class Records(Sequence[dict[str, Any]]):
    """The records of an ArrayRecord file; each is read when it is asked for.

    Raises:
        DataError: the file is missing or damaged.
    """

    def __init__(self, path: Path) -> None:
        if not path.exists():
            raise DataError(f"{path} is missing")
        self._path = path
        with self._damage():
            self._source = ArrayRecordDataSource([str(local_copy(path))])

    @contextlib.contextmanager
    def _damage(self) -> Iterator[None]:
        try:
            yield
        except (RuntimeError, ValueError) as error:
            raise DataError(f"{self._path} is damaged ({error})") from None

    def __len__(self) -> int:
        """Returns their number."""
        return len(self._source)

    def __getitem__(self, index: Any) -> Any:
        """Returns the record at an index, or a list of those of a slice."""
        places = range(len(self))[index]
        with self._damage():
            if isinstance(places, range):
                return [json.loads(record) for record in self._source.__getitems__(places)]
            return json.loads(self._source[places])


def read_bytes(path: str | os.PathLike[str], size: int = -1) -> bytes:
    """Returns the bytes of a user's file, all or the first `size`.

    Raises:
        DataError: there is no such file.
    """
    if not path:
        raise DataError("the path of the data is not set; give the file")
    try:
        with as_path(path).open("rb") as file:
            return file.read(size)
    except OSError as error:
        reason = error.strerror or error
        raise DataError(f"{path}: cannot be read ({reason}); check the path") from error


def each_line(path: str | os.PathLike[str]) -> Iterator[bytes]:
    """Returns the lines of a user's file, without their ends, one in memory at a time.

    Raises:
        DataError: there is no such file, or it cannot be read to its end.
    """
    read_bytes(path, 1)  # a missing file is an error at once, not at the first line

    def lines() -> Iterator[bytes]:
        try:
            with as_path(path).open("rb") as file:
                yield from (line.removesuffix(b"\n") for line in file)
        except OSError as error:
            reason = error.strerror or error
            raise DataError(f"{path}: cannot be read ({reason}); fetch it again") from error

    return lines()
