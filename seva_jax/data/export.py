"""Writes any source in a format of other tools: SeVa's JSON, TRL's parquet, JSON lines.

What lives here: writing. What does not: reading these formats (`preferences.py`, `messages.py`,
`files.py`). A comparison with several rejected answers becomes one pair for each.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import io
import itertools
import json
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, NamedTuple

from PIL import Image

from seva_jax.data.collect import counted
from seva_jax.data.records import num_readers, read_encoded
from seva_jax.data.sources import PreferenceSet, PromptSet
from seva_jax.runtime.copies import upload
from seva_jax.runtime.files import append_lines, write_json
from seva_jax.runtime.read_ahead import READERS, read_ahead
from seva_jax.runtime.stores import is_remote
from seva_jax.types import IMAGE_MARKER, DataError, ExampleError, Prompt

Format = Literal["seva", "trl", "jsonl"]
_ROWS = 100  # rows of a parquet row group: images are large
_Images = Mapping[str, bytes | ExampleError]


class Pair(NamedTuple):
    """One prompt with at most one pair of answers.

    Attributes:
        prompt: the prompt; its id is unique among pairs.
        chosen: the better answer, or None.
        rejected: the worse answer, or None.
    """

    prompt: Prompt
    chosen: str | None
    rejected: str | None


@dataclasses.dataclass
class Export:
    """Writes a data set in another format.

    Attributes:
        data: what to write.
        images: folder to write image files to; None keeps the names and writes no images.
        progress: called with 1 for each pair.
        drops: counts of pairs that could not be written, by reason; filled while writing.
        num: number of pairs written.
    """

    data: PromptSet
    images: Path | None
    progress: Callable[[int], Any]
    drops: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    num: int = 0
    _unwritten: list[tuple[Path, bytes]] = dataclasses.field(default_factory=list, init=False)

    def __call__(self, format_: Format, path: Path) -> None:
        """Writes the file.

        Raises:
            DataError: the file exists; or the data has no answers and the format needs them; or
                nothing could be written, and then there is no file.
        """
        if path.exists():
            raise DataError(f"{path} exists; delete it or give another name")
        if format_ == "trl" and self.images is not None:
            raise DataError("the format trl has the images inside; leave out --images")
        with contextlib.ExitStack() as stack:
            local = path
            if is_remote(path):  # an object is written whole
                local = Path(stack.enter_context(tempfile.TemporaryDirectory())) / path.name
            local.parent.mkdir(parents=True, exist_ok=True)
            self._write(format_, local)
            self._write_images()
            if not self.num:
                local.unlink()
                raise DataError(
                    f"{path} is not written: none of {self.drops.total():,} examples can be "
                    f"({counted(self.drops)})"
                )
            if local != path:
                upload(local, path)

    def _write(self, format_: Format, path: Path) -> None:
        if format_ == "seva":
            if not isinstance(self.data, PreferenceSet):
                raise DataError(
                    "SeVa's JSON holds pairs and these are prompts without answers; use jsonl, or "
                    "give the work directory of a run, --run DIR"
                )
            write_json(path, list(self._each(self._seva)))
        elif format_ == "trl":
            self._write_parquet(path)
        else:
            append_lines(path, self._each(self._line))

    # --- records ----------------------------------------------------------------------------------

    def _each(self, write: Callable[[Pair, _Images], dict[str, Any]]) -> Iterator[dict[str, Any]]:
        names: dict[str, str] = {}

        def read(pair: Pair) -> _Images:
            fresh = (name for name in pair.prompt.images if name not in names)
            return {name: read_encoded(self.data, name) for name in fresh}

        threads = num_readers(self.data)
        images: Iterable[_Images] = itertools.repeat({})
        if self.images is not None or write == self._trl:
            images = read_ahead(read, pairs_of(self.data), threads, 2 * threads)
        for pair, encoded in zip(pairs_of(self.data), images):  # noqa: B905
            self.progress(1)
            try:
                if self.images is not None:
                    files = tuple(self._file(name, encoded, names) for name in pair.prompt.images)
                    pair = pair._replace(prompt=dataclasses.replace(pair.prompt, images=files))
                yield write(pair, encoded)
            except ExampleError as error:
                self.drops[error.reason] += 1
                continue
            self.num += 1

    def _file(self, name: str, encoded: _Images, names: dict[str, str]) -> str:
        """Writes an image once, and returns its file name: a number and the right extension."""
        if name not in names:
            data = _given(encoded[name])
            try:
                with Image.open(io.BytesIO(data)) as image:
                    extension = (image.format or "img").lower()
            except OSError as error:
                raise ExampleError(f"{name}: not an image ({error})", "unreadable image") from error
            assert self.images is not None
            file = f"{len(names):08}.{extension.replace('jpeg', 'jpg')}"
            self._unwritten.append((self.images / file, data))
            if len(self._unwritten) == READERS:
                self._write_images()
            names[name] = file
        return names[name]

    def _write_images(self) -> None:
        for folder in {path.parent for path, _ in self._unwritten}:
            folder.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(READERS) as pool:
            list(pool.map(lambda image: image[0].write_bytes(image[1]), self._unwritten))
        self._unwritten.clear()

    def _seva(self, pair: Pair, encoded: _Images) -> dict[str, Any]:
        del encoded
        if len(pair.prompt.images) != 1:
            raise ExampleError("SeVa's layout has one image", "not one image")
        return {
            "chosen": pair.chosen,
            "reject": pair.rejected,
            "question": pair.prompt.question,
            "image_id": pair.prompt.images[0],
        }

    def _line(self, pair: Pair, encoded: _Images) -> dict[str, Any]:
        del encoded
        prompt = pair.prompt
        names = list(prompt.images)
        if pair.chosen is None:
            own = {"id": prompt.id, "question": prompt.question, "images": names}
            return {k: v for k, v in prompt.meta.items() if k not in ("text", "image")} | own
        answers = {"chosen": pair.chosen, "rejected": pair.rejected}
        return {"id": prompt.id, "images": names, "prompt": prompt.question, **answers}

    def _trl(self, pair: Pair, encoded: _Images) -> dict[str, Any]:
        names = pair.prompt.images
        images = [{"bytes": _given(encoded[name]), "path": None} for name in names]
        row = {"images": images, "prompt": [_message("user", pair.prompt)]}
        if pair.chosen is not None:
            row["chosen"] = [_message("assistant", pair.chosen)]
            row["rejected"] = [_message("assistant", pair.rejected)]
        return row

    def _write_parquet(self, path: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        has_pairs = isinstance(self.data, PreferenceSet)
        sides = ("prompt", "chosen", "rejected") if has_pairs else ("prompt",)
        features = {"images": [{"_type": "Image"}], **dict.fromkeys(sides, _MESSAGES)}
        image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        part = pa.struct([("type", pa.string()), ("text", pa.string())])
        messages = pa.list_(pa.struct([("role", pa.string()), ("content", pa.list_(part))]))
        schema = pa.schema(
            [("images", pa.list_(image)), *((side, messages) for side in sides)],
            {"huggingface": json.dumps({"info": {"features": features}})},
        )
        records = self._each(self._trl)
        with pq.ParquetWriter(path, schema) as writer:
            while rows := list(itertools.islice(records, _ROWS)):
                writer.write_table(pa.Table.from_pylist(rows, schema))


def _given(image: bytes | ExampleError) -> bytes:
    if isinstance(image, ExampleError):
        raise image
    return image


_STRING = {"dtype": "string", "_type": "Value"}
_MESSAGES = [{"role": _STRING, "content": [{"type": _STRING, "text": _STRING}]}]


def _message(role: str, said: Prompt | str | None) -> dict[str, Any]:
    """Returns a message; the images of a prompt are at its markers, or else in front."""
    if not isinstance(said, Prompt):
        return {"role": role, "content": [{"type": "text", "text": said}]}
    text = said.question
    if IMAGE_MARKER not in text:
        text = IMAGE_MARKER * len(said.images) + text
    content = []
    for number, words in enumerate(text.split(IMAGE_MARKER)):
        if number:
            content.append({"type": "image", "text": None})
        if words:
            content.append({"type": "text", "text": words})
    return {"role": role, "content": content}


def pairs_of(data: PromptSet) -> Iterator[Pair]:
    """Yields every prompt, or every pair of a chosen and a rejected answer, in order."""
    if not isinstance(data, PreferenceSet):
        yield from (Pair(prompt, None, None) for prompt in data.prompts)
        return
    for comparison in data.comparisons:
        if comparison.more:
            raise DataError(
                f"comparison {comparison.prompt.id!r} has answers to several images, for which no "
                "export format has a place"
            )
        chosen, *rejected = comparison.texts
        for number, text in enumerate(rejected):
            id_ = comparison.prompt.id + f"@{number}" * (number > 0)
            yield Pair(dataclasses.replace(comparison.prompt, id=id_), chosen, text)
