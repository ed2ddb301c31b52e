"""Questions of your own with known answers, and files of questions recognised by their fields.

What lives here: `OwnQuestions` and `question_suite`. What does not: published benchmarks
(`short_answers.py` and others), and scoring (`exact.py`, `pope.py`, `choice.py` in
`seva_jax/evals`).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

from typing_extensions import override

from seva_jax.evals.answers import LETTERS
from seva_jax.evals.base import Evaluator, Ratio, Record, each_category, meta_fields
from seva_jax.evals.choice import LETTER_SUFFIX, MultipleChoice, with_options
from seva_jax.evals.exact import ExactAnswer, normalise
from seva_jax.evals.files import read_objects
from seva_jax.evals.pope import Pope
from seva_jax.evals.suite import Benchmark, Questions, Suite
from seva_jax.evals.suites.short_answers import PopeSets
from seva_jax.runtime.stores import as_path
from seva_jax.types import DataError, Prompt

FIELDS = {
    "id": ("id", "question_id"),
    "question": ("question", "text"),
    "image": ("image", "images"),
    "answer": ("answer", "label"),
    "choices": ("choices", "options"),
    "prior": ("prior",),
    "category": ("category",),
}
"""The fields of a question, each with the names that it may have in a file."""

_EXPECTED = "question (or text), image (or images) and answer (or label); optional: id, choices, "
_EXPECTED += "prior, category"


@dataclasses.dataclass(frozen=True)
class CategorisedAnswer(ExactAnswer):
    """Exact match as `ExactAnswer`, and accuracy within every `meta["category"]`."""

    @override
    def definitions(self, prompts: Sequence[Prompt]) -> dict[str, Ratio]:
        accuracy = {"accuracy": Ratio("higher", ("correct",), ("count",))}
        return super().definitions(prompts) | each_category(accuracy, prompts, "category")

    @override
    def score(self, prompt: Prompt, answer: str) -> Record:
        return meta_fields(prompt, "category") | super().score(prompt, answer)


@dataclasses.dataclass(frozen=True)
class OwnQuestions(Benchmark):
    """Your own questions with known answers: a JSON object on each line, or a JSON list of them.

    The fields of a question, with other names that they may have:

    - `question` (`text`).
    - `image`, the name of a file below `image_root`; or `images`, a list of names.
    - `answer` (`label`): the right answer, a text or a whole number.
    - `choices` (`options`): a list of the texts to choose from. The answer is one of them, or its
      letter, from A.
    - `prior`: the wrong answer that one would give without looking at the image. Where it is not
      the right answer, wrong answers are counted as `prior_errors` or `other_errors`.
    - `category`: a name; accuracy is also reported within each category.
    - `id` (`question_id`): a text or number; by default the question's place in the file, from 1.

    How the answers are scored follows from the file: with choices, by the letter (`FreeParser`); if
    every answer is yes or no and there is no prior, as POPE (accuracy, precision, recall, F1,
    yes-ratio; with categories, the mean over them); otherwise by exact match, ignoring case and a
    final dot.

    Attributes:
        path: the file.
        suffix: put after every question, for example a request for a short answer; if there are
            choices, empty puts LLaVA's request for a letter.
    """

    name: str = "questions"
    path: str = ""

    @override
    def open(self) -> Questions:
        records = list(read_objects(self.path))
        questions = [_Question(self.path, *record, i) for i, record in enumerate(records, start=1)]
        prompts = [question.prompt(self.suffix) for question in questions]
        for question in questions:
            if question.has("choices") != questions[0].has("choices"):
                raise question.error("some questions have choices and others not; use two files")
        evaluator, how = self._evaluator(prompts)
        used = {name for names in FIELDS.values() for name in names}
        unused = sorted({name for _, record in records for name in record} - used)
        notes = [f"scored {how}"] + ([f"fields not used: {', '.join(unused)}"] if unused else [])
        return self.questions(prompts, evaluator, [self.path], notes)

    def _evaluator(self, prompts: Sequence[Prompt]) -> tuple[Evaluator, str]:
        """Returns what scores the answers, and that in words."""
        if any("options" in prompt.meta for prompt in prompts):
            return MultipleChoice(self.name), "by the letter of the choice"
        answers = {normalise(prompt.meta["answer"]) for prompt in prompts}
        if answers <= {"yes", "no"} and not any("prior" in prompt.meta for prompt in prompts):
            return Pope(self.name, also_words=True), "as yes/no questions, like POPE"
        return CategorisedAnswer(self.name), "by exact match, ignoring case and a final dot"


@dataclasses.dataclass(frozen=True)
class _Question:
    """One object of a file of questions.

    Attributes:
        path: the file.
        where: its place in the file, for errors.
        record: its fields.
        number: its number, from 1.
    """

    path: str
    where: str
    record: dict[str, Any]
    number: int

    def get(self, field: str) -> Any:
        """Returns the value of a field under any of its names; null counts as absent."""
        values = (self.record.get(name) for name in FIELDS[field])
        return next((value for value in values if value is not None), None)

    def has(self, field: str) -> bool:
        """Returns whether the field is there and not null."""
        return self.get(field) is not None

    def error(self, message: str) -> DataError:
        """Returns an error that names the place."""
        return DataError(f"{self.where}: {message}")

    def text(self, field: str) -> str:
        """Returns the text, or the digits of the whole number, in a field that must be there."""
        value, names = self.get(field), " (or ".join(FIELDS[field])
        names += ")" * (len(FIELDS[field]) > 1)
        if value is None:
            there = ", ".join(str(name)[:40] for name in list(self.record)[:12]) or "no fields"
            raise self.error(
                f"there is no field {names}; the record has {there}; expected: {_EXPECTED}"
            )
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        if not isinstance(value, str) or not value.strip():
            raise self.error(f"{names} is {str(value)[:100]!r}; it must be a text, not empty")
        return value

    def prompt(self, suffix: str) -> Prompt:
        """Returns the question as the model is asked it."""
        asked, answer, meta = self.text("question"), self.text("answer"), {}
        for field in ("prior", "category"):
            if self.has(field):
                meta[field] = self.text(field)
        if self.has("choices"):
            options = self._options()
            meta |= {"answer": self._letter(answer, options), "options": options}
            meta["plain_question"] = asked
            asked = with_options(asked, options)
            suffix = suffix or LETTER_SUFFIX
        else:
            yes_no = normalise(answer) in ("yes", "no")
            meta["answer"] = normalise(answer) if yes_no else answer
        return Prompt(self._id(), asked + suffix, self._images(), meta)

    def _id(self) -> str:
        id_ = self.get("id")
        if id_ is None:
            return str(self.number)
        if isinstance(id_, bool) or not isinstance(id_, str | int) or id_ == "":
            raise self.error(f"id (or question_id) is {id_!r}; it must be a text or a whole number")
        return str(id_)

    def _images(self) -> tuple[str, ...]:
        images = self.get("image")
        names = [self.text("image")] if isinstance(images, str | None) else images
        if not isinstance(names, list) or not all(isinstance(x, str) and x for x in names):
            raise self.error(
                f"image (or images) is {str(images)[:100]!r}; it must be the name of a file, or a "
                "list of names"
            )
        return tuple(names)  # an empty list is a question without an image

    def _options(self) -> list[str]:
        options = self.get("choices")
        texts = isinstance(options, list) and all(isinstance(x, str) and x.strip() for x in options)
        if not texts or not 2 <= len(options) <= len(LETTERS):
            raise self.error(
                f"choices (or options) is {str(options)[:100]!r}; it must be a list of 2 to "
                f"{len(LETTERS)} texts, not empty"
            )
        if self.has("prior"):
            raise self.error("prior is for answers in words; leave out prior or choices")
        return options

    def _letter(self, answer: str, options: Sequence[str]) -> str:
        same = [i for i, option in enumerate(options) if normalise(option) == normalise(answer)]
        letter = answer.strip().upper()
        if len(same) != 1 and letter in list(LETTERS[: len(options)]):
            return letter
        if len(same) != 1:
            raise self.error(
                f"answer (or label) is {answer[:100]!r}; with choices it must be one of them, or "
                f"a letter from A to {LETTERS[len(options) - 1]}"
            )
        return LETTERS[same[0]]


def question_suite(path: str, image_root: str = "", suffix: str = "") -> Suite:
    """Returns the suite for a file of questions, named after the file.

    A file of POPE, whose objects have `text` and `label`, becomes a `PopeSets` of one set; any
    other file is read by `OwnQuestions`.

    Args:
        path: the file.
        image_root: folder that image names are relative to; empty for that of the file.
        suffix: put after every question; empty leaves the suite's default.

    Raises:
        DataError: the file cannot be read, is not JSON or has no question.
    """
    _, record = next(read_objects(path), ("", None))
    if record is None:
        raise DataError(
            f"{path}: has no questions; expected JSON objects, one per line or in a list, with the "
            f"fields {_EXPECTED}"
        )
    name = re.sub(r"[^\w.+-]+", "_", as_path(path).stem).lstrip(".") or "questions"
    more = {"suffix": suffix} if suffix else {}
    root = image_root or str(as_path(path).parent)
    if {"text", "label"} <= record.keys() and not {"question", "answer"} & record.keys():
        return PopeSets(name=name, folder=path, image_root=root, **more)
    return OwnQuestions(name=name, path=path, image_root=root, **more)
