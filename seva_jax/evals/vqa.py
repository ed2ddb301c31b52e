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
_PUNCTUATION = ';/[]"{}()=+\\_-><@`!'
_ARTICLES = {"a", "an", "the"}
_MOST_STOPS = 32  # the scorer passes re.UNICODE, which is 32, where `sub` takes a count
_CONTRACTIONS = """
'ow's'at 'twas ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't
hadn't've hasn't haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am
might've mightn't mightn't've must've mustn't needn't not've o'clock oughtn't shan't she'd've
should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've
someone'll someone's something'd something'd've something'll that's there'd there'd've there're
there's they'd they'd've they'll they're they've wasn't we'd've we've weren't what'll what're what's
what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't
would've wouldn't wouldn't've y'all y'all'd've y'all'll you'd you'd've you'll you're you've
"""
# Each of these with one of its apostrophes left out.
_COMPLETED = {
    word[:place] + word[place + 1 :]: word
    for word in _CONTRACTIONS.split()
    for place, letter in enumerate(word)
    if letter == "'"
} | {"somebody'd": "somebodyd"}  # TextVQA: so in the scorer


def clean(text: str) -> str:
    """Normalises an answer for comparison, exactly as TextVQA's scorer does.

    That is the `EvalAIAnswerProcessor` of MMF's m4c evaluator, which LLaVA uses: lower case; commas
    and question marks are removed; full stops too unless a digit follows; `'s` becomes a word;
    every other punctuation mark is removed if it has a blank at its side anywhere in the answer,
    and becomes a blank otherwise; apostrophes, colons and signs such as % $ & # stay; number words
    up to ten become digits; articles are removed; contractions get their apostrophe.

    >>> clean("The two  dogs, 1,000.5 Dont!"), clean("black-and-white"), clean("a - b-c")
    ("2 dogs 1000.5 don't", 'black and white', 'bc')
    """
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    text = text.replace("\n", " ").replace("\t", " ").strip()
    before = text
    for mark in _PUNCTUATION:
        beside_blank = f"{mark} " in before or f" {mark}" in before
        text = text.replace(mark, "" if beside_blank else " ")
    text = re.sub(r"\.(?!\d)", "", text, count=_MOST_STOPS)
    words = (_NUMBERS.get(word, word) for word in text.lower().split())
    return " ".join(_COMPLETED.get(word, word) for word in words if word not in _ARTICLES)


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
