"""Prompts and pairs with their images in ArrayRecord: one folder, quick to read at random.

What lives here: writing such a folder (`python -m seva_jax.data build`) and reading it. What does
not: the files of a run (`files.py`).

A folder has `images.array_record` (each distinct image once, encoded as it was),
`examples.array_record` (JSON: a prompt or a comparison, and the numbers of its images), and
`index.json` for people.
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from array_record.python.array_record_data_source import ArrayRecordDataSource
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image

from seva_jax.data import json_records
from seva_jax.data.collect import Images, preference_set, prompt_set
from seva_jax.data.sources import PreferenceSet, PreferenceSource, PromptSet, PromptSource
from seva_jax.runtime import files
from seva_jax.types import DataError, ExampleError

EXAMPLES, IMAGES, INDEX = "examples.array_record", "images.array_record", "index.json"


@dataclasses.dataclass(frozen=True)
class ArrayRecordPrompts(PromptSource):
    """Prompts written by `python -m seva_jax.data build`.

    Attributes:
        path: the folder.
    """

    path: str = ""

    def open(self) -> PromptSet:
        """See `PromptSource.open`."""
        images, records = _open(self.path, "prompts")
        examples = (
            (where, iter((json_records.prompt_from(record["example"]),)))
            for where, record in records
        )
        return prompt_set(self.path, images, examples)


@dataclasses.dataclass(frozen=True)
class ArrayRecordPairs(PreferenceSource):
    """Pairs written by `python -m seva_jax.data build`.

    Attributes:
        path: the folder.
    """

    path: str = ""

    def open(self) -> PreferenceSet:
        """See `PromptSource.open`."""
        images, records = _open(self.path, "pairs")
        examples = (
            (where, iter((json_records.comparison_from(record["example"]),)))
            for where, record in records
        )
        return preference_set(self.path, images, examples)


@dataclasses.dataclass(frozen=True)
class RecordImages(Images):
    """Images in an ArrayRecord file.

    Attributes:
        source: encoded images.
        numbers: image name -> its record.
    """

    source: ArrayRecordDataSource
    numbers: dict[str, int]

    def check(self, name: str) -> None:
        """See `Images.check`."""
        if name not in self.numbers:
            raise ExampleError(f"{name!r}: there is no such image", "missing image")

    def read(self, name: str) -> bytes:
        """See `Images.read`."""
        self.check(name)
        try:
            return self.source[self.numbers[name]]
        except RuntimeError as error:
            raise ExampleError(
                f"{name}: the record is damaged ({error})", "unreadable image"
            ) from (error)


def _open(path: str, kind: str) -> tuple[RecordImages, list[tuple[str, dict[str, Any]]]]:
    folder = Path(path)
    if not path or not (folder / INDEX).is_file():
        raise DataError(
            f"{path or 'the path of the data'}: no {INDEX} there; "
            "`python -m seva_jax.data build` writes such folders"
        )
    found = files.read_json(folder / INDEX)["kind"]
    if found != kind:
        other = {"prompts": "ArrayRecordPrompts", "pairs": "ArrayRecordPairs"}
        raise DataError(f"{path} holds {found}, not {kind}; use {other[found]}")
    records = files.read_records(folder / EXAMPLES)
    numbers: dict[str, int] = {}
    for record in records:
        example = record["example"]
        has_answers = "prompt" in example
        whole = (
            json_records.comparison_from(example)
            if has_answers
            else json_records.prompt_from(example)
        )
        numbers |= dict(zip(whole.images, record["images"], strict=True))
    images = RecordImages(ArrayRecordDataSource([str(folder / IMAGES)]), numbers)
    return images, [(f"example {i}", record) for i, record in enumerate(records)]


def build(
    data: PromptSet, folder: Path, source: str, progress: Callable[[int], Any]
) -> dict[str, Any]:
    """Writes a folder that `ArrayRecordPrompts` or `ArrayRecordPairs` reads.

    Examples with an image that does not decode are left out and counted.

    Args:
        data: what to write.
        folder: a new folder; `index.json` comes last, so an unfinished one is not read.
        source: where the data came from, for people.
        progress: called with 1 after each example.

    Returns:
        What `index.json` holds.

    Raises:
        DataError: the folder exists, or no example has images that decode.
    """
    if folder.exists():
        raise DataError(f"{folder} exists; give a new folder")
    folder.mkdir(parents=True)
    pairs = isinstance(data, PreferenceSet)
    examples = data.comparisons if pairs else data.prompts
    writer = ArrayRecordWriter(str(folder / IMAGES), "group_size:1")
    drops, numbers = data.drops.copy(), dict[str, int]()
    broken: dict[str, str] = {}

    def add(name: str) -> int:
        if name not in numbers:
            writer.write(encoded_image(data, name))
            numbers[name] = len(numbers)
        return numbers[name]

    def records() -> Iterator[dict[str, Any]]:
        for example in examples:
            progress(1)
            bad = _broken(data, example.images, numbers, broken)
            if bad:
                drops[bad] += 1
                continue
            images = [add(name) for name in example.images]
            yield {"example": dataclasses.asdict(example), "images": images}

    num = files.write_records(folder / EXAMPLES, records())
    writer.close()
    if not num:
        raise DataError(f"{source}: no example has images that decode ({dict(drops)})")
    index = {
        "kind": "pairs" if pairs else "prompts",
        "source": source,
        "examples": num,
        "images": len(numbers),
        "bytes": (folder / IMAGES).stat().st_size,
        "drops": dict(drops),
    }
    files.write_json(folder / INDEX, index)
    return index


def _broken(
    data: PromptSet, names: Sequence[str], good: dict[str, int], broken: dict[str, str]
) -> str:
    """Why an example's images cannot be used, or ""; each image is decoded once."""
    for name in names:
        if name not in good and name not in broken:
            try:
                data.load_image(name)
            except ExampleError as error:
                broken[name] = error.reason
        if name in broken:
            return broken[name]
    return ""


def encoded_image(data: PromptSet, name: str) -> bytes:
    """An image as it is stored; one that is drawn, as PNG.

    Raises:
        ExampleError: there is no such image.
    """
    if data.read_image is not None:
        return data.read_image(name)
    file = io.BytesIO()
    Image.fromarray(data.load_image(name)).save(file, "PNG")
    return file.getvalue()
