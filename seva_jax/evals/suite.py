"""The interface of a benchmark: questions, an evaluator, and answer files for other scorers.

What lives here: `Suite` (the extension point), `Questions`, and reading a benchmark's files with
errors that name the place. What does not: the benchmarks themselves (`suites/`), how an answer is
scored (`base.py` and the evaluators), asking the model (`seva_jax/run/evaluations.py`). Read next:
`suites/short_answers.py`.
"""

from __future__ import annotations

import base64
import collections
import csv
import dataclasses
import hashlib
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from typing_extensions import override

from seva_jax.data.collect import FolderImages
from seva_jax.data.sources import PromptSet
from seva_jax.evals.answers import Answer, write_llava, write_lmms_log, write_tsv
from seva_jax.evals.base import Evaluator, meta_fields
from seva_jax.evals.files import read_text
from seva_jax.images.load import FollowsLinks, decode_image
from seva_jax.ranges import FROM_0, FROM_1
from seva_jax.runtime.files import read_bytes
from seva_jax.runtime.stores import as_path
from seva_jax.types import DataError, Prompt


@dataclasses.dataclass(frozen=True)
class Questions(PromptSet):
    """Prompts with known answers, and how they are scored.

    Attributes:
        evaluator: scores the answers.
        files: SHA-256 of every file that was read, by path, but not of images.
        notes: what readers of the numbers should know, such as which variant of a file was used.
    """

    evaluator: Evaluator = dataclasses.field(kw_only=True)
    files: Mapping[str, str] = dataclasses.field(default_factory=dict, kw_only=True)
    notes: tuple[str, ...] = dataclasses.field(default=(), kw_only=True)


@dataclasses.dataclass(frozen=True)
class Suite:
    """Base class: one set of questions and their scoring. Subclass to add a benchmark.

    Attributes:
        max_new_tokens: maximum length of an answer in tokens. Decoding is greedy.
    """

    max_new_tokens: Annotated[int, FROM_1] = dataclasses.field(default=64, kw_only=True)

    @property
    def name(self) -> str:
        """Names files and rows of tables; unique within a run."""
        raise NotImplementedError(f"{type(self).__name__} must define name")

    def open(self) -> Questions:
        """Reads the files.

        Raises:
            DataError: a file cannot be read or has unexpected contents; names file and place.
        """
        raise NotImplementedError(f"{type(self).__name__} must define open")

    def write_answers(self, folder: Path, model_id: str, answers: Sequence[Answer]) -> None:
        """Writes the answers for LLaVA's scripts; benchmarks add files for their own scorers.

        Args:
            folder: an existing folder.
            model_id: name of the model, for files that mention it.
            answers: one for every question, in file order; the text is "" if there is no answer.
        """
        write_llava(folder / "answers.jsonl", model_id, answers)


def open_suite(suite: Suite) -> Questions:
    """Opens a suite; exceptions that unexpected file contents cause become a `DataError`.

    Raises:
        DataError: as `Suite.open`.
    """
    try:
        return suite.open()
    except DataError:
        raise
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
        raise DataError(
            f"{suite.name}: a file has unexpected contents ({type(error).__name__}: "
            f"{str(error)[:200]}); fetch the benchmark's files again"
        ) from error


