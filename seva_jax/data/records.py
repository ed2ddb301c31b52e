"""Prompts or pairs and their images in a folder of ArrayRecord files, fast to read at random.

What lives here: writing such a folder (`python -m seva_jax.data build`) and reading it. What does
not: the files of a run (`seva_jax/runtime/files.py`), and examples as JSON (`json_records.py`).

A folder has `images.array_record` (each distinct image once, with its original encoding),
`examples.array_record` (JSON: a prompt or a comparison, and the numbers of its images), and
`index.json` (what the folder holds, for people to read).
"""

from __future__ import annotations

import dataclasses
import io
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from array_record.python.array_record_data_source import ArrayRecordDataSource
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image
from typing_extensions import override

from seva_jax.data import json_records
from seva_jax.data.collect import Example, Images, counted, preference_set, prompt_set
from seva_jax.data.sources import PreferenceSet, PreferenceSource, PromptSet, PromptSource
from seva_jax.images.load import decode_image
from seva_jax.runtime import files
from seva_jax.runtime.copies import local_copy, upload
from seva_jax.runtime.read_ahead import READERS, read_ahead
from seva_jax.runtime.stores import as_path, is_remote
from seva_jax.types import Comparison, DataError, ExampleError, Prompt

EXAMPLES, IMAGES, INDEX = "examples.array_record", "images.array_record", "index.json"


@dataclasses.dataclass(frozen=True)
class ArrayRecordPrompts(PromptSource):
    """Prompts written by `python -m seva_jax.data build`.

    Attributes:
        path: the folder. Of one in an object store, the files are copied to the local disk, once.
    """

    path: str = ""

    @override
    def open(self) -> PromptSet:
        return prompt_set(self.path, *_open(self.path, "prompts", json_records.prompt_from))


@dataclasses.dataclass(frozen=True)
class ArrayRecordPairs(PreferenceSource):
    """Pairs written by `python -m seva_jax.data build`.

    Attributes:
        path: the folder. Of one in an object store, the files are copied to the local disk, once.
    """

    path: str = ""

    @override
    def open(self) -> PreferenceSet:
        return preference_set(self.path, *_open(self.path, "pairs", json_records.comparison_from))


@dataclasses.dataclass(frozen=True)
class RecordImages(Images):
    """Images in an ArrayRecord file.

    Attributes:
        source: encoded images.
        numbers: image name -> number of its record.
    """

    source: ArrayRecordDataSource
    numbers: dict[str, int]

    @override
    def check(self, name: str) -> None:
        if name not in self.numbers:
            raise ExampleError(f"{name!r}: there is no such image", "missing image")

    @override
    def read(self, name: str) -> bytes:
        self.check(name)
        try:
            return self.source[self.numbers[name]]
        except RuntimeError as error:
            message = f"{name}: the record is damaged ({error})"
            raise ExampleError(message, "unreadable image") from error


def _open(
    path: str, kind: str, parse: Callable[[dict[str, Any]], Example]
) -> tuple[RecordImages, list[tuple[str, Iterator[Example]]]]:
    """Returns the images of a folder, and where each example is, with an iterator over it."""
    folder = as_path(path)
    if not path or not (folder / INDEX).is_file():
        raise DataError(
            f"{path or 'the path of the data'}: no {INDEX} there; "
            "`python -m seva_jax.data build` writes such folders"
        )
    stored = files.read_json(folder / INDEX)["kind"]
    if stored != kind:
        other = {"prompts": "ArrayRecordPrompts", "pairs": "ArrayRecordPairs"}
        raise DataError(f"{path} holds {stored}, not {kind}; use {other[stored]}")
    numbers: dict[str, int] = {}
    examples: list[tuple[str, Iterator[Example]]] = []
    for i, record in enumerate(files.read_records(folder / EXAMPLES)):
        try:
            example = parse(record["example"])
            numbers |= zip(example.images, record["images"], strict=True)
        except KeyError as error:
            raise DataError(
                f"{folder / EXAMPLES}: example {i} has no field {error}; another version may have "
                "written it: build the copy again"
            ) from error
        examples.append((f"example {i}", iter((example,))))
    return RecordImages(
        ArrayRecordDataSource([str(local_copy(folder / IMAGES))]), numbers
    ), examples


def build(
    data: PromptSet, folder: Path, source: str, progress: Callable[[int], Any]
) -> dict[str, Any]:
    """Writes a folder that `ArrayRecordPrompts` or `ArrayRecordPairs` reads.

    Examples with an image that does not decode are left out and counted.

    Args:
        data: the prompts or pairs to write.
        folder: a new folder; `index.json` is written last, so an unfinished folder is not read.
            One in an object store is written to a local disk first.
        source: where the data came from, for people to read.
        progress: called with 1 for each example.

    Returns:
        The contents of `index.json`.

    Raises:
        DataError: the folder exists, or no example has images that decode.
    """
    if folder.exists():
        raise DataError(f"{folder} exists; give a new folder")
    if is_remote(folder):
        with tempfile.TemporaryDirectory() as scratch:
            index = build(data, Path(scratch) / "built", source, progress)
            for name in (EXAMPLES, IMAGES, INDEX):
                upload(Path(scratch) / "built" / name, folder / name)
            return index
    folder.mkdir(parents=True)
    pairs = isinstance(data, PreferenceSet)
    examples = data.comparisons if pairs else data.prompts
    writer = ArrayRecordWriter(str(folder / IMAGES), "group_size:1")
    drops, numbers = data.drops.copy(), dict[str, int]()
    broken: dict[str, str] = {}

    def read(example: Prompt | Comparison) -> dict[str, bytes | ExampleError]:
        fresh = (name for name in example.images if name not in numbers and name not in broken)
        return {name: read_encoded(data, name, decodes=True) for name in fresh}

    def add(name: str, images: Mapping[str, bytes | ExampleError]) -> int:
        if name not in numbers:
            writer.write(images[name])
            numbers[name] = len(numbers)
        return numbers[name]

    def records() -> Iterator[dict[str, Any]]:
        threads = num_readers(data)
        read_images = read_ahead(read, examples, threads, 2 * threads)
        for example, images in zip(examples, read_images, strict=True):
            progress(1)
            broken.update((n, x.reason) for n, x in images.items() if isinstance(x, ExampleError))
            if reason := next((broken[n] for n in example.images if n in broken), ""):
                drops[reason] += 1
                continue
            numbered = [add(name, images) for name in example.images]
            yield {"example": dataclasses.asdict(example), "images": numbered}

    num = files.write_records(folder / EXAMPLES, records())
    writer.close()
    if not num:
        raise DataError(f"{source}: no example has images that decode ({counted(drops)})")
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


def num_readers(data: PromptSet) -> int:
    """Returns how many images are read at a time to copy them."""
    return READERS if data.remote else 4


def read_encoded(data: PromptSet, name: str, decodes: bool = False) -> bytes | ExampleError:
    """Returns the stored bytes of an image, or a PNG of one that is drawn; or why there are none.

    Args:
        data: where the image is from.
        name: its name.
        decodes: whether it has to decode.
    """
    try:
        if data.read_image is None:
            file = io.BytesIO()
            Image.fromarray(data.load_image(name)).save(file, "PNG")
            return file.getvalue()
        encoded = data.read_image(name)
        if decodes:
            decode_image(encoded, name=name)
    except ExampleError as error:
        return error
    return encoded
