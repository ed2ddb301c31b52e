"""Fields of a record that may be absent, or not read yet.

What lives here: values that are read only if an example needs them, fields with two names, and the
errors for a field that cannot be used and for a Git LFS pointer in place of a file. What does not:
what an example needs (`collect.py`), and how files are read (`tables.py`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from seva_jax.types import DataError, ExampleError

Record = tuple[str, Any]
"""Where a record is ("line 3"), and its value: usually a dict."""

LFS = b"version https://git-lfs.github.com/spec"  # how a pointer of Git LFS begins


def pointer_error(path: str | Path) -> DataError:
    """Returns the error for a pointer of Git LFS where a file should be."""
    return DataError(f"{path}: a pointer of Git LFS in place of the file; run `git lfs pull` there")


@dataclasses.dataclass(frozen=True)
class Unread:
    """The value of a field that is not read before it is used, so that an unused one does no harm.

    Attributes:
        kind: what the field holds, for errors, such as "a column of timestamp[us]".
        names: returns the names of the images in it, or None if it is empty; None if it has no
            images.
        reason: why an example that needs it is left out; empty for the reason of the field.
    """

    kind: str
    names: Callable[[], list[Any] | None] | None = None
    reason: str = ""


def either(record: dict[str, Any], field: str, other: str) -> Any:
    """Returns the value of a field that has two names; null counts as absent.

    Names take the place of images that have not been read.
    """
    for name in (field, other):
        value = record.get(name)
        if isinstance(value, Unread) and value.names:
            value = value.names()
        if value is not None:
            return value
    return None


def unusable(
    record: dict[str, Any], fields: Sequence[str], expected: str, reason: str
) -> ExampleError:
    """Returns the error for a field that is missing, empty or of the wrong kind.

    Args:
        record: the record.
        fields: the names that the field may have.
        expected: what it should hold: "must be a text".
        reason: why the example is left out.
    """
    names = fields[0] + f" (or {', '.join(fields[1:])})" * (len(fields) > 1)
    there = [name for name in fields if name in record]
    values = [record[name] for name in there if not _is_empty(record[name])]
    if not there:
        has = ", ".join(str(key)[:40] for key in list(record)[:12]) or "no fields"
        return ExampleError(f"there is no field {names}; the record has {has}", reason)
    if not values:
        return ExampleError(f"{names} {expected}, and it is empty", reason)
    if isinstance(values[0], Unread):
        own = values[0].reason or reason
        return ExampleError(f"{names} {expected}, and it is {values[0].kind}", own)
    return ExampleError(f"{names} {expected}, not {type(values[0]).__name__}", reason)


def _is_empty(value: Any) -> bool:
    if isinstance(value, Unread):
        return value.names is not None and value.names() is None
    return value is None or (isinstance(value, str) and not value)


def given(record: dict[str, Any], field: str, reason: str, other: str = "") -> Any:
    """Returns the value of a field that a record must have, perhaps under another name.

    Raises:
        ExampleError: it is missing or empty; the message names it and the fields that are there.
    """
    value = either(record, field, other or field)
    if value is None:
        names = tuple(dict.fromkeys((field, other or field)))
        raise unusable(record, names, "must have a value", reason)
    return value
