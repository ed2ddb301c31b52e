"""APASI's pairs: the model's own description against the same with made-up objects in it.

What lives here: `InjectedPairs`, its choice of sentences, and its templates. What does not: counts
of objects that occur together (`cooccurrence.py`), and completing sentences (`rewrite.py`).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Annotated, ClassVar

import numpy as np
from typing_extensions import override

from seva_jax.data.sources import PromptSet, generator
from seva_jax.pairs.builders import Built, PairBuilder, sift
from seva_jax.pairs.cooccurrence import Cooccurrence, read_objects, read_texts
from seva_jax.pairs.model import PairModel
from seva_jax.pairs.rewrite import Draft, rewritten, split
from seva_jax.ranges import FROM_1, Range
from seva_jax.text.encode import clean_answer
from seva_jax.text.mentions import Vocabulary
from seva_jax.text.sampling import Sampling
from seva_jax.types import IMAGE_MARKER, VIDEO_MARKER, Comparison, DataError, Rollout

TEMPLATES = (
    "There is {object}",
    "There is also {object}",
    "In addition, there is {object}",
    "Nearby there is {object}",
    "In the background there is {object}",
    "In the foreground there is {object}",
    "On one side there is {object}",
    "A little further away there is {object}",
    "Next to it one can see {object}",
    "One can also see {object}",
    "One can make out {object}",
    "The image also shows {object}",
    "The picture includes {object}",
    "The scene also contains {object}",
    "Part of the scene is {object}",
    "Close by is {object}",
    "Also visible is {object}",
    "Another thing to notice is {object}",
    "Somewhat hidden is {object}",
    "Not to be overlooked is {object}",
)
# Beginnings with a vowel letter but a consonant sound ("a unicorn"), and those that take "an".
_CONSONANT = re.compile(r"(e[uw]|one\b|u(ni(?!n)|ri|[kst][aeiou]))", re.IGNORECASE)
_VOWEL = re.compile(r"([aeiou]|hour|heir|honest|x-?ray)", re.IGNORECASE)


def with_article(name: str) -> str:
    """Returns a noun with "a" or "an", by its spelling and a short list of exceptions.

    >>> [with_article(name) for name in ("cat", "umbrella", "unicycle", "hourglass")]
    ['a cat', 'an umbrella', 'a unicycle', 'an hourglass']
    """
    vowel = _VOWEL.match(name) and not _CONSONANT.match(name)
    return f"{'an' if vowel else 'a'} {name}"


def position_weights(num: int) -> np.ndarray:
    """Returns how likely each sentence is to be replaced, up to a factor: float64 [num].

    The first sentence has 0. The others, i = 1, 2, ..., have `a sqrt(i) + b`, which is 1 for i = 1
    and 2 for the last.
    """
    weights = np.zeros(num)
    if num > 1:
        roots = np.sqrt(np.arange(1, num))
        weights[1:] = 1 + (roots - 1) / max(roots[-1] - 1, 1e-9)
    return weights


def choose(weights: np.ndarray, num: int, rng: np.random.Generator) -> list[int]:
    """Draws indices one by one in proportion to their weights, without replacement.

    Args:
        weights: float64 [N], at least 0.
        num: how many, at most the number of weights above 0.
        rng: the only source of randomness; N numbers are drawn.

    Returns:
        The indices, increasing. All are drawn at once, with the same distribution (Efraimidis and
        Spirakis, "Weighted random sampling with a reservoir", 2006).
    """
    waits = rng.exponential(size=len(weights)) / np.where(weights > 0, weights, 1)
    waits[weights <= 0] = np.inf
    return sorted(np.argsort(waits)[:num].tolist())


@dataclasses.dataclass(frozen=True)
class InjectedPairs(PairBuilder):
    """Chosen is the model's description; rejected is the same with some sentences made up (APASI).

    A new sentence begins with a template and an object that the description does not mention but
    that often occurs with those it does. The same language model completes it without seeing the
    image, and continues the whole text before it, including other new sentences. As in the
    release, an object for each new sentence is drawn in two steps: one of the mentions in the
    sentences that stay, then one of the objects that occur with it most often. A description
    without such a mention makes no pair. The choices follow from the seed and the prompt's id.

    Attributes:
        rate: share of the sentences that are replaced, rounded (halves to the even number). The
            first is never replaced, later ones more often, see `position_weights`.
        objects_file: file with the vocabulary: one object per line, its name first, commas between
            its synonyms; or a JSON list. Plurals are added.
        objects: lines of such a file, to be given instead of the file.
        captions_file: file with texts in which objects are counted, one per line or a JSON list;
            empty counts in the model's own descriptions.
        most_objects: the object of a sentence is drawn from this many candidates. If nothing
            absent occurs with the mention, it is drawn from all objects that are absent.
        templates: beginnings of new sentences; "{object}" becomes the object with its article.
        separator: separates sentences; empty for the rule of full stops, see `rewrite.split`.
        sampling: how the model completes sentences.
    """

    uses_corruptions: ClassVar[bool] = False
    rate: Annotated[float, Range(0, 1, above=True)] = 0.2
    objects_file: str = ""
    objects: tuple[str, ...] = ()
    captions_file: str = ""
    most_objects: Annotated[int, FROM_1] = 10
    templates: tuple[str, ...] = TEMPLATES
    separator: str = ""
    sampling: Sampling = Sampling(max_new_tokens=64, repetition_penalty=1.1)

    def __post_init__(self) -> None:
        if not self.templates or not all("{object}" in text for text in self.templates):
            raise DataError(
                'InjectedPairs.templates: give at least one, and put "{object}" in each of them'
            )

    @override
    def build(self, rollouts: Sequence[Rollout], data: PromptSet, model: PairModel) -> Built:
        """Replaces sentences of the descriptions.

        Raises:
            DataError: there is no vocabulary, or a file cannot be used.
        """
        vocabulary = Vocabulary("objects", read_objects(self.objects_file, self.objects))
        answers = [clean_answer(rollout.clean) for rollout in rollouts]
        mentioned = [vocabulary.mentions(answer) for answer in answers]
        counted = mentioned
        if self.captions_file:
            captions = map(" ".join, read_texts(self.captions_file))
            counted = [vocabulary.mentions(caption) for caption in captions]
        graph = Cooccurrence.count(counted)
        chosen, drops = sift(
            self._draft(rollout, answer, vocabulary, graph, model.seed)
            for rollout, answer in zip(rollouts, answers, strict=True)
        )
        pairs = rewritten("injection", chosen, model, self.sampling, self.separator)
        comparisons, dropped = sift(pairs)
        return comparisons, drops + dropped

    def _draft(
        self,
        rollout: Rollout,
        answer: str,
        vocabulary: Vocabulary,
        graph: Cooccurrence,
        seed: int,
    ) -> tuple[Comparison, Draft] | str:
        """Returns a comparison without rejected answer, and its draft; or why there is none."""
        if not answer:
            return "empty chosen answer"
        parts = split(answer, self.separator)
        num = len(parts) // 2 + 1
        num_chosen = min(round(self.rate * num), num - 1)
        if not num_chosen:
            return "too few sentences"
        rng = generator(seed, "injection", rollout.prompt.id)
        places = choose(position_weights(num), num_chosen, rng)
        names = [vocabulary.mentions(sentence) for sentence in parts[::2]]
        stay = [name for i, own in enumerate(names) if i not in places for name in own]
        if not stay:
            return "no known object"
        everything = {name for own in names for name in own}
        leads = dict[int, str]()
        for place in places:
            key = stay[rng.integers(len(stay))]
            absent = graph.absent(key, everything, self.most_objects)
            if not absent:
                return "no absent object"
            name = absent[rng.integers(len(absent))]
            template = self.templates[rng.integers(len(self.templates))]
            leads[place] = template.replace("{object}", with_article(name))
        question = rollout.prompt.question.replace(IMAGE_MARKER, "")
        question = question.replace(VIDEO_MARKER, "").strip()
        blind = dataclasses.replace(rollout.prompt, question=question, images=())
        return Comparison(rollout.prompt, (answer,)), Draft(blind, parts, leads)
