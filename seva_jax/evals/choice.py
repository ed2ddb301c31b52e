"""Multiple-choice questions answered with a letter.

What lives here: the parsers that read a letter from an answer, and `MultipleChoice`. What does not:
the benchmarks' files (`suites/multiple_choice.py`). Read next: `vqa.py`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

from typing_extensions import override

from seva_jax.evals.answers import LETTERS
from seva_jax.evals.base import Evaluator, Ratio, Record, each_category, meta_fields
from seva_jax.evals.exact import normalise
from seva_jax.types import DataError, Prompt

LETTER_SUFFIX = "\nAnswer with the option's letter from the given choices directly."
"""LLaVA's suffix for multiple-choice questions."""

_ALONE = re.compile(r"\(?([A-J])\)?[.:]?")
_FIRST = re.compile(r"(?:\(([A-J])\)|([A-J])[.:)])\s")
# A and I are also words: they count if parentheses, a punctuation mark or the end sets them off.
_STATED = re.compile(
    r"(?i:answer\s*(?:is|:)\s*(?:option\s*)?)"
    r"(?:\(([A-J])\)|([B-HJ])\b|([AI])(?=[.,:;)]|\s*$))"
)
_SCIENCE = re.compile(r"The answer is ([A-Z]).")  # LLaVA: the dot stands for any character


def with_options(question: str, options: Sequence[str]) -> str:
    r"""Returns the question with its options listed below, as LLaVA formats them.

    >>> with_options("Which?", ["one", "two"])
    'Which?\nA. one\nB. two'
    """
    lines = [f"{LETTERS[i]}. {option}" for i, option in enumerate(options)]
    return "\n".join([question, *lines])


@dataclasses.dataclass(frozen=True)
class LetterParser:
    """Reads a letter from an answer. The parser moves a score: report it."""

    def __call__(self, text: str, options: Sequence[str]) -> str:
        """Returns the letter of the option that an answer chooses, or "".

        Args:
            text: the answer, without surrounding whitespace.
            options: texts of options A, B, ...
        """
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class FreeParser(LetterParser):
    """Reads letters in the ways that models give them.

    The first of these rules that applies decides:

    1. The whole answer is a letter, perhaps in parentheses, with a dot or colon: `B`, `(B)`, `B.`.
    2. It begins with a letter that is set off by a dot, colon or parenthesis: `B. A dog`.
    3. It says "answer is" or "answer:" before a letter: `The answer is B`. The words A and I are
       letters only if parentheses, a punctuation mark or the end sets them off.
    4. It is the text of exactly one option, ignoring case and a final dot.

    Letters are capitals and must belong to an option.

    >>> FreeParser()("The answer is (C).", ["a", "b", "c"]), FreeParser()("A dog", ["Dog", "Cat"])
    ('C', '')
    """

    @override
    def __call__(self, text: str, options: Sequence[str]) -> str:
        for match in (_ALONE.fullmatch(text), _FIRST.match(text), _STATED.search(text)):
            if match:
                letter = next(group for group in match.groups() if group)
                return letter if LETTERS.index(letter) < len(options) else ""
        same = [i for i, option in enumerate(options) if normalise(option) == normalise(text)]
        return LETTERS[same[0]] if len(same) == 1 else ""


@dataclasses.dataclass(frozen=True)
class BareParser(LetterParser):
    """The rule of LLaVA's `convert_seed_for_submission.py`: the answer is the letter.

    >>> BareParser()("B", ["a", "b"]), BareParser()("B.", ["a", "b"])
    ('B', '')
    """

    @override
    def __call__(self, text: str, options: Sequence[str]) -> str:
        return text if text in set(LETTERS[: len(options)]) else ""


