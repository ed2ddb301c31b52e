"""CHAIR: hallucinated objects in free descriptions.

What lives here: `Chair`. What does not: finding mentions (`seva_jax/text/mentions.py`), and reading
COCO's annotations and a list of synonyms (`suites/described.py`). Read next: `pope.py`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

from typing_extensions import override

from seva_jax.evals.base import Evaluator, Ratio, Record
from seva_jax.text.mentions import Vocabulary, words_of
from seva_jax.types import DataError, Prompt


@dataclasses.dataclass(frozen=True)
class Chair(Evaluator):
    """Counts mentioned objects that are not in the image, and true objects that are mentioned.

    CHAIR of Rohrbach et al., "Object Hallucination in Image Captioning" (2018), section 3:
    `chair_i` is hallucinated mentions / mentions (repeated mentions count again), `chair_s` the
    share of answers with at least one hallucinated mention. Empty answers score well on both, so
    `recall` (true objects mentioned / true objects, each distinct name once) and `length` (words
    per answer) are reported as well.

    `meta["objects"]` holds the truth: one list of words per object, which joined by spaces are
    its canonical name (`["red", "circle"]` is "red circle").

    Attributes:
        synonyms: pairs (phrase, canonical name); see `seva_jax.text.mentions.Vocabulary`.
    """

    name: str = "chair"
    synonyms: tuple[tuple[str, str], ...] = dataclasses.field(kw_only=True)

    @functools.cached_property
    def vocabulary(self) -> Vocabulary:
        """The vocabulary that finds mentions in an answer."""
        return Vocabulary(self.name, self.synonyms)

    def mentions(self, text: str) -> list[str]:
        """Returns the canonical names of the objects a text mentions, in order, with repeats."""
        return self.vocabulary.mentions(text)

    @override
    def truth(self, prompt: Prompt) -> list[str]:
        """Returns the distinct canonical names of the objects in the image, in order."""
        objects = prompt.meta.get("objects")
        if not isinstance(objects, list | tuple) or not all(
            isinstance(words, list | tuple) for words in objects
        ):
            raise DataError(
                f"{self.name}: prompt {prompt.id!r} has no list of word lists in meta['objects']; "
                "give the true objects, or leave the prompt out"
            )
        names = list(dict.fromkeys(" ".join(map(str, words)) for words in objects))
        canonical_names = set(self.vocabulary.phrases.values())
        for name in names:
            if name not in canonical_names:
                raise DataError(
                    f"{self.name}: prompt {prompt.id!r} shows {name!r}, which is no canonical "
                    "name in synonyms; add it, or no mention of it can be found"
                )
        return names

    @override
    def definitions(self, prompts: Sequence[Prompt]) -> dict[str, Ratio]:
        return {
            "chair_i": Ratio("lower", ("hallucinated",), ("mentioned",)),
            "chair_s": Ratio("lower", ("any_hallucinated",), ("count",)),
            "recall": Ratio("higher", ("found",), ("true_objects",)),
            "length": Ratio("neither", ("words",), ("count",)),
        }

    @override
    def score(self, prompt: Prompt, answer: str) -> Record:
        """Returns the counts for the ratios, and the names behind them for people to read."""
        truth = self.truth(prompt)
        mentions = self.mentions(answer)
        hallucinations = [name for name in mentions if name not in truth]
        missed = [name for name in truth if name not in mentions]
        return {
            "hallucinations": hallucinations,
            "missed": missed,
            "mentioned": len(mentions),
            "hallucinated": len(hallucinations),
            "any_hallucinated": int(bool(hallucinations)),
            "true_objects": len(truth),
            "found": len(truth) - len(missed),
            "words": len(words_of(answer)),
        }
