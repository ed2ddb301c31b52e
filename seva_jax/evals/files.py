"""Result files: the records as JSON lines, the metrics as one JSON summary.

What lives here: reading and writing both, and reading users' JSON with errors that name the place.
What does not: how files are written safely (`seva_jax/runtime/files.py`), formats of one benchmark
(`pope.py`, `suites/`). Read next: `base.py` for what is stored.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from seva_jax.evals.base import Better, EvalResult, Metric, Ratio, Record
from seva_jax.runtime.files import read_bytes, write_text
from seva_jax.runtime.stores import as_path
from seva_jax.types import DataError

PathLike = str | Path


def write_records(path: PathLike, records: Sequence[Record]) -> None:
    """Writes records as JSON lines, one object per line.

    Raises:
        ValueError: a record has a number that is not finite, which JSON does not know.
    """
    lines = (json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n" for record in records)
    write_text(as_path(path), "".join(lines))


def read_records(path: PathLike) -> list[Record]:
    """Reads the records that `write_records` wrote.

    Raises:
        DataError: the file cannot be read, or a line is not a JSON object.
    """
    return [record for _, record in read_json_lines(path)]


def write_summary(
    path: PathLike, result: EvalResult, about: Mapping[str, object] | None = None
) -> None:
    """Writes a result without its records as one JSON object; undefined numbers become null.

    Args:
        path: the file.
        result: the result.
        about: where the result comes from, JSON-ready; stored under "about".
    """
    metrics = {
        name: {
            key: None if isinstance(number, float) and math.isnan(number) else number
            for key, number in dataclasses.asdict(metric).items()
        }
        | dataclasses.asdict(result.definitions[name])
        for name, metric in result.metrics.items()
    }
    head = {"name": result.name, "num_examples": len(result.records), "about": dict(about or {})}
    text = json.dumps(head | {"metrics": metrics}, ensure_ascii=False, allow_nan=False, indent=2)
    write_text(as_path(path), text + "\n")


def read_result(summary_path: PathLike, records_path: PathLike) -> EvalResult:
    """Reads a result from the files that `write_summary` and `write_records` wrote.

    Raises:
        DataError: a file cannot be read, or the two do not belong together.
    """
    records = read_records(records_path)
    summary_bytes = read_bytes(summary_path)
    try:
        summary = json.loads(summary_bytes)
        name, num_examples = str(summary["name"]), int(summary["num_examples"])
        metrics, definitions = {}, {}
        for key, entry in summary["metrics"].items():
            numbers = (entry[field] for field in ("value", "low", "high"))
            floats = (math.nan if number is None else float(number) for number in numbers)
            metrics[key] = Metric(*floats, n=int(entry["n"]))
            if entry["better"] not in get_args(Better):
                raise ValueError(f"better is {entry['better']!r}")
            lists = (tuple(entry[f]) for f in ("numerator", "denominator", "categories"))
            within = str(entry.get("within", "category"))
            definitions[key] = Ratio(entry["better"], *lists, within=within)
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
        raise DataError(
            f"{summary_path}: not an evaluation summary ({error!r}); evaluate again to rewrite it"
        ) from error
    if len(records) != num_examples:
        raise DataError(
            f"{records_path}: has {len(records)} records, but {summary_path} was computed from "
            f"{num_examples}; evaluate again to rewrite both"
        )
    return EvalResult(name, metrics, records, definitions)


def read_objects(path: PathLike) -> Iterator[tuple[str, Record]]:
    """Yields (place, object) of a benchmark's file: one JSON array, or one object per line.

    Raises:
        DataError: the file cannot be read, is not JSON, or holds something other than objects.
    """
    if not read_bytes(path, 4096).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"["):
        yield from ((f"{path}, line {number}", line) for number, line in read_json_lines(path))
        return
    for number, entry in enumerate(read_json(path, list)):
        if not isinstance(entry, dict):
            kind = type(entry).__name__
            raise DataError(f"{path}, entry {number}: expected a JSON object, found {kind}")
        yield f"{path}, entry {number}", entry


def read_text(path: PathLike) -> str:
    """Reads a UTF-8 file, with or without a byte order mark.

    Raises:
        DataError: the file cannot be read or is not UTF-8.
    """
    try:
        return read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 ({error}); fetch it again") from error


def read_json(path: PathLike, kind: type[dict] | type[list]) -> Any:
    """Reads a JSON file that holds an object or a list.

    Raises:
        DataError: the file cannot be read, is not JSON or holds something else.
    """
    text = read_text(path)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        message = f"{path}: not JSON ({error}); it may be truncated: fetch it again"
        raise DataError(message) from error
    if not isinstance(value, kind):
        wanted = "an object" if kind is dict else "a list"
        raise DataError(f"{path}: expected {wanted}, found {type(value).__name__}; check the file")
    return value


def read_json_lines(path: PathLike) -> Iterator[tuple[int, Record]]:
    """Yields (line number from 1, object) of a JSON lines file; blank lines are skipped.

    The file is a user's, so unlike `seva_jax.runtime.files.read_lines` this never repairs it.

    Raises:
        DataError: the file cannot be read, or a line is not a JSON object.
    """
    # Split bytes, not text: str.splitlines would also cut at U+2028 inside an answer.
    for number, line in enumerate(read_bytes(path).split(b"\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            record = json.loads(line.decode("utf-8-sig"))
        except (ValueError, RecursionError) as error:
            message = f"{where}: not valid JSON ({error}); expected one object per line"
            raise DataError(message) from error
        if not isinstance(record, dict):
            kind = type(record).__name__
            raise DataError(
                f"{where}: expected a JSON object, found {kind}; write one object per line"
            )
        yield number, record
