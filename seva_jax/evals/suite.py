"""What a benchmark is to a run: questions, an evaluator, and files for other people's scorers.

What lives here: `Suite` (the extension point), `Questions`, and reading a benchmark's files with
errors that name the place. What does not: the benchmarks themselves (`suites/`), how an answer is
scored (`base.py` and the evaluators), who asks the model (`seva_jax/run/evaluations.py`). Read next:
`suites/short_answers.py`.
"""

from __future__ import annotations

import base64
import binascii
import collections
import csv
import dataclasses
import hashlib
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from seva_jax.data.sources import PromptSet
from seva_jax.evals.answers import Answer, write_llava, write_lmms_log, write_tsv
from seva_jax.evals.base import Evaluator
from seva_jax.images.load import decode_image, resolve_image
from seva_jax.ranges import FROM_0, FROM_1
from seva_jax.runtime.files import read_bytes
from seva_jax.types import DataError, Prompt


@dataclasses.dataclass(frozen=True)
class Questions(PromptSet):
    """Prompts with known answers, and how they are scored.

    Attributes:
        evaluator: scores the answers.
        files: SHA-256 of every file that was read, by path; images are not among them.
        notes: what a reader of the numbers has to know, such as which variant of a file it was.
    """

    evaluator: Evaluator = dataclasses.field(kw_only=True)
    files: Mapping[str, str] = dataclasses.field(default_factory=dict, kw_only=True)
    notes: tuple[str, ...] = dataclasses.field(default=(), kw_only=True)


@dataclasses.dataclass(frozen=True)
class Suite:
    """Base class: one set of questions and their scoring. Subclass to add a benchmark.

    Attributes:
        max_new_tokens: longest answer, tokens; answers are greedy.
    """

    max_new_tokens: Annotated[int, FROM_1] = dataclasses.field(default=64, kw_only=True)

    @property
    def name(self) -> str:
        """Names files and rows of tables; unique within a run."""
        raise NotImplementedError(f"{type(self).__name__} must define name")

    def open(self) -> Questions:
        """Reads the files.

        Raises:
            DataError: a file cannot be read or is not what it should be; names file and place.
        """
        raise NotImplementedError(f"{type(self).__name__} must define open")

    def write_answers(self, folder: Path, model_id: str, answers: Sequence[Answer]) -> None:
        """Writes the answers as LLaVA's scripts read them; benchmarks add what their scorers take.

        Args:
            folder: exists.
            model_id: names the model in files that say so.
            answers: to every question, in the order of the file; "" where none was given.
        """
        write_llava(folder / "answers.jsonl", model_id, answers)


def open_suite(suite: Suite) -> Questions:
    """`suite.open()`; what a file of another shape makes it raise becomes a clean error.

    Raises:
        DataError: see `Suite.open`.
    """
    try:
        return suite.open()
    except DataError:
        raise
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
        raise DataError(
            f"{suite.name}: a file is not what it should be ({type(error).__name__}: "
            f"{str(error)[:200]}); fetch the benchmark's files again"
        ) from error