@dataclasses.dataclass(frozen=True)
class ScienceParser(LetterParser):
    """The rule of LLaVA's `eval_science_qa.py`.

    The answer is a letter, or begins with a letter, a dot and a blank, or says exactly once "The
    answer is" before a letter and any further character; so the first letter of "The answer is A
    dog" counts. Letters are A to E.

    >>> parser, options = ScienceParser(), ["a", "b"]
    >>> parser("B. b", options), parser("The answer is B.", options), parser("B.", options)
    ('B', 'B', '')
    """

    @override
    def __call__(self, text: str, options: Sequence[str]) -> str:
        if text in set("ABCDE") or (len(text) >= 3 and text[0] in "ABCDE" and text[1:3] == ". "):
            letter = text[0]
        else:
            stated = _SCIENCE.findall(text)
            letter = stated[0] if len(stated) == 1 else ""
        return letter if letter in set("ABCDE"[: len(options)]) else ""


@dataclasses.dataclass(frozen=True)
class MultipleChoice(Evaluator):
    """Accuracy of the chosen letters; `meta` holds `options` (texts) and `answer` (a letter).

    Metrics: `accuracy`; `unparsed`, the share of answers without a letter, which count as wrong;
    `accuracy` within every category of the fields in `by`; with a parser other than `FreeParser`
    also `free: accuracy` and `free: unparsed` by that one.

    Prompts that share `meta["group"]` are one question asked with its options in several orders
    (MMBench's circular evaluation, Liu et al. 2023, arXiv 2307.06281, section 4.1). If there are
    any, `circular_accuracy` is the share of questions answered right in every order.

    Attributes:
        by: fields of `meta` that hold a category or a list of several; accuracy is also reported
            within each category.
        parser: reads a letter from an answer.
    """

    name: str = "multiple-choice"
    by: tuple[str, ...] = ("category",)
    parser: LetterParser = FreeParser()

    @override
    def truth(self, prompt: Prompt) -> str:
        answer, options = prompt.meta.get("answer"), prompt.meta.get("options", ())
        if not isinstance(answer, str) or answer not in set(LETTERS[: len(options)]):
            raise DataError(
                f"{self.name}: prompt {prompt.id!r} has the answer {answer!r} and {len(options)} "
                "options; the answer must be the letter of an option"
            )
        return answer

    @override
    def definitions(self, prompts: Sequence[Prompt]) -> dict[str, Ratio]:
        accuracy = {"accuracy": Ratio("higher", ("correct",), ("count",))}
        metrics = dict(accuracy)
        groups = [prompt.meta.get("group") for prompt in prompts]
        if len(set(groups)) < len(groups) and None not in groups:
            metrics["circular_accuracy"] = Ratio("higher", ("all_correct",), ("asked_first",))
        metrics["unparsed"] = Ratio("lower", ("unparsed",), ("count",))
        if self.parser != FreeParser():
            metrics["free: accuracy"] = Ratio("higher", ("free_correct",), ("count",))
            metrics["free: unparsed"] = Ratio("lower", ("free_unparsed",), ("count",))
        for field in self.by:
            metrics |= each_category(accuracy, prompts, field)
        return metrics

    @override
    def score(self, prompt: Prompt, answer: str) -> Record:
        """Returns the letter as `parsed`, 0/1 fields `correct, unparsed`, and the categories."""
        text, options, truth = answer.strip(), prompt.meta["options"], self.truth(prompt)
        record = meta_fields(prompt, *self.by, "question_id", "group")
        parsers = {"": self.parser} | (
            {} if self.parser == FreeParser() else {"free_": FreeParser()}
        )
        for prefix, parser in parsers.items():
            letter = parser(text, options)
            record |= {
                f"{prefix}parsed": letter,
                f"{prefix}correct": int(letter == truth),
                f"{prefix}unparsed": int(not letter),
            }
        return record | {"asked_first": 0, "all_correct": 0}

    @override
    def scores(self, prompts: Sequence[Prompt], answers: Sequence[str]) -> list[Record]:
        """Returns `score` of every answer; the first record of a group holds the group's score."""
        records = super().scores(prompts, answers)
        groups: dict[object, list[Record]] = {}
        for prompt, record in zip(prompts, records, strict=True):
            groups.setdefault(prompt.meta.get("group", prompt.id), []).append(record)
        for group in groups.values():
            group[0]["asked_first"] = 1
            group[0]["all_correct"] = int(all(record["correct"] for record in group))
        return records
