"""Finds the objects that a text mentions, by longest match against a vocabulary of phrases.

What lives here: `Vocabulary`, and plurals for a list of synonyms. What does not: scoring mentions
(`seva_jax/evals/chair.py`) and replacing them (`seva_jax/pairs/injection.py`).
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Iterable

from seva_jax.types import DataError

_WORD = re.compile(r"\w+")


def words_of(text: str) -> tuple[str, ...]:
    """Returns the words of a text in lower case."""
    return tuple(_WORD.findall(text.lower()))


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """Phrases, each with the canonical name of the object it mentions.

    Attributes:
        name: name of the vocabulary, for error messages.
        synonyms: pairs (phrase, canonical name). Matching compares lower-case words from left to
            right, takes the longest phrase at each place, and never overlaps. A canonical name is
            also a phrase for itself.
    """

    name: str
    synonyms: tuple[tuple[str, str], ...]

    @functools.cached_property
    def phrases(self) -> dict[tuple[str, ...], str]:
        """The canonical name for each phrase; phrases are tuples of words.

        Raises:
            DataError: there are no phrases, or a phrase has no word or two names.
        """
        names = {canonical: canonical for _, canonical in self.synonyms}
        phrases: dict[tuple[str, ...], str] = {}
        for phrase, canonical in [*names.items(), *self.synonyms]:
            words = words_of(phrase)
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
        return max(map(len, self.phrases))

    def mentions(self, text: str) -> list[str]:
        """Returns the canonical names of the objects that a text mentions, in order, with repeats.

        >>> vocabulary = Vocabulary("toys", (("red circle", "red circle"), ("ball", "red circle")))
        >>> vocabulary.mentions("A ball; another Red circle.")
        ['red circle', 'red circle']
        """
        words = words_of(text)
        names, start = [], 0
        while start < len(words):
            for end in range(min(start + self._longest, len(words)), start, -1):
                canonical = self.phrases.get(words[start:end])
                if canonical is not None:
                    names.append(canonical)
                    start = end
                    break
            else:
                start += 1
        return names


def with_plurals(where: str, lines: Iterable[str]) -> tuple[tuple[str, str], ...]:
    """Reads synonyms, one object a line, and adds the plural of every phrase.

    Args:
        where: names the source of the lines, for error messages.
        lines: each holds an object's name, then its synonyms, separated by commas.

    Returns:
        Pairs (phrase, name), as `Vocabulary` takes them.

    Raises:
        DataError: there are no synonyms, or a phrase has two names.
    """
    given: dict[str, str] = {}
    for line in lines:
        phrases = [phrase.strip().lower() for phrase in line.split(",") if phrase.strip()]
        for phrase in phrases:
            if given.setdefault(phrase, phrases[0]) != phrases[0]:
                raise DataError(
                    f"{where}: {phrase!r} stands for {given[phrase]!r} and for {phrases[0]!r}; "
                    "keep one"
                )
    if not given:
        raise DataError(f"{where}: has no synonyms; one object a line, commas between its names")
    plurals = {_plural(phrase): name for phrase, name in given.items()}
    return tuple((plurals | given).items())


def _plural(phrase: str) -> str:
    if re.search(r"(^|wo|[^u])man$", phrase):
        return f"{phrase[:-3]}men"
    if re.search(r"[^aeiou]y$", phrase):
        return f"{phrase[:-1]}ies"
    return f"{phrase}es" if re.search(r"(s|x|z|ch|sh)$", phrase) else f"{phrase}s"