@dataclasses.dataclass(frozen=True)
class Benchmark(Suite):
    """Base class of the published benchmarks.

    A benchmark whose file has a broken line is no longer that benchmark, so that is an error. An
    image that is missing or unreadable leaves its question out of the score, counted; in the
    answer files it has an empty answer, because some scorers align by order.

    Attributes:
        name: names files and rows of tables.
        image_root: folder the image names are relative to.
        suffix: put after every question; part of what is measured, so choose it knowingly.
        limit: at most this many questions, the first ones, to try things out; 0 means all.
        lmms_task: the task's name in lmms-eval, for its `from_log` files; empty writes none. Set
            it where the questions have the order of lmms-eval's data set, which goes by number.
        vlmeval_dataset: the data set's name in VLMEvalKit, for its files; empty writes none.
    """

    name: str = ""
    image_root: str = dataclasses.field(default="", kw_only=True)
    suffix: str = dataclasses.field(default="", kw_only=True)
    limit: Annotated[int, FROM_0] = dataclasses.field(default=0, kw_only=True)
    lmms_task: str = dataclasses.field(default="", kw_only=True)
    vlmeval_dataset: str = dataclasses.field(default="", kw_only=True)

    def questions(
        self,
        prompts: Sequence[Prompt],
        evaluator: Evaluator,
        files: Sequence[str],
        notes: Sequence[str] = (),
        load_image: Callable[[str], np.ndarray] | None = None,
    ) -> Questions:
        """The prompts, at most `limit`, with the hashes of the files.

        Args:
            prompts: in file order.
            evaluator: scores them.
            files: what they were read from; empty names are left out.
            notes: see `Questions`.
            load_image: None for image files below `image_root`.

        Raises:
            DataError: there are no prompts, an id appears twice, or there is no image folder.
        """
        if not prompts:
            raise DataError(f"{self.name}: {files[0]} has no questions; fetch the file again")
        if len({prompt.id for prompt in prompts}) < len(prompts):
            ids = collections.Counter(prompt.id for prompt in prompts)
            twice = next(id_ for id_, num in ids.items() if num > 1)
            raise DataError(f"{self.name}: question {twice!r} is in {files[0]} twice; remove one")
        if self.limit < 0:
            raise DataError(f"{self.name}: limit must be 0 (all) or more, not {self.limit}")
        if load_image is None:
            load_image = folder_loader(self.name, self.image_root)
        notes = list(notes)
        if self.limit and self.limit < len(prompts):
            notes.append(f"only the first {self.limit} of {len(prompts)} questions")
        return Questions(
            list(prompts)[: self.limit or None],
            load_image,
            evaluator=evaluator,
            files={path: sha256(path) for path in files if path},
            notes=tuple(notes),
        )

    def write_answers(self, folder: Path, model_id: str, answers: Sequence[Answer]) -> None:
        """See `Suite.write_answers`; also VLMEvalKit's and lmms-eval's files."""
        super().write_answers(folder, model_id, answers)
        if self.vlmeval_dataset:
            write_tsv(folder / f"{model_id}_{self.vlmeval_dataset}.tsv", answers, self.columns)
        if self.lmms_task:
            write_lmms_log(folder / "lmms_eval.json", self.lmms_task, model_id, answers)

    def columns(self, prompt: Prompt) -> dict[str, str]:
        """What VLMEvalKit's scorer of the benchmark reads of a question, by column."""
        return {k: str(prompt.meta[k]) for k in ("answer", "category") if k in prompt.meta}


def folder_loader(name: str, root: str) -> Callable[[str], np.ndarray]:
    """Loads images from below a folder, and from nowhere else.

    Raises:
        DataError: no such folder.
    """
    folder = Path(root)
    if not root or not folder.is_dir():
        raise DataError(f"{name}: image_root {root!r} is not a folder; give the folder of images")
    return lambda image: decode_image(resolve_image(folder, image), name=image)


def base64_loader(where: str, images: Mapping[str, str]) -> Callable[[str], np.ndarray]:
    """Decodes images that a table holds as base64.

    Args:
        where: names the table in errors.
        images: base64 text by image name. A short text names the image it repeats, as in
            VLMEvalKit's tables.
    """

    def load(name: str) -> np.ndarray:
        text = images[name]
        text = images.get(text, text) if len(text) <= 64 else text
        try:
            data = base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError):
            data = b""  # not an image either: one error for both
        return decode_image(data, name=f"{where}, image {name}")

    return load


def sha256(path: str) -> str:
    """SHA-256 of a file, in hexadecimal.

    Raises:
        DataError: it cannot be read.
    """
    try:
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the path") from error


def read_file(path: str) -> bytes:
    """A whole file.

    Raises:
        DataError: it cannot be read.
    """
    if not path:
        raise DataError("the path of a benchmark's file is empty; give it in the config")
    return read_bytes(path)


def read_json(path: str, kind: type[dict] | type[list]) -> Any:
    """A JSON file whose top is an object or a list.

    Raises:
        DataError: it cannot be read, is not JSON or holds something else.
    """
    try:
        value = json.loads(read_file(path).decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path}: not JSON ({error}); it may be cut short: fetch it again") from (
            error
        )
    if not isinstance(value, kind):
        wanted = "an object" if kind is dict else "a list"
        raise DataError(f"{path}: expected {wanted}, found {type(value).__name__}; check the file")
    return value


def read_table(path: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Yields (place, row) of a tab-separated table with a header line, as pandas writes it.

    Raises:
        DataError: it cannot be read, or a row has too few or too many cells.
    """
    csv.field_size_limit(1 << 30)  # images as base64 are longer than csv's default allows
    try:
        text = read_file(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 ({error}); fetch it again") from error
    rows = csv.DictReader(io.StringIO(text, newline=""), dialect="excel-tab")
    for number, row in enumerate(rows, 2):
        if None in row or None in row.values():
            raise DataError(
                f"{path}, row {number}: not as many cells as the header; fetch it again"
            )
        yield f"{path}, row {number}", row


def require(where: str, record: Any, name: str, kind: type | tuple[type, ...] = str) -> Any:
    """A field of one record, which must be of a kind; a text must not be empty.

    Raises:
        DataError: it is not.
    """
    value = record.get(name) if isinstance(record, dict) else None
    if not isinstance(value, kind) or isinstance(value, bool) or value == "":
        raise DataError(f"{where}: field {name!r} is {value!r}; the file is not what it should be")
    return value
