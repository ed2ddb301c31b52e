"""Counts of objects that captions mention together, as a graph.

What lives here: reading captions and a vocabulary of objects, and the counts. What does not:
finding mentions in a text (`seva_jax/text/mentions.py`). Read next: `injection.py`, which uses
the graph.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import json
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from seva_jax.runtime.files import read_bytes
from seva_jax.text.mentions import with_plurals
from seva_jax.types import DataError


def read_texts(path: str) -> list[list[str]]:
    """Reads a file of texts: a JSON list, or one text per line.

    Returns:
        A list for each text, which has that text alone. An item of the JSON list that is itself a
        list of texts is returned unchanged.

    Raises:
        DataError: the file cannot be read, or has neither form.
    """
    text = read_bytes(path).decode("utf-8-sig", errors="replace").strip()
    if not text.startswith("["):
        return [[line.strip()] for line in text.split("\n") if line.strip()]
    try:
        items: list[Any] = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: starts with [ but is not JSON ({error}); fix it") from error
    lists = [[item] if isinstance(item, str) else item for item in items]
    for number, item in enumerate(lists, 1):
        if not isinstance(item, list) or not all(isinstance(x, str) for x in item):
            raise DataError(
                f"{path}: record {number} is neither a text nor a list of texts; fix it"
            )
    return lists


def read_objects(path: str, objects: Collection[str] = ()) -> tuple[tuple[str, str], ...]:
    """Reads the synonyms of a `text.mentions.Vocabulary`, and adds plurals.

    Args:
        path: a file with one object per line, its name first, commas between its synonyms; or a
            JSON list of such lines, or of lists of synonyms. "" if `objects` are given.
        objects: lines of such a file.

    Raises:
        DataError: neither or both are given, the file cannot be read, or a phrase has two names.
    """
    if bool(path) == bool(objects):
        raise DataError(
            "a vocabulary of objects is needed, from one place: set objects_file (one object per "
            "line, its name first, commas between synonyms) or objects, not both"
        )
    records = read_texts(path) if path else [[line] for line in objects]
    return with_plurals(path or "objects", (",".join(record) for record in records))


@dataclasses.dataclass(frozen=True)
class Cooccurrence:
    """How often two objects are mentioned in the same caption.

    Attributes:
        counts: number of captions, by the names of the two objects; symmetric, and without pairs of
            an object and itself.
    """

    counts: Mapping[str, Mapping[str, int]]

    @classmethod
    def count(cls, captions: Iterable[Collection[str]]) -> Cooccurrence:
        """Counts the captions that mention both objects of a pair, no matter how often each.

        Args:
            captions: the names of the objects that each caption mentions.
        """
        counts: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
        for names in captions:
            for name, other in itertools.permutations(set(names), 2):
                counts[name][other] += 1
        return cls(dict(counts))

    def absent(self, name: str, mentioned: Collection[str], most: int) -> list[str]:
        """Returns objects that a caption does not mention, but that often occur with one it does.

        Args:
            name: name of that object.
            mentioned: names of all objects of the caption.
            most: the largest number of names returned.

        Returns:
            Names in descending order of their counts with the object, ties in alphabetical order.
            Without any, all names of the graph that the caption does not mention, by alphabet.
        """
        counts = self.counts.get(name, {})
        ranked = sorted((-num, other) for other, num in counts.items() if other not in mentioned)
        return [other for _, other in ranked[:most]] or sorted(self.counts.keys() - mentioned)
