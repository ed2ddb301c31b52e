"""Tables whose columns have names of their own: CSV, JSON or parquet, with a column mapping.

What lives here: `Columns`, CSV, and guessing which column is which. What does not: JSON and parquet
(`tables.py`).
"""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

from typing_extensions import override

from seva_jax.data.collect import (
    FolderImages,
    compared,
    images_of,
    meta_of,
    one_each,
    preference_set,
    prompt_set,
    text_of,
)
from seva_jax.data.fields import Record
from seva_jax.data.sources import PromptSet, PromptSource
from seva_jax.data.splits import of_split, shard_split
from seva_jax.data.tables import Table, open_table, start_of
from seva_jax.images.load import FollowsLinks
from seva_jax.ranges import FROM_0
from seva_jax.runtime.files import read_bytes
from seva_jax.runtime.stores import as_path
from seva_jax.types import Comparison, DataError, ExampleError, Prompt

_MOST_CHARACTERS = 131_072  # in a cell: the default of csv, which other readers raise for all
# Names that such columns have, the most telling first; `guess_columns` takes the first that exists.
_USUAL = {
    "image": (
        *("image", "images", "img", "imgs", "image_path", "img_path", "image_file", "image_name"),
        *("file_name", "filename", "image_id", "picture", "photo", "frames"),
    ),
    "question": ("question", "prompt", "query", "instruction", "input", "q", "ask", "text"),
    "chosen": ("chosen", "preferred", "accepted", "better", "good", "winner", "win"),
    "rejected": ("rejected", "reject", "dispreferred", "worse", "bad", "loser", "lose"),
}


@dataclasses.dataclass(frozen=True)
class Columns(FollowsLinks, PromptSource):
    """A table with columns of any names: pairs, or prompts if no columns of answers are given.

    The file is CSV, a JSON list, JSON lines, or parquet: its content says which. CSV is UTF-8 with
    names in its first line, separated by whichever of comma, semicolon and tab occurs most there. A
    prompt's id is the number of its row, from 0. The other columns become its `meta`.

    Attributes:
        path: the file, or a folder of parquet files.
        image_root: folder the image names are relative to; not needed for embedded images.
        image: column with the name of an image, or a list of several.
        question: column with the questions.
        chosen: column with the better answers; empty for prompts without answers.
        rejected: column with the worse answers; empty for prompts without answers.
        limit: use the first N usable rows; 0 means all.
        split: the split to read of a folder that holds several, such as "train".
    """

    path: str = ""
    image_root: str = ""
    image: str = "image"
    question: str = "question"
    chosen: str = ""
    rejected: str = ""
    limit: Annotated[int, FROM_0] = 0
    split: str = dataclasses.field(default="", kw_only=True)

    @property
    @override
    def has_answers(self) -> bool:
        return bool(self.chosen and self.rejected)

    @override
    def open(self) -> PromptSet:
        """Raises `DataError` also if only one column of answers is given."""
        if bool(self.chosen) != bool(self.rejected):
            raise DataError(
                f"{self.path}: Columns.chosen is {self.chosen!r} and rejected is "
                f"{self.rejected!r}; name both columns for pairs, or neither for prompts"
            )
        if not self.image or not self.question:
            raise DataError(f"{self.path}: Columns.image and question must name columns")
        table = open_columns(self.path, self.image_root, self.split, self.link_roots)
        if not self.has_answers:
            prompts = one_each(table.records, self._prompt)
            return prompt_set(self.path, table.images, prompts, self.limit)
        pairs = one_each(table.records, self._pair)
        return preference_set(self.path, table.images, pairs, self.limit)

    def _prompt(self, index: int, row: dict[str, Any]) -> Prompt:
        used = tuple(filter(None, (self.image, self.question, self.chosen, self.rejected)))
        for name in used:
            if name not in row:
                others = ", ".join(map(str, row))
                raise ExampleError(f"there is no {name!r}; the row has {others}", "missing column")
        if row[self.image] == "":
            raise ExampleError(f"{self.image} is empty; name an image", "no image")
        names = images_of(row, self.image, self.image)
        return Prompt(str(index), text_of(row, self.question), names, meta_of(row, used))

    def _pair(self, index: int, row: dict[str, Any]) -> Comparison:
        return compared(self._prompt(index, row), row[self.chosen], row[self.rejected])


