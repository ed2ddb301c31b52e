"""Prompt sources on disk: image folders, LLaVA's and SeVa's JSON, questions as JSON lines.

What lives here: reading, checking and counting. What does not: decoding images
(`seva_jax/images/load.py`) and putting a question into words for the model
(`seva_jax/text/templates.py`). Read next: `sources.py`, the contract.

One bad example among many is left out and counted by its reason; only a source that cannot be
read at all, or of which nothing is left, raises. Image files are looked up here and decoded later.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from seva_jax.data.sources import PromptSet, PromptSource
from seva_jax.images.load import IMAGE_EXTENSIONS, decode_image, resolve_image
from seva_jax.text.templates import IMAGE_MARKER
from seva_jax.types import DataError, ExampleError, Prompt

SHORT_ANSWER = "Answer the question using a single word or phrase."


@dataclasses.dataclass(frozen=True)
class ImageFolder(PromptSource):
    """Every image file below a folder, each with the same questions.

    A prompt's id is the path of its image inside the folder, "#" and the question's number.

    Attributes:
        root: the folder. Files are taken by their extension, sorted by path.
        questions: asked about every image.
        limit: at most this many images, the first ones; 0 means all.
    """

    root: str = ""
    questions: tuple[str, ...] = ("Describe this image in detail.",)
    limit: int = 0

    def open(self) -> PromptSet:
        """See `PromptSource.open`."""
        root = _folder(self.root)
        files = sorted(
            path.relative_to(root).as_posix()
            for path in root.rglob("*")
            if path.suffix.lower() in IMAGE_EXTENSIONS and not path.is_dir()
        )
        if not files:
            kinds = " ".join(IMAGE_EXTENSIONS)
            raise DataError(f"{root}: no image files below this folder (looked for {kinds})")
        if not self.questions:
            raise DataError(f"{root}: there are no questions to ask about its images; give some")

        def parse(name: str) -> Iterator[Prompt]:
            for number, question in enumerate(self.questions):
                yield Prompt(f"{name}#{number}", question, (name,))

        return _collect(self.root, root, ((name, parse(name)) for name in files), self.limit)


@dataclasses.dataclass(frozen=True)
class LlavaJson(PromptSource):
    r"""Questions of LLaVA's conversation files; their answers are not used.

    The file is a list of `{"id", "image", "conversations": [{"from": "human", "value":
    "<image>\nWhat is this?"}, {"from": "gpt", ...}, ...]}`. A prompt is one human turn on its
    own, without what was said before; its id is the record's id, "#" and the number of the turn.

    Attributes:
        path: the file.
        image_root: folder the image names are relative to.
        remove: sentences deleted from the questions, with the white space before them.
            # SeVa: OCR-VQA's request for short answers goes, so that answers become sentences.
        questions_per_image: human turns taken of each record, from the first on; 0 means all.
            Later turns may only make sense after earlier ones. SeVa takes 2 of OCR-VQA, whose
            questions are independent of each other.
        limit: at most this many records with at least one good question, drawn at random; 0
            means all, in file order.
        seed: of the draw.
    """

    path: str = ""
    image_root: str = ""
    remove: tuple[str, ...] = (SHORT_ANSWER,)
    questions_per_image: int = 1
    limit: int = 0
    seed: int = 0

    def open(self) -> PromptSet:
        """See `PromptSource.open`."""
        records = _read_list(self.path)
        order = np.arange(len(records))
        if self.limit:
            order = np.random.default_rng(self.seed).permutation(len(records))
        examples = ((f"record {i + 1}", self._parse(records[i])) for i in order.tolist())
        return _collect(self.path, _folder(self.image_root), examples, self.limit)

    def _parse(self, record: Any) -> Iterator[Prompt]:
        record = _object(record)
        if not record.get("image"):
            raise ExampleError("a record without image; only those with one are used", "no image")
        id_, images = _id(record), _images(record)
        turns = record.get("conversations")
        if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
            raise ExampleError("conversations must be a list of objects", "no question")
        asked = [turn.get("value") for turn in turns if turn.get("from") == "human"]
        if not asked:
            raise ExampleError('conversations has no turn from "human"', "no question")
        for number, value in enumerate(asked[: self.questions_per_image or None]):
            question = self._question(value) if isinstance(value, str) else ""
            yield Prompt(f"{id_}#{number}", question, images)

    def _question(self, value: str) -> str:
        question = re.sub(rf"\s*{re.escape(IMAGE_MARKER)}\s*", " ", value)
        for sentence in self.remove:
            question = re.sub(rf"\s*{re.escape(sentence)}", "", question)
        return question.strip()


@dataclasses.dataclass(frozen=True)
class QuestionsJsonl(PromptSource):
    """Questions as JSON lines, one object a line.

    Fields: `id` or `question_id`; `question` or `text`; `image`, or `images` for a list (an empty
    one for a question without image). Other fields that are strings, numbers or lists become the
    prompt's `meta`: with an `answer`, the file serves for evaluation too. A line that is not JSON
    is counted.

    Attributes:
        path: the file.
        image_root: folder the image names are relative to.
    """

    path: str = ""
    image_root: str = ""

    def open(self) -> PromptSet:
        """See `PromptSource.open`."""
        # Split bytes, not text: str.splitlines would also cut at U+2028 inside a question.
        lines = enumerate(_read_bytes(self.path).split(b"\n"), 1)
        examples = ((f"line {n}", self._parse(line)) for n, line in lines if line.strip())
        return _collect(self.path, _folder(self.image_root), examples)

    def _parse(self, line: bytes) -> Iterator[Prompt]:
        try:
            record = _object(json.loads(line.decode("utf-8-sig")))
        except (ValueError, RecursionError) as error:
            if isinstance(error, ExampleError):
                raise
            raise ExampleError(f"not JSON ({error}); write one object a line", "broken line") from (
                error
            )
        question = _either(record, "question", "text")
        if not isinstance(question, str):
            raise ExampleError("question (or text) must be a text", "no question")
        used = ("id", "question", "text", "image", "images")
        kept = {key: value for key, value in record.items() if key not in used}
        meta = {k: v for k, v in kept.items() if isinstance(v, str | int | float | list)}
        yield Prompt(_id(record), question, _images(record), meta)


@dataclasses.dataclass(frozen=True)
class SevaJson(PromptSource):
    """The prompts of SeVa's released pairs; their answers are not used.

    The file is a list of `{"chosen", "reject", "question", "image_id"}`, where `image_id` is a
    file name. A prompt's id is the image's name, "#" and the record's number, from 0.

    Attributes:
        path: the file.
        image_root: folder the image names are relative to.
    """

    path: str = ""
    image_root: str = ""

    def open(self) -> PromptSet:
        """See `PromptSource.open`."""
        records = enumerate(_read_list(self.path))
        examples = ((f"record {i + 1}", self._parse(i, record)) for i, record in records)
        return _collect(self.path, _folder(self.image_root), examples)

    def _parse(self, index: int, record: Any) -> Iterator[Prompt]:
        record = _object(record)
        question, image = record.get("question"), record.get("image_id")
        if not isinstance(question, str):
            raise ExampleError("question must be a text", "no question")
        if not isinstance(image, str):
            raise ExampleError("image_id must be the name of an image file", "no image")
        yield Prompt(f"{image}#{index}", question, (image,))


@dataclasses.dataclass(frozen=True)
class Concatenated(PromptSource):
    """Several sources, one after the other.

    Ids and image names get the number of their source and "/" in front, so that equal ones in
    different sources stay apart.

    Attributes:
        sources: the sources; all must be readable.
    """

    sources: tuple[PromptSource, ...] = ()

    def open(self) -> PromptSet:
        """See `PromptSource.open`."""
        if not self.sources:
            raise DataError("Concatenated.sources is empty; give at least one source")
        opened = [source.open() for source in self.sources]
        prompts = [
            dataclasses.replace(
                prompt,
                id=f"{number}/{prompt.id}",
                images=tuple(f"{number}/{name}" for name in prompt.images),
            )
            for number, part in enumerate(opened)
            for prompt in part.prompts
        ]

        def load_image(name: str) -> np.ndarray:
            number, _, rest = name.partition("/")
            return opened[int(number)].load_image(rest)

        drops = sum((part.drops for part in opened), collections.Counter())
        return PromptSet(prompts, load_image, drops)


# --- reading whole files --------------------------------------------------------------------------


def _folder(root: str) -> Path:
    """The image folder, which is the only way to images."""
    if not root:
        raise DataError("the image folder is not set; give its path")
    path = Path(root)
    if not path.is_dir():
        raise DataError(f"{root}: no such image folder; check the path")
    return path


def _read_bytes(path: str) -> bytes:
    if not path:
        raise DataError("the path of the questions is not set; give the file")
    try:
        return Path(path).read_bytes()
    except OSError as error:
        reason = error.strerror or error
        raise DataError(f"{path}: cannot be read ({reason}); check the path") from error


def _read_list(path: str) -> list[Any]:
    data = _read_bytes(path)
    try:
        records = json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not JSON ({error}); it may be cut short: fetch it again") from (
            error
        )
    if not isinstance(records, list):
        raise DataError(f"{path}: expected a JSON list of records, found {type(records).__name__}")
    return records


# --- checking single examples ---------------------------------------------------------------------


def _object(record: Any) -> dict[str, Any]:
    if not isinstance(record, dict):
        raise ExampleError(f"expected an object, found {type(record).__name__}", "not an object")
    return record


def _either(record: dict[str, Any], field: str, other: str) -> Any:
    """The value of a field that goes by two names; null counts as absent."""
    value = record.get(field)
    return record.get(other) if value is None else value


def _id(record: dict[str, Any]) -> str:
    id_ = _either(record, "id", "question_id")
    if isinstance(id_, bool) or not isinstance(id_, str | int) or id_ == "":
        raise ExampleError("id (or question_id) must be a text or a whole number", "no id")
    return str(id_)


def _images(record: dict[str, Any]) -> tuple[str, ...]:
    """The image names in `image` or `images`: one, or a list."""
    found = _either(record, "image", "images")
    names = [found] if isinstance(found, str) else found
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ExampleError("image (or images) must name an image file, or list several", "no image")
    return tuple(names)


def _check(prompt: Prompt, root: Path) -> None:
    """What has to hold for the prompts of every source."""
    try:
        json.dumps(dataclasses.asdict(prompt), ensure_ascii=False, allow_nan=False).encode()
    except ValueError as error:  # half a surrogate pair, or NaN: no file of the run could hold it
        raise ExampleError(f"not storable as JSON in UTF-8 ({error})", "invalid text") from error
    if not prompt.question.replace(IMAGE_MARKER, "").strip():
        raise ExampleError("the question is empty; write one", "empty question")
    for name in prompt.images:
        resolve_image(root, name)


def _checked(
    example: Iterator[Prompt], root: Path, seen: set[str]
) -> Iterator[Prompt | ExampleError]:
    """The prompts of one example, each checked; an error stands for what it made unusable."""
    try:
        for prompt in example:
            try:
                _check(prompt, root)
            except ExampleError as error:
                yield error
                continue
            if prompt.id in seen:
                yield ExampleError(f"the id {prompt.id!r} was there before", "duplicate id")
                continue
            seen.add(prompt.id)
            yield prompt
    except ExampleError as error:
        yield error


def _collect(
    source: str, root: Path, examples: Iterable[tuple[str, Iterator[Prompt]]], limit: int = 0
) -> PromptSet:
    """Keeps good prompts and counts the others.

    Args:
        source: what was read, for errors.
        root: the image folder.
        examples: where each is in the source, and its prompts; they may raise `ExampleError`.
        limit: stop after this many examples with a good prompt; 0 means no limit.

    Raises:
        DataError: no prompt is left, or the limit is negative.
    """
    if limit < 0:
        raise DataError(f"{source}: limit must be 0 (all) or more, not {limit}")
    prompts: list[Prompt] = []
    drops: collections.Counter[str] = collections.Counter()
    first, seen, num_good = "", set(), 0
    for where, example in examples:
        num_before = len(prompts)
        for found in _checked(example, root, seen):
            if isinstance(found, Prompt):
                prompts.append(found)
                continue
            first = first or f"{where}: {found}"
            drops[found.reason] += 1
        num_good += len(prompts) > num_before
        if limit and num_good == limit:
            break
    if not prompts:
        reasons = ", ".join(f"{n} {reason}" for reason, n in drops.most_common())
        raise DataError(
            f"{source}: no usable prompt is left ({reasons or 'it is empty'})"
            + (f"; the first: {first}" if first else "")
        )
    return PromptSet(
        prompts, lambda name: decode_image(resolve_image(root, name), name=name), drops
    )
