"""MMBench, SEED-Bench and ScienceQA: questions answered with a letter.

What lives here: reading their files, and writing answer files for their own scorers. What does
not: reading a letter from an answer (`seva_jax/evals/choice.py`). Read next: `judged.py`.
"""

from __future__ import annotations

import dataclasses
import string
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from typing_extensions import override

from seva_jax.evals.answers import LETTERS, Answer, llava_line, write_tsv
from seva_jax.evals.base import meta_fields
from seva_jax.evals.choice import (
    LETTER_SUFFIX,
    BareParser,
    MultipleChoice,
    ScienceParser,
    with_options,
)
from seva_jax.evals.exact import Unscored
from seva_jax.evals.files import read_json, write_records
from seva_jax.evals.suite import Benchmark, Questions, base64_loader, read_table, require
from seva_jax.ranges import FROM_1
from seva_jax.text.templates import IMAGE_MARKER
from seva_jax.types import DataError, Prompt

_CIRCULAR = 1_000_000  # copies of question i with rotated options have the indices i + k * 1e6
_GROUPS = ("l2-category", "split")


@dataclasses.dataclass(frozen=True)
class MMBench(Benchmark):
    """MMBench, and every table of the same format (VLMEvalKit's multiple-choice data sets).

    The table has the header `index, question, hint, A, B, C, D, answer, category, image, ...` and
    holds images as base64. Circular accuracy is reported if questions are repeated with rotated
    options (index + k * 1e6). The test split has no answers, so it is not scored.

    Answer files: `answers.jsonl` with `round_id, options, option_char`, as LLaVA writes it;
    `submission.tsv` (`index, question, A-D, answer, category, prediction`), which
    `pandas.read_table(...).to_excel(...)` turns into the workbook that MMBench's server expects.

    Attributes:
        path: the table, for example mmbench_dev_20230712.tsv.
        suffix: put after every question; by default LLaVA's request for a letter. LLaVA uses
            another one for the Chinese tables.
    """

    name: str = "mmbench"
    path: str = ""
    suffix: str = dataclasses.field(default=LETTER_SUFFIX, kw_only=True)
    max_new_tokens: Annotated[int, FROM_1] = dataclasses.field(default=128, kw_only=True)

    @override
    def open(self) -> Questions:
        prompts, images = [], {}
        for where, row in read_table(self.path):
            index = require(where, row, "index")
            if not index.isdecimal():
                raise DataError(f"{where}: index is {index!r}; it must be a whole number")
            options, hint = _options(where, row), row.get("hint", "")
            question = require(where, row, "question")
            hinted = hint.strip().lower() not in _NO_HINT
            asked = with_options(f"{hint}\n{question}" if hinted else question, options)
            images[index] = require(where, row, "image")
            number = int(index)
            meta = {
                "question_id": number,
                "index": number,
                "group": number % _CIRCULAR,
                "asked": asked,
                "plain_question": question,
                "options": options,
            }
            known = ("answer", "category", *_GROUPS)
            meta |= {k: row[k] for k in known if _present(row.get(k, ""))}
            prompts.append(Prompt(index, asked + self.suffix, (index,), meta))
        loader = base64_loader(self.path, images)
        if any("answer" in prompt.meta for prompt in prompts):
            return self.questions(prompts, MultipleChoice(self.name), [self.path], (), loader)
        notes = ["the table has no answers, so nothing is scored; submit submission.tsv instead"]
        return self.questions(prompts, Unscored(self.name), [self.path], notes, loader)

    @override
    def write_answers(self, folder: Path, model_id: str, answers: Sequence[Answer]) -> None:
        super().write_answers(folder, model_id, answers)
        lines = []
        for answer in answers:
            options, round_id = answer.prompt.meta["options"], answer.question_id // _CIRCULAR
            chars = list(LETTERS[: len(options)])
            more = {"options": options, "option_char": chars, "round_id": round_id}
            lines.append(llava_line(answer, model_id, **more))
        write_records(folder / "answers.jsonl", lines)
        write_tsv(folder / "submission.tsv", answers, super().columns)

    @override
    def columns(self, prompt: Prompt) -> dict[str, str]:
        """Adds the columns by which VLMEvalKit also groups: parent category and split."""
        return super().columns(prompt) | meta_fields(prompt, *_GROUPS)


_NO_HINT = ("", "na", "n/a", "nan", "none", "null")
"""What pandas and then LLaVA's script take for no hint."""


def _options(where: str, row: dict[str, str]) -> list[str]:
    """Returns the texts of options A, B, ...; "None" and "N/A" are texts, an empty cell is none.

    LLaVA's and VLMEvalKit's scripts read the table with pandas, which takes such texts for empty
    cells, so there the option is lost and, for LLaVA, all options behind it.
    """
    given = [letter for letter in string.ascii_uppercase if _present(row.get(letter, ""))]
    if len(given) < 2:
        raise DataError(f"{where}: fewer than two options in columns A, B, ...")
    if given != list(LETTERS[: len(given)]):
        raise DataError(
            f"{where}: has the options {', '.join(given)}; they must be A, B, ... without a gap, "
            f"{LETTERS[-1]} at most"
        )
    return [row[letter] for letter in given]


