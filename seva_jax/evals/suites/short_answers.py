"""POPE, GQA and TextVQA: questions answered with a word or two.

What lives here: reading their files, and writing answer files for their own scorers. Read next:
`multiple_choice.py`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from typing_extensions import override

from seva_jax.evals.answers import Answer
from seva_jax.evals.base import Ratio, Record, each_category, meta_fields
from seva_jax.evals.exact import ExactAnswer
from seva_jax.evals.files import read_json, read_objects
from seva_jax.evals.pope import SHORT_ANSWER_SUFFIX, AnswerParser, LlavaParser, Pope, load_pope
from seva_jax.evals.suite import Benchmark, Questions, require
from seva_jax.evals.vqa import Vqa
from seva_jax.ranges import FROM_1
from seva_jax.runtime.files import write_json, write_lines
from seva_jax.runtime.stores import as_path
from seva_jax.types import DataError, Prompt

_SETS = ("random", "popular", "adversarial")


@dataclasses.dataclass(frozen=True)
class PopeSets(Benchmark):
    """POPE: three sets of yes/no questions about which objects are in an image.

    Every set is scored against its own labels. COCO's random set has 3,000 questions today and had
    2,910 when LLaVA-1.5 was published. This moves the score, so the result says which file was
    used.

    Answer files: `answers.jsonl` and `questions.jsonl`, which LLaVA's `eval_pope.py` takes as
    --result-file and --question-file; `pope_SET.jsonl` with the field `answer`, for POPE's own
    scorer and SeVa's.

    Attributes:
        folder: holds one file for each set, as POPE publishes them for COCO
            (coco_pope_random.json, ...), GQA (gqa_pope_seem_random.json, ...) and A-OKVQA; or one
            such file, which is the only one asked. The end of its name says which set it is.
        sets: which sets of a folder to ask: random, popular, adversarial.
        parser: reads yes or no from an answer; the numbers of `WordParser` are reported as well.
        suffix: put after every question; by default LLaVA's request for a short answer, which
            POPE's own questions do not have.
    """

    name: str = "pope"
    folder: str = ""
    sets: tuple[str, ...] = _SETS
    parser: AnswerParser = LlavaParser()
    suffix: str = dataclasses.field(default=SHORT_ANSWER_SUFFIX, kw_only=True)
    vlmeval_dataset: str = dataclasses.field(default="POPE", kw_only=True)
    max_new_tokens: Annotated[int, FROM_1] = dataclasses.field(default=128, kw_only=True)

    @override
    def open(self) -> Questions:
        prompts: list[Prompt] = []
        files, notes = [], [f"read by {type(self.parser).__name__}; words: WordParser"]
        for category in self._categories():
            files.append(self._file(category))
            of_set = load_pope(files[-1], category=category, suffix=self.suffix)
            about = f"{len(of_set):,} questions{_variant(category, len(of_set))}"
            notes.append(f"{category}: {about}" if category else about)
            for prompt in of_set:
                # LLaVA's scorer finds a question's set by its id, so ids are unique over all sets.
                meta = prompt.meta | {"question_id": len(prompts)}
                prompts.append(dataclasses.replace(prompt, meta=meta))
        return self.questions(prompts, Pope(self.name, self.parser, also_words=True), files, notes)

    @property
    def _is_file(self) -> bool:
        return bool(self.folder) and as_path(self.folder).is_file()

    def _categories(self) -> tuple[str, ...]:
        """Returns the names of the sets; "" for a file whose name does not say which it is."""
        if not self._is_file:
            return self.sets
        stem = as_path(self.folder).stem
        return (next((x for x in _SETS if stem.endswith(x)), ""),)

    def _file(self, category: str) -> str:
        if self._is_file:
            return self.folder
        found = sorted(as_path(self.folder).glob(f"*pope*_{category}.json"))
        if len(found) != 1:
            names = ", ".join(path.name for path in found) or "none"
            raise DataError(
                f"{self.name}: {self.folder or '.'} must hold one file such as "
                f"coco_pope_{category}.json; there are: {names}"
            )
        return str(found[0])

    @override
    def write_answers(self, folder: Path, model_id: str, answers: Sequence[Answer]) -> None:
        super().write_answers(folder, model_id, answers)
        questions = (
            {"question_id": a.question_id, "image": a.prompt.images[0], "text": a.asked}
            | meta_fields(a.prompt, "category")
            for a in answers
        )
        write_lines(folder / "questions.jsonl", questions)
        for category in self._categories():
            of_set = [a for a in answers if a.prompt.meta.get("category", "") == category]
            of_set = list(answers) if self._is_file else of_set
            lines = ({"question": a.asked, "answer": a.text} for a in of_set)
            write_lines(folder / (f"pope_{category}.jsonl" if category else "pope.jsonl"), lines)

    @override
    def columns(self, prompt: Prompt) -> dict[str, str]:
        """Capitalises the answer: VLMEvalKit knows Yes and No only."""
        return super().columns(prompt) | {"answer": prompt.meta["answer"].capitalize()}


def _variant(category: str, num: int) -> str:
    if not category:
        return ""
    if category == "random" and num == 2910:
        return ", the file LLaVA-1.5 was published with"
    return "" if num == 3000 else ", which is neither 3,000 nor LLaVA-1.5's 2,910 (random only)"


@dataclasses.dataclass(frozen=True)
class GqaAnswer(ExactAnswer):
    """Exact match, over all questions and within each of GQA's question types.

    As GQA's eval.py counts what LLaVA's `convert_gqa_for_eval.py` gives it: the answer in lower
    case without final dots equals the true answer, letter by letter.
    """

    name: str = "gqa"

    @override
    def definitions(self, prompts: Sequence[Prompt]) -> dict[str, Ratio]:
        """Returns `accuracy`, also within each structural and semantic type."""
        accuracy = {"accuracy": Ratio("higher", ("correct",), ("count",))}
        return accuracy | each_category(accuracy, prompts, "types")

    @override
    def score(self, prompt: Prompt, answer: str) -> Record:
        correct = gqa_prediction(answer.strip()) == self.truth(prompt)
        return meta_fields(prompt, "question_id", "types") | {"correct": int(correct)}


def gqa_prediction(text: str) -> str:
    """Returns an answer as LLaVA hands it to GQA's eval.py."""
    return text.rstrip(".").lower()