@dataclasses.dataclass(frozen=True)
class Benchmark(FollowsLinks, Suite):
    """Base class of the published benchmarks.

    A broken line in a benchmark's file is an error, because the rest is no longer that benchmark.
    A question whose image is missing or unreadable is counted and left out of the score; in the
    answer files it has an empty answer, because some scorers align by order.

    Attributes:
        name: names files and rows of tables; unique within a run.
        image_root: the folder that image names are relative to.
        suffix: put after every question. It changes the scores, so use the same one to compare.
        limit: ask only the first questions, at most this many, for a quick trial; 0 asks all.
        lmms_task: the task's name in lmms-eval, to write answers for its `from_log` model; empty
            writes none. lmms-eval finds answers by their index, so set it only if the questions
            have the order of lmms-eval's data set.
        vlmeval_dataset: the data set's name in VLMEvalKit, to write its table of answers; empty
            writes none.
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
        """Returns the prompts, at most `limit`, with the hashes of the files they came from.

        Args:
            prompts: the prompts, in file order.
            evaluator: scores the answers.
            files: the files they were read from; empty paths are ignored.
            notes: see `Questions`.
            load_image: loads an image by name; None loads image files below `image_root`.

        Raises:
            DataError: there are no prompts, an id appears twice, or there is no image folder.
        """
        if not prompts:
            raise DataError(f"{self.name}: {files[0]} has no questions; fetch the file again")
        for id_, num in collections.Counter(prompt.id for prompt in prompts).items():
            if num > 1:
                raise DataError(f"{self.name}: question {id_!r} is in {files[0]} twice; remove one")
        if self.limit < 0:
            raise DataError(f"{self.name}: limit must be 0 (all) or more, not {self.limit}")
        if 0 < self.limit < len(prompts):
            notes = [*notes, f"only the first {self.limit} of {len(prompts)} questions"]
        folder = None
        if load_image is None:
            folder = folder_images(self.name, self.image_root, self.link_roots)
            load_image = folder.load
        return Questions(
            list(prompts)[: self.limit or None],
            load_image,
            remote=folder is not None and folder.remote,
            read_size=folder.size if folder else None,
            evaluator=evaluator,
            files={path: hashlib.sha256(read_bytes(path)).hexdigest() for path in files if path},
            notes=tuple(notes),
        )

    @override
    def write_answers(self, folder: Path, model_id: str, answers: Sequence[Answer]) -> None:
        """Also writes the files for VLMEvalKit and lmms-eval."""
        super().write_answers(folder, model_id, answers)
        if self.vlmeval_dataset:
            write_tsv(folder / f"{model_id}_{self.vlmeval_dataset}.tsv", answers, self.columns)
        if self.lmms_task:
            write_lmms_log(folder / "lmms_eval.json", self.lmms_task, model_id, answers)

    def columns(self, prompt: Prompt) -> dict[str, str]:
        """Returns what VLMEvalKit's scorer of the benchmark needs about a question, by column."""
        return {k: str(value) for k, value in meta_fields(prompt, "answer", "category").items()}


def folder_images(name: str, root: str, link_roots: Sequence[str] = ()) -> FolderImages:
    """Returns access to images below a folder, which refuses paths outside it.

    Args:
        name: name of the benchmark, for errors.
        root: the folder.
        link_roots: folders that symbolic links in it may lead to.

    Raises:
        DataError: there is no such folder.
    """
    if not root or not as_path(root).is_dir():
        raise DataError(f"{name}: image_root {root!r} is not a folder; give the folder of images")
    return FolderImages(root, tuple(link_roots))


def base64_loader(where: str, images: Mapping[str, str]) -> Callable[[str], np.ndarray]:
    """Returns a loader for images that a table holds as base64.

    Args:
        where: names the table in errors.
        images: base64 text by image name. A short text is instead the name of another image to
            use, as in VLMEvalKit's tables.
    """

    def load(name: str) -> np.ndarray:
        text = images[name]
        text = images.get(text, text) if len(text) <= 64 else text
        try:
            data = base64.b64decode(text, validate=True)
        except ValueError:
            data = b""  # decode_image refuses it like any other data that is not an image
        return decode_image(data, name=f"{where}, image {name}")

    return load


def read_table(path: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Yields (place, row) of a tab-separated table with a header line, as pandas writes it.

    Raises:
        DataError: the file cannot be read, or a row has too few or too many cells.
    """
    csv.field_size_limit(1 << 30)  # images as base64 exceed csv's default limit
    rows = csv.DictReader(io.StringIO(read_text(path), newline=""), dialect="excel-tab")
    for number, row in enumerate(rows, 2):
        where = f"{path}, row {number}"
        if None in row or None in row.values():
            raise DataError(f"{where}: not as many cells as the header; fetch it again")
        yield where, row


def require(where: str, record: Any, name: str, kind: type | tuple[type, ...] = str) -> Any:
    """Returns a field of a record, which must have the given type; a string must not be empty.

    Raises:
        DataError: the field is missing or something else; the message begins with `where`.
    """
    value = record.get(name) if isinstance(record, dict) else None
    if not isinstance(value, kind) or isinstance(value, bool) or value == "":
        raise DataError(f"{where}: field {name!r} is {value!r}; check that it is the right file")
    return value