def _present(cell: str) -> bool:
    return bool(cell.strip())


@dataclasses.dataclass(frozen=True)
class SeedBench(Benchmark):
    """SEED-Bench, questions about images: accuracy over all and within each of its dimensions.

    An answer must be the bare letter, as for LLaVA's `convert_seed_for_submission.py`; `free:
    accuracy` also accepts answers such as "A. A dog".

    Answer files: `answers.jsonl`, for that script; `seed.jsonl` (`question_id, prediction`) for the
    leaderboard.

    Attributes:
        path: SEED-Bench.json.
        suffix: put after every question; by default LLaVA's request for a letter.
    """

    name: str = "seed"
    path: str = ""
    suffix: str = dataclasses.field(default=LETTER_SUFFIX, kw_only=True)
    max_new_tokens: Annotated[int, FROM_1] = dataclasses.field(default=128, kw_only=True)

    @override
    def open(self) -> Questions:
        data = read_json(self.path, dict)
        kinds = {number: name for name, number in data.get("question_type", {}).items()}
        prompts, num_videos = [], 0
        for place, record in enumerate(require(self.path, data, "questions", list)):
            where = f"{self.path}, entry {place} of questions"
            if require(where, record, "data_type") != "image":
                num_videos += 1
                continue
            id_ = str(require(where, record, "question_id", (str, int)))
            options = [require(where, record, f"choice_{x}") for x in "abcd"]
            asked = with_options(require(where, record, "question"), options) + self.suffix
            meta = {
                "question_id": int(id_) if id_.isdecimal() else id_,
                "options": options,
                "answer": require(where, record, "answer"),
                "category": str(kinds.get(record.get("question_type_id"), "")),
            }
            prompts.append(Prompt(id_, asked, (require(where, record, "data_id"),), meta))
        notes = [f"images only: {num_videos} questions on videos left out"] if num_videos else []
        evaluator = MultipleChoice(self.name, parser=BareParser())
        return self.questions(prompts, evaluator, [self.path], [*notes, _parsers(evaluator)])

    @override
    def write_answers(self, folder: Path, model_id: str, answers: Sequence[Answer]) -> None:
        super().write_answers(folder, model_id, answers)
        lines = ({"question_id": a.question_id, "prediction": a.text} for a in answers)
        write_records(folder / "seed.jsonl", lines)


@dataclasses.dataclass(frozen=True)
class ScienceQA(Benchmark):
    """ScienceQA: accuracy over all questions, over those with an image, by subject and by grade.

    Letters are read by the rule of LLaVA's `eval_science_qa.py`; `free: accuracy` reads more ways
    of giving one.

    Answer file: `answers.jsonl`, for LLaVA's `eval_science_qa.py`, which recognises questions with
    an image by `<image>` in the prompt.

    Attributes:
        path: LLaVA's llava_test_CQM-A.json, the questions as LLaVA asks them.
        problems: problems.json of ScienceQA, with the answers.
        suffix: put after every question; by default LLaVA's request for a letter.
    """

    name: str = "scienceqa"
    path: str = ""
    problems: str = ""
    suffix: str = dataclasses.field(default=LETTER_SUFFIX, kw_only=True)
    max_new_tokens: Annotated[int, FROM_1] = dataclasses.field(default=128, kw_only=True)

    @override
    def open(self) -> Questions:
        problems = read_json(self.problems, dict)
        prompts = []
        for place, record in enumerate(read_json(self.path, list)):
            where = f"{self.path}, entry {place}"
            id_ = str(require(where, record, "id", (str, int)))
            problem, source = problems.get(id_), f"{self.problems}, problem {id_}"
            turns = require(where, record, "conversations", list)
            value = require(f"{where}, its first turn", turns[0] if turns else None, "value")
            asked = value.replace(IMAGE_MARKER, "").strip() + self.suffix
            images = (require(where, record, "image"),) if record.get("image") else ()
            options = require(source, problem, "choices", list)
            answer = require(source, problem, "answer", int)
            if not 0 <= answer < len(options):
                raise DataError(f"{source}: answer {answer} is not the index of a choice")
            meta = {
                "question_id": id_,
                "asked": f"{IMAGE_MARKER}\n{asked}" if images else asked,
                "options": options,
                "answer": LETTERS[answer],
                "category": "with image" if images else "text only",
                "subject": str(problem.get("subject", "")),
                "grade": _grades(str(problem.get("grade", ""))),
            }
            prompts.append(Prompt(id_, asked, images, meta))
        by = ("category", "subject", "grade")
        evaluator = MultipleChoice(self.name, by, ScienceParser())
        return self.questions(prompts, evaluator, [self.path, self.problems], [_parsers(evaluator)])


def _parsers(evaluator: MultipleChoice) -> str:
    return f"letters read by {type(evaluator.parser).__name__}; free: FreeParser"


def _grades(grade: str) -> str:
    """Returns the group of grades as in published tables; "" if the grade is not a number."""
    number = grade.removeprefix("grade")
    if not number.isdecimal():
        return ""
    return "grades 1-6" if int(number) <= 6 else "grades 7-12"
