"""Yes/no questions about objects, as POPE asks them.

What lives here: `Pope`, the parsers that read yes or no from an answer, and `load_pope`, which
reads POPE's files. What does not: other short answers (`exact.py`), and the benchmark of all three
sets (`suites/short_answers.py`). Read next: `table.py`, which compares models.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import ClassVar, Literal

from typing_extensions import override

from seva_jax.evals.base import Evaluator, Ratio, Record, meta_fields
from seva_jax.evals.files import PathLike, read_objects
from seva_jax.runtime.stores import as_path
from seva_jax.types import DataError, Prompt

SHORT_ANSWER_SUFFIX = "\nAnswer the question using a single word or phrase."
"""The suffix of LLaVA's own POPE questions; POPE's files do not have it."""


@dataclasses.dataclass(frozen=True)
class AnswerParser:
    """Reads yes or no from an answer. The parser moves POPE by tenths of a point: report it.

    Attributes:
        always_decides: whether the parser never returns "unparsed".
    """

    always_decides: ClassVar[bool] = False

    def __call__(self, text: str) -> Literal["yes", "no", "unparsed"]:
        """Returns what the answer says."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class LlavaParser(AnswerParser):
    r"""LLaVA's rule: "no" if the first sentence has the word `No`, `not` or `no`, else "yes".

    Commas are removed and words are split at single spaces only, so "NO", "isn't" and "Yes\nno"
    all count as yes, as they do in LLaVA's published numbers.

    >>> LlavaParser()("There is, no doubt. Yes."), LlavaParser()("Nothing")
    ('no', 'yes')
    """

    always_decides: ClassVar[bool] = True

    @override
    def __call__(self, text: str) -> Literal["yes", "no", "unparsed"]:
        words = text.split(".")[0].replace(",", "").split(" ")
        return "no" if {"No", "not", "no"} & set(words) else "yes"


@dataclasses.dataclass(frozen=True)
class WordParser(AnswerParser):
    """Whole words in any case: "yes" if there is a yes, else "no" if there is a no.

    A text with both counts as "yes", one with neither as "unparsed".

    >>> WordParser()("NO!"), WordParser()("Yes, no doubt"), WordParser()("Nothing")
    ('no', 'yes', 'unparsed')
    """

    @override
    def __call__(self, text: str) -> Literal["yes", "no", "unparsed"]:
        words = set(re.findall(r"\w+", text.lower()))
        return "yes" if "yes" in words else "no" if "no" in words else "unparsed"


@dataclasses.dataclass(frozen=True)
class Pope(Evaluator):
    """Yes/no questions; `meta["answer"]` is "yes" or "no". "Yes" is the positive class.

    POPE of Li et al., "Evaluating Object Hallucination in Large Vision-Language Models" (2023).
    Metrics: `accuracy`, `precision`, `recall`, `f1`, `yes_ratio`, and `unparsed` where the parser
    can fail. An unparsed answer is wrong: it never counts as a "yes", and it is a false negative
    if the truth is yes.

    With `meta["category"]` (random, popular, adversarial) each of the five is also reported per
    category, as `random/f1`, and the plain name is the unweighted mean over categories, which is
    how POPE is published.

    Attributes:
        parser: reads yes or no from an answer.
        also_words: also report what `WordParser` reads from the same answers, as `words: f1` etc.
    """

    name: str = "pope"
    parser: AnswerParser = LlavaParser()
    also_words: bool = False

    @override
    def truth(self, prompt: Prompt) -> str:
        answer = str(prompt.meta.get("answer", "")).strip().lower()
        if answer not in ("yes", "no"):
            raise DataError(
                f"{self.name}: prompt {prompt.id!r} has {prompt.meta.get('answer')!r} in "
                "meta['answer']; give yes or no, or leave the prompt out"
            )
        return answer

    @override
    def definitions(self, prompts: Sequence[Prompt]) -> dict[str, Ratio]:
        """Returns the metrics over all prompts or, with categories, for each one and their mean."""
        categories = tuple(dict.fromkeys(_category(prompt) for prompt in prompts))
        if "" in categories and len(categories) > 1:
            id_ = next(prompt.id for prompt in prompts if not _category(prompt))
            raise DataError(
                f"{self.name}: prompt {id_!r} has no meta['category'] but others do; "
                "give every prompt one, or none"
            )
        categories = tuple(c for c in categories if c)
        metrics = _ratios(self.parser, "", categories)
        if self.also_words:
            also = _ratios(WordParser(), "words_", categories)
            metrics |= {f"words: {name}": ratio for name, ratio in also.items()}
        return metrics

    @override
    def score(self, prompt: Prompt, answer: str) -> Record:
        """Returns what the parser read, and 0/1 fields `correct, tp, fp, fn, unparsed`."""
        truth = self.truth(prompt)
        record = meta_fields(prompt, "question_id") | {"category": _category(prompt)}
        parsers = {"": self.parser} | ({"words_": WordParser()} if self.also_words else {})
        for prefix, parser in parsers.items():
            parsed = parser(answer)
            record |= {
                f"{prefix}parsed": parsed,
                f"{prefix}correct": int(parsed == truth),
                f"{prefix}tp": int(parsed == "yes" and truth == "yes"),
                f"{prefix}fp": int(parsed == "yes" and truth == "no"),
                f"{prefix}fn": int(parsed != "yes" and truth == "yes"),
                f"{prefix}unparsed": int(parsed == "unparsed"),
            }
        return record