def open_columns(
    path: str, image_root: str, split: str = "", link_roots: tuple[str, ...] = ()
) -> Table:
    """Opens CSV, or whatever `open_table` opens, with the same arguments.

    Raises:
        DataError: nothing can be read; the message names the file.
    """
    if is_csv(path):
        of_split(path, [as_path(path).name], split, shard_split)
        return Table(csv_rows(path), FolderImages(image_root, link_roots))
    return open_table(path, image_root, split, link_roots)


def is_csv(path: str) -> bool:
    """Returns whether a file is neither JSON nor parquet, and so may be CSV."""
    if as_path(path).is_dir():
        return False
    return not start_of(path).startswith((b"PAR1", b"[", b"{"))


def csv_rows(path: str) -> Iterator[Record]:
    """Yields the rows of a CSV file; the value of a broken one is an `ExampleError`.

    Raises:
        DataError: the file is not CSV in UTF-8, its first line does not name its columns, or a
            quoted cell has no end.
    """
    data = read_bytes(path)
    first = data.lstrip(b"\r\n").partition(b"\n")[0]
    if b"\0" in first or not _is_utf8(first):
        raise DataError(
            f"{path}: neither JSON, parquet nor CSV in UTF-8; save it as one of them (of a "
            'spreadsheet, as "CSV UTF-8")'
        )
    # Bytes that are not UTF-8 become half surrogate pairs, which no example may have.
    text = data.decode("utf-8-sig", "surrogateescape")
    separator = max(",;\t", key=lambda each: first.count(each.encode()))
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    header: list[str] | None = None
    while True:
        line = reader.line_num + 1
        try:
            row = next(reader)
        except StopIteration:
            break
        except csv.Error as error:
            if header is None:
                raise DataError(f"{path}: its first line is not CSV ({error})") from error
            if "end of data" in str(error):  # whatever followed is inside the cell
                message = f"{path}: a quoted cell in the row of line {line} has no end; close it"
                raise DataError(message) from error
            yield f"line {line}", ExampleError(f"not CSV ({error}); fix its quotes", "broken line")
            continue
        if not row:
            continue
        if header is None:
            header = _header(path, row)
        elif any(len(cell) > _MOST_CHARACTERS for cell in row):
            error = ExampleError(
                f"a cell of more than {_MOST_CHARACTERS:,} characters", "broken line"
            )
            yield f"line {line}", error
        elif len(row) != len(header):
            error = ExampleError(
                f"{len(row)} cells, where the first line names {len(header)} columns; put quotes "
                "around cells that contain separators",
                "broken line",
            )
            yield f"line {line}", error
        else:
            yield f"line {line}", dict(zip(header, row, strict=True))
    if header is None:
        raise DataError(f"{path}: is empty; fetch it again")


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _header(path: str, row: list[str]) -> list[str]:
    names = [name.strip() for name in row]
    if "" in names or len(set(names)) < len(names):
        raise DataError(
            f"{path}: its first line must name the columns, each once, but is {', '.join(row)!r}"
        )
    return names


def guess_columns(names: Sequence[str]) -> dict[str, str]:
    """Returns which columns of a table hold the images, questions and answers, by their names.

    Returns:
        Arguments for `Columns`; without those that no name tells. There are either both answers or
        none.

    >>> guess_columns(["Img", "prompt", "good", "bad", "id"])
    {'image': 'Img', 'question': 'prompt', 'chosen': 'good', 'rejected': 'bad'}
    """
    by_name = {name.lower(): name for name in reversed(names)}
    guessed = {
        field: by_name[next(name for name in usual if name in by_name)]
        for field, usual in _USUAL.items()
        if any(name in by_name for name in usual)
    }
    if not {"chosen", "rejected"} <= guessed.keys():
        guessed.pop("chosen", None)
        guessed.pop("rejected", None)
    return guessed
