"""Hallucinated objects in free descriptions, in the manner of CHAIR.

What lives here: `Chair`, with mention extraction by longest match against a vocabulary. What
does not: COCO's synonym list or annotations, which a caller passes in. Read next: `pope.py`.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Sequence

from seva_jax.evals.base import Evaluator, Ratio, Record
from seva_jax.types import DataError, Prompt

_WORD = re.compile(r"\w+")


def _words(text: str) -> tuple[str, ...]:
    return tuple(_WORD.findall(text.lower()))


@dataclasses.dataclass(frozen=True)
class Chair(Evaluator):
    """Which mentioned objects are not in the image, and which true ones are mentioned.

    CHAIR of Rohrbach et al., "Object Hallucination in Image Captioning" (2018), section 3:
    `chair_i` is hallucinated mentions / mentions (a repeated mention counts again), `chair_s`
    the share of answers with at least one hallucinated mention. Silence scores well on both, so
    `recall` (true objects mentioned / true objects, each distinct name once) and `length` (words
    per answer) stand beside them.

    `meta["objects"]` holds the truth: one list of words per object, whose words joined by a
    space are its canonical name (`["red", "circle"]` is "red circle").

    Attributes:
        synonyms: pairs (phrase, canonical name). Matching goes over lower-case words from left
            to right, takes the longest phrase at each place, and never overlaps. A canonical
            name is a phrase for itself.
    """

    name: str = "chair"
    synonyms: tuple[tuple[str, str], ...] = dataclasses.field(kw_only=True)

    @functools.cached_property
    def _phrases(self) -> dict[tuple[str, ...], str]:
        """Canonical name by phrase, in words."""
        names = {canonical: canonical for _, canonical in self.synonyms}
        phrases: dict[tuple[str, ...], str] = {}
        for phrase, canonical in [*names.items(), *self.synonyms]:
            words = _words(phrase)
            if not words:
                raise DataError(f"{self.name}: synonyms has a phrase without a word: {phrase!r}")
            if phrases.setdefault(words, canonical) != canonical:
                raise DataError(
                    f"{self.name}: synonyms give {phrase!r} two meanings, "
                    f"{phrases[words]!r} and {canonical!r}; keep one"
                )
        if not phrases:
            raise DataError(f"{self.name}: synonyms is empty; list at least the canonical names")
        return phrases

    @functools.cached_property
    def _longest(self) -> int:
        return max(map(len, self._phrases))

    def mentions(self, text: str) -> list[str]:
        """Canonical names of the objects a text mentions, in order, with repeats.

        >>> vocabulary = (("red circle", "red circle"), ("ball", "red circle"))
        >>> Chair(synonyms=vocabulary).mentions("A ball; another Red circle.")
        ['red circle', 'red circle']
        """
        words = _words(text)
        found, start = [], 0
        while start < len(words):
            for end in range(min(start + self._longest, len(words)), start, -1):
                canonical = self._phrases.get(words[start:end])
                if canonical is not None:
                    found.append(canonical)
                    start = end
                    break
            else:
                start += 1
        return found

    def truth(self, prompt: Prompt) -> list[str]:
        """Distinct canonical names of the objects in the image, in order."""
        objects = prompt.meta.get("objects")
        if not isinstance(objects, list | tuple) or not all(
            isinstance(words, list | tuple) for words in objects
        ):
            raise DataError(
                f"{self.name}: prompt {prompt.id!r} has no list of word lists in meta['objects']; "
                "give the true objects, or leave the prompt out"
            )
        names = list(dict.fromkeys(" ".join(map(str, words)) for words in objects))
        canonical_names = set(self._phrases.values())
        for name in names:
            if name not in canonical_names:
                raise DataError(
                    f"{self.name}: prompt {prompt.id!r} shows {name!r}, which is no canonical "
                    "name in synonyms; add it, or it can never be found"
                )
        return names

    def definitions(self, prompts: Sequence[Prompt]) -> dict[str, Ratio]:
        """`chair_i`, `chair_s`, `recall` and `length`."""
        return {
            "chair_i": Ratio("lower", ("hallucinated",), ("mentioned",)),
            "chair_s": Ratio("lower", ("any_hallucinated",), ("count",)),
            "recall": Ratio("higher", ("found",), ("true_objects",)),
            "length": Ratio("neither", ("words",), ("count",)),
        }

    def score(self, prompt: Prompt, answer: str) -> Record:
        """Counts for the ratios; `hallucinations` and `missed` list names for people to read."""
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
            "words": len(_words(answer)),
        }
