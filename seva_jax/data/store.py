"""Files of a run: what comes bit by bit as JSON lines, what is finished as ArrayRecord.

Lines are appended batch by batch, so a killed run keeps every finished one. Rollouts, comparisons
and reference log-probs are written once they are all there, as JSON in ArrayRecord (which checks
its own hashes); rollouts and comparisons have an index beside them that a person can read.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python.array_record_data_source import ArrayRecordDataSource
from array_record.python.array_record_module import ArrayRecordWriter

from seva_jax.types import Comparison, DataError, Prompt, Rollout, View


def _publish(aside: Path, path: Path) -> None:
    """Puts a finished file in place of another; not even a power loss leaves half of it there."""
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


def write_json(path: Path, value: Any) -> None:
    """Writes JSON aside, then renames: a reader sees the old file or the new one."""
    aside = path.with_name(path.name + ".tmp")
    aside.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    _publish(aside, path)


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
    """Writes JSON lines in place of what a file held, aside and then renamed."""
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
    """Reads JSON lines; a broken last line is what a kill leaves, and is cut off the file.

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


def rollout_record(rollout: Rollout) -> dict[str, Any]:
    """A rollout as JSON; the inverse of `rollout_from`."""
    return {
        **plain(rollout.prompt),
        "clean": rollout.clean,
        "corrupted": list(rollout.corrupted),
    }


def plain(value: Prompt | Comparison) -> dict[str, Any]:
    """A prompt or comparison as JSON, without `Prompt.start` where it is empty."""
    return dataclasses.asdict(value, dict_factory=_without_empty_start)


def _without_empty_start(items: list[tuple[str, Any]]) -> dict[str, Any]:
    return {name: value for name, value in items if (name, value) != ("start", "")}


def prompt_from(record: dict[str, Any]) -> Prompt:
    """A prompt from its JSON."""
    return Prompt(
        record["id"],
        record["question"],
        tuple(record["images"]),
        record["meta"],
        record.get("start", ""),
    )


def rollout_from(record: dict[str, Any]) -> Rollout:
    """A rollout from its JSON."""
    return Rollout(prompt_from(record), record["clean"], tuple(record["corrupted"]))


def write_records(path: Path, records: Iterable[dict[str, Any]]) -> int:
    """Writes JSON records to an ArrayRecord file, aside and then renamed; returns their number."""
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


def write_comparisons(path: Path, comparisons: Sequence[Comparison]) -> None:
    """Writes comparisons to an ArrayRecord file."""
    write_records(path, map(plain, comparisons))


def comparison_from(record: dict[str, Any]) -> Comparison:
    """A comparison from its JSON."""
    return Comparison(
        prompt_from(record["prompt"]),
        tuple(record["answers"]),
        record["weight"],
        tuple(record["corruptions"]),
        # Files of earlier versions lack these.
        tuple(record.get("scores", ())),
        tuple(View(prompt_from(v["prompt"]), tuple(v["answers"])) for v in record.get("more", ())),
        tuple(tuple((a, b) for a, b in marked) for marked in record.get("spans", ())),
    )


def read_comparisons(path: Path) -> list[Comparison]:
    """Reads what `write_comparisons` wrote."""
    return [comparison_from(record) for record in read_records(path)]


def write_reference(
    path: Path, ids: Sequence[str], logps: Sequence[Sequence[np.ndarray]], fingerprint: str
) -> None:
    """Writes per-token reference log-probs of every branch, with what they depend on.

    float32 survives JSON exactly: it is written as the shortest decimal of its double.
    """
    header = [{"fingerprint": fingerprint, "num": len(ids)}]
    rows = (
        {"id": id_, "logps": [[float(x) for x in branch] for branch in branches]}
        for id_, branches in zip(ids, logps, strict=True)
    )
    write_records(path, [*header, *rows])


def read_reference(
    path: Path, ids: Sequence[str], fingerprint: str
) -> list[tuple[np.ndarray, ...]]:
    """Reads reference log-probs.

    Raises:
        DataError: they were computed for other pairs, weights, templates or images.
    """
    header, *rows = read_records(path)
    if header["fingerprint"] != fingerprint or [r["id"] for r in rows] != list(ids):
        raise DataError(
            f"{path} belongs to other pairs, weights, templates or images "
            f"({header['fingerprint']} instead of {fingerprint}); delete it and run again"
        )
    return [tuple(np.array(b, np.float32) for b in r["logps"]) for r in rows]
