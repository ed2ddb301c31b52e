"""Which objects are mentioned together: a graph counted over captions.

What lives here: reading a vocabulary of objects and captions, and the counts. What does not: how
mentions are found (`seva_jax/text/mentions.py`). Read next: `injection.py`, which uses it.
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
    """Reads a file of texts: a JSON list, or one a line.

    Returns:
        For each, itself alone; or the texts of a list inside the JSON list.

    Raises:
        DataError: the file cannot be read, or is neither.
    """
    text = read_bytes(path).decode("utf-8-sig", errors="replace").strip()
    if not text.startswith("["):
        return [[line.strip()] for line in text.split("\n") if line.strip()]
    try:
        items: list[Any] = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: starts as a JSON list and is none ({error}); mend it") from error
    lists = [[item] if isinstance(item, str) else item for item in items]
    for number, item in enumerate(lists, 1):
        if not isinstance(item, list) or not all(isinstance(x, str) for x in item):
            raise DataError(f"{path}: record {number} is neither a text nor a list of texts")
    return lists


def read_objects(path: str, objects: Collection[str] = ()) -> tuple[tuple[str, str], ...]:
    """Reads a vocabulary, as `text.mentions.Vocabulary` takes it; plurals are added as for CHAIR's list.

    Args:
        path: one object a line, its name first, commas between its synonyms; or a JSON list of
            such lines or of lists. "" where `objects` are given.
        objects: lines of such a file.

    Raises:
        DataError: there is neither or both, the file cannot be read, or a phrase has two names.
    """
    if bool(path) == bool(objects):
        raise DataError(
            "a vocabulary of objects is needed, from one place: set objects_file (one object a "
            "line, its name first, commas between synonyms) or objects, not both"
        )
    records = read_texts(path) if path else [[line] for line in objects]
    return with_plurals(path or "objects", (",".join(record) for record in records))


@dataclasses.dataclass(frozen=True)
class Cooccurrence:
    """How often two objects are mentioned in the same caption.

    Attributes:
        counts: by name, then by the other's name; symmetric, without an object and itself.
    """

    counts: Mapping[str, Mapping[str, int]]

    @classmethod
    def count(cls, captions: Iterable[Collection[str]]) -> Cooccurrence:
        """Counts captions that mention both objects of a pair, however often each.

        Args:
            captions: names of the objects that each mentions.
        """
        counts: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
        for names in captions:
            for name, other in itertools.permutations(set(names), 2):
                counts[name][other] += 1
        return cls(dict(counts))

    def absent(self, mentioned: Collection[str], most: int) -> list[str]:
        """Objects that are not mentioned but often are together with those that are.

        Args:
            mentioned: names of the objects of a caption.
            most: at most so many.

        Returns:
            Names by falling sum of their counts with every mentioned object, then by alphabet;
            those without a count are left out.
        """
        sums: collections.Counter[str] = collections.Counter()
        for name in set(mentioned):
            sums.update(self.counts.get(name, {}))
        found = sorted((-num, name) for name, num in sums.items() if name not in mentioned)
        return [name for _, name in found[:most]]