@dataclasses.dataclass(frozen=True)
class GQA(Benchmark):
    """GQA, test-dev balanced: exact match, ignoring the answer's case and final dots.

    Answer file: `gqa.json`, `[{"questionId", "prediction"}]`, for GQA's eval.py.

    Attributes:
        path: testdev_balanced_questions.json of GQA's questions1.2.zip.
        suffix: put after every question; by default LLaVA's request for a short answer.
    """

    name: str = "gqa"
    path: str = ""
    suffix: str = dataclasses.field(default=SHORT_ANSWER_SUFFIX, kw_only=True)
    max_new_tokens: Annotated[int, FROM_1] = dataclasses.field(default=128, kw_only=True)

    @override
    def open(self) -> Questions:
        prompts = []
        for id_, record in read_json(self.path, dict).items():
            field = functools.partial(require, f"{self.path}, question {id_}", record)
            types = (record.get("types") if isinstance(record, dict) else None) or {}
            kinds = (types.get("structural"), types.get("semantic"))
            named = [kind for kind in kinds if kind and isinstance(kind, str)]
            meta = {"question_id": id_, "answer": field("answer"), "types": named}
            question, image = field("question") + self.suffix, f"{field('imageId')}.jpg"
            prompts.append(Prompt(id_, question, (image,), meta))
        return self.questions(prompts, GqaAnswer(self.name), [self.path])

    @override
    def write_answers(self, folder: Path, model_id: str, answers: Sequence[Answer]) -> None:
        super().write_answers(folder, model_id, answers)
        predictions = [
            {"questionId": a.question_id, "prediction": gqa_prediction(a.text)} for a in answers
        ]
        write_json(folder / "gqa.json", predictions)


@dataclasses.dataclass(frozen=True)
class TextVQA(Benchmark):
    """TextVQA, validation: VQA accuracy against the answers of ten people.

    LLaVA's questions include text recognised in the image (OCR tokens); they come from LLaVA's
    own file. Without that file the plain questions are asked, and the numbers are not comparable
    with LLaVA's.

    Answer file: `answers.jsonl`, for LLaVA's `eval_textvqa.py`, which finds a question by its image
    and wording.

    Attributes:
        path: TextVQA_0.5.1_val.json, with the answers of ten people to each question.
        questions_path: LLaVA's llava_textvqa_val_v051_ocr.jsonl; empty asks the plain questions.
        suffix: put after plain questions; the questions in LLaVA's file have their own.
    """

    name: str = "textvqa"
    path: str = ""
    questions_path: str = ""
    suffix: str = dataclasses.field(default=SHORT_ANSWER_SUFFIX, kw_only=True)
    max_new_tokens: Annotated[int, FROM_1] = dataclasses.field(default=128, kw_only=True)

    @override
    def open(self) -> Questions:
        data = require(self.path, read_json(self.path, dict), "data", list)
        people: dict[tuple[str, str], list[str]] = {}
        asked, note = [], "plain questions, without recognised text"
        for number, record in enumerate(data):
            field = functools.partial(require, f"{self.path}, entry {number} of data", record)
            image, question = field("image_id"), field("question")
            people[image, question.lower()] = field("answers", list)
            asked.append((image, f"{image}.jpg", question + self.suffix, question))
        if self.questions_path:
            asked, note = [], "questions with recognised text, as LLaVA asks"
            for where, line in read_objects(self.questions_path):
                field = functools.partial(require, where, line)
                text = field("text")
                asked.append((field("question_id"), field("image"), text, text.split("\n")[0]))
        prompts = []
        for number, (image_id, file, text, question) in enumerate(asked):
            answers = people.get((image_id, question.lower()))
            if answers is None:
                raise DataError(
                    f"{self.questions_path}: question {question!r} on image {image_id} is not in "
                    f"{self.path}; use two files of the same version"
                )
            meta = {"question_id": image_id, "people": answers}
            prompts.append(Prompt(f"{number}-{image_id}", text, (file,), meta))
        return self.questions(prompts, Vqa(self.name), [self.path, self.questions_path], [note])
