"""VQA accuracy: short answers compared with those of ten people.

What lives here: `vqa_accuracy`, the clean-up before it, and `Vqa`. What does not: exact match
(`exact.py`). Read next: `judge.py`.
"""

from __future__ import annotations

import collections
import dataclasses
import re
from collections.abc import Sequence

from typing_extensions import override

from seva_jax.evals.base import Evaluator, Ratio, Record, meta_fields
from seva_jax.types import DataError, Prompt

_NUMBER_WORDS = "zero one two three four five six seven eight nine ten"
_NUMBERS = {word: str(n) for n, word in enumerate(_NUMBER_WORDS.split())} | {"none": "0"}
_BLANKED = re.compile(r"""[;/\[\]"{}()=+\\_\-<>@`,?!]""")
_ARTICLES = {"a", "an", "the"}
# Contractions that are typed without the apostrophe and are then no other word.
_APOSTROPHES = """
ain't aren't can't couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how's i've
isn't it'd it'll mightn't mustn't needn't she's should've shouldn't that's there's they'd they'll
they're they've wasn't we've weren't what's where's who'd who's why's won't would've wouldn't y'all
you'd you'll you're you've
"""
_CONTRACTIONS = {word.replace("'", ""): word for word in _APOSTROPHES.split()}


def clean(text: str) -> str:
    """Normalises an answer for comparison, after visualqa.org/evaluation.

    Lower case; full stops are removed unless a digit follows, and commas between digits; brackets,
    quotes, dashes and the like become spaces, but apostrophes, colons and signs such as % $ & #
    stay; number words up to ten become digits; articles are removed; contractions get their
    apostrophe.

    >>> clean("The two  dogs, 1,000.5 Dont!")
    "2 dogs 1000.5 don't"
    """
    text = " ".join(text.lower().split())
    text = re.sub(r"(?<=\d),(?=\d)", "", text)
    text = re.sub(r"\.(?!\d)", "", text)
    text = _BLANKED.sub(" ", text)
    words = (_NUMBERS.get(word, word) for word in text.split())
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def vqa_accuracy(answer: str, people: Sequence[str]) -> float:
    """Returns min(n / 3, 1), averaged over leaving out each person in turn.

    n is how many of the remaining people gave the answer (Antol et al., "VQA: Visual Question
    Answering" 2015; the averaging is that of visualqa.org/evaluation). With ten people, an answer
    given by one scores 0.3, by two 0.6, by three 0.9, by four or more 1.

    Args:
        answer: the model's answer.
        people: people's answers, unprocessed; at least two.

    >>> [round(vqa_accuracy("b", ["b"] * n + ["c"] * (10 - n)), 3) for n in range(5)]
    [0.0, 0.3, 0.6, 0.9, 1.0]
    """
    given = collections.Counter(map(clean, people))
    agree = given[clean(answer)]
    others = len(people) - agree
    without = [min((agree - 1) / 3, 1.0)] * agree + [min(agree / 3, 1.0)] * others
    return sum(without) / len(people)


@dataclasses.dataclass(frozen=True)
class Vqa(Evaluator):
    """VQA accuracy; `meta["people"]` holds people's answers. Metric: `accuracy`."""

    name: str = "vqa"

    @override
    def truth(self, prompt: Prompt) -> list[str]:
        people = prompt.meta.get("people")
        if not isinstance(people, list) or len(people) < 2:
            raise DataError(
                f"{self.name}: prompt {prompt.id!r} has fewer than two answers in meta['people']; "
                "the test split's answers are not public: use another split"
            )
        return people

    @override
    def definitions(self, prompts: Sequence[Prompt]) -> dict[str, Ratio]:
        return {"accuracy": Ratio("higher", ("correct",), ("count",))}

    @override
    def score(self, prompt: Prompt, answer: str) -> Record:
        """Returns `correct`, between 0 and 1."""
        accuracy = vqa_accuracy(answer, self.truth(prompt))
        return meta_fields(prompt, "question_id") | {"correct": accuracy}
