"""Where examples come from: the contracts of sources of prompts and of preferences.

What lives here: what a source is and what it gives. What does not: any format. Read next:
`files.py` (prompts on disk), `preferences.py` (pairs that somebody else made); the procedural
world is a source too (`seva_jax/worlds/shapes.py`). `README.md` beside this file lists all.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from seva_jax.types import Comparison, Prompt


@dataclasses.dataclass(frozen=True)
class PromptSet:
    """Prompts that passed the checks, and the way to their images.

    Attributes:
        prompts: in file order.
        load_image: image name -> uint8 RGB [H, W, 3]; raises `ExampleError`.
        drops: how many examples were left out, by reason.
        read_image: image name -> the encoded image as it is stored; raises `ExampleError`. None
            where images are drawn and not stored.
        left_out: of the first examples left out, where each is and why: "line 3: no id: ...".
    """

    prompts: Sequence[Prompt]
    load_image: Callable[[str], np.ndarray]
    drops: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    read_image: Callable[[str], bytes] | None = None
    left_out: Sequence[str] = dataclasses.field(default=(), kw_only=True)


@dataclasses.dataclass(frozen=True)
class PreferenceSet(PromptSet):
    """Prompts whose answers are there already, with the better one known.

    Attributes:
        comparisons: one for each prompt, in the order of `prompts`.
        notes: what was left out inside examples that are used, counted by reason.
    """

    comparisons: Sequence[Comparison] = ()
    notes: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)


@dataclasses.dataclass(frozen=True)
class PromptSource:
    """Base class of sources. A source is a config value; `open()` reads it."""

    @property
    def has_answers(self) -> bool:
        """Whether `open` gives a `PreferenceSet`: then the model is not asked for answers."""
        return False

    def open(self) -> PromptSet:
        """Reads the source.

        Raises:
            DataError: the source as a whole cannot be read; names the file and says what to do.
        """
        raise NotImplementedError(f"{type(self).__name__} must define open")


@dataclasses.dataclass(frozen=True)
class PreferenceSource(PromptSource):
    """Base class of sources of preferences: training on them needs no rollouts."""

    @property
    def has_answers(self) -> bool:
        """Always."""
        return True

    def open(self) -> PreferenceSet:
        """See `PromptSource.open`."""
        raise NotImplementedError(f"{type(self).__name__} must define open")