def _ratios(parser: AnswerParser, prefix: str, categories: tuple[str, ...]) -> dict[str, Ratio]:
    """Returns the metrics of one parser, whose record fields begin with `prefix`."""
    correct, tp, fp, fn = (f"{prefix}{field}" for field in ("correct", "tp", "fp", "fn"))
    plain = {
        "accuracy": Ratio("higher", (correct,), ("count",), categories),
        "precision": Ratio("higher", (tp,), (tp, fp), categories),
        "recall": Ratio("higher", (tp,), (tp, fn), categories),
        "f1": Ratio("higher", (tp, tp), (tp, tp, fp, fn), categories),
        "yes_ratio": Ratio("neither", (tp, fp), ("count",), categories),
    }
    metrics = dict(plain)
    if not parser.always_decides:
        metrics["unparsed"] = Ratio("lower", (f"{prefix}unparsed",), ("count",), categories)
    for category in categories:
        for name, ratio in plain.items():
            metrics[f"{category}/{name}"] = dataclasses.replace(ratio, categories=(category,))
    return metrics


def _category(prompt: Prompt) -> str:
    return str(prompt.meta.get("category") or "")


def load_pope(
    path: PathLike, image_folder: PathLike = "", category: str = "", suffix: str = ""
) -> list[Prompt]:
    """Reads one POPE file: objects with `question_id`, `image`, `text` and `label`.

    POPE's COCO files have one object per line, its GQA and A-OKVQA files are JSON arrays.

    Every set has labels of its own; SeVa's released code scores all three sets against those of
    the adversarial set. Add the lists to join several sets.

    Args:
        path: the file, for example `coco_pope_random.json`.
        image_folder: put in front of every image name.
        category: name of the set, for lines that have no `category` of their own.
        suffix: put after every question, for example `SHORT_ANSWER_SUFFIX`.

    Returns:
        Prompts with `question_id`, `answer` and, if known, `category` in `meta`. Their ids are
        `category-question_id`, because the three sets number their questions alike.

    Raises:
        DataError: the file cannot be read or has no question; or an object is not JSON, lacks a
            field, has a wrong value or repeats a question. The message names file and place.
    """
    prompts: dict[str, Prompt] = {}
    for where, line in read_objects(path):
        for field in ("image", "text", "label"):
            if not isinstance(line.get(field), str) or not line[field].strip():
                raise DataError(
                    f"{where}: field {field!r} is {line.get(field)!r}; it must be a non-empty "
                    "string"
                )
        question_id = line.get("question_id")
        if not isinstance(question_id, int | str):
            raise DataError(
                f"{where}: field 'question_id' is {question_id!r}; it must be a number or a string"
            )
        answer = line["label"].strip().lower()
        if answer not in ("yes", "no"):
            raise DataError(f"{where}: field 'label' is {line['label']!r}; it must be yes or no")
        set_name = str(line.get("category") or category)
        id_ = f"{set_name}-{question_id}" if set_name else str(question_id)
        if id_ in prompts:
            raise DataError(f"{where}: question {id_!r} appears twice; remove one")
        meta = {"question_id": question_id, "answer": answer}
        if set_name:
            meta["category"] = set_name
        image = str(as_path(image_folder) / line["image"])
        prompts[id_] = Prompt(id_, line["text"] + suffix, (image,), meta)
    if not prompts:
        raise DataError(f"{path}: has no questions; expected objects, one per line or in a list")
    return list(prompts.values())
