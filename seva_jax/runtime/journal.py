"""A file of records that a killed run continues where it stopped.

What lives here: `Journal`, which serves rollouts, the reference pass, the calls of pair builders,
evaluations and the transcripts of judges. What does not: writing single files (`files.py`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax

from seva_jax.runtime import files
from seva_jax.runtime.processes import on_first_process, say
from seva_jax.runtime.stores import make_folder
from seva_jax.types import DataError

Record = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Journal:
    """JSON lines, appended as results arrive. Process 0 alone reads and writes the file.

    Attributes:
        path: the file. Its folder is created when the first line is written.
        header: everything the records depend on, kept as the first line; None writes no header.
    """

    path: Path
    header: Mapping[str, Any] | None = None

    def resume(self, refusal: Callable[[Record], str] | None = None) -> list[Record]:
        """Returns the records that an earlier attempt left, the same ones on every process.

        Records under another header are discarded with a notice, unless there is a `refusal`.

        Args:
            refusal: turns the header in the file into the reason not to discard its records.

        Raises:
            DataError: the refusal, or a damaged file; the same on every process.
        """
        notice, records = on_first_process(lambda: self._open(refusal))
        if notice:
            say(notice)
        return records

    def _open(self, refusal: Callable[[Record], str] | None) -> tuple[str, list[Record]]:
        """Returns a notice and the records; writes the header if the file has another or none."""
        lines = files.read_lines(self.path)
        if self.header is None:
            return "", lines
        if lines and lines[0] == self.header:
            return "", lines[1:]
        if lines and refusal is not None:
            raise DataError(refusal(lines[0]))
        self.begin()
        return f"{self.path} was made from other inputs; it is started again" * bool(lines), []

    def begin(self, records: Iterable[Record] = ()) -> None:
        """Writes the header, and records behind it, in place of what the file held.

        On process 0 only.
        """
        header = [] if self.header is None else [dict(self.header)]
        make_folder(self.path.parent)
        files.replace_lines(self.path, [*header, *records])

    def read(self) -> list[Record]:
        """Returns the records in the file, on this process alone.

        Raises:
            DataError: the file is damaged.
        """
        return files.read_lines(self.path)[self.header is not None :]

    def append(self, records: Iterable[Record]) -> None:
        """Appends records and forces them to disk; does nothing on processes other than 0."""
        if jax.process_index() == 0:
            make_folder(self.path.parent)
            files.append_lines(self.path, records)
