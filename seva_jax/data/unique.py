"""Unique ids within a source: no example is lost because another one has its id.

What lives here: renaming examples whose id was used before, and finding examples that come again.
What does not: the ids that formats give (`files.py`, `preferences.py`, `messages.py`).
"""

from __future__ import annotations

import dataclasses
import hashlib
from typing import TypeVar

from seva_jax.types import Comparison, ExampleError, Prompt

_Example = TypeVar("_Example", Prompt, Comparison)


class UniqueIds:
    """The ids and contents of the examples of a source so far."""

    def __init__(self):
        self._ids = set[str]()
        self._numbers = dict[str, int]()  # the last number that followed a repeated id
        self._contents = set[bytes]()

    def add(self, example: _Example, stored: str) -> _Example:
        """Returns the example; "@2", "@3", ... follows an id that another example has already.

        Args:
            example: the next example of the source.
            stored: all of it as text, to compare it with the others.

        Raises:
            ExampleError: the same example, with the same id, was there before.
        """
        id_ = example.prompt.id if isinstance(example, Comparison) else example.id
        content = hashlib.blake2b(stored.encode(), digest_size=16).digest()
        if content in self._contents:
            raise ExampleError(f"the same example with id {id_!r} was there before", "repeated")
        new, number = id_, self._numbers.get(id_, 1)
        while new in self._ids:
            number += 1
            new = f"{id_}@{number}"
        if number > 1:  # of most ids there is one, so that nothing is kept for them
            self._numbers[id_] = number
        self._contents.add(content)
        self._ids.add(new)
        return example if new == id_ else _renamed(example, new)


def _renamed(example: _Example, id_: str) -> _Example:
    if isinstance(example, Prompt):
        return dataclasses.replace(example, id=id_)
    more = tuple(dataclasses.replace(v, prompt=_renamed(v.prompt, id_)) for v in example.more)
    return dataclasses.replace(example, prompt=_renamed(example.prompt, id_), more=more)
