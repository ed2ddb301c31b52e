"""Where examples come from: the contracts of sources of prompts and of preferences.

What lives here: the base classes of sources, the data sets they open, and the random generator of
one example. What does not: any format. Read next: `files.py` (prompts on disk), `preferences.py`
(published pairs); `README.md` in this folder lists all formats. The procedural world is a source
too (`seva_jax/worlds/shapes.py`).
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from typing_extensions import override

from seva_jax.types import Comparison, Prompt, Size


@dataclasses.dataclass(frozen=True)
class PromptSet:
    """Prompts that passed the checks, and functions that read their images.

    Attributes:
        prompts: the prompts, in file order.
        load_image: image name -> uint8 RGB [H, W, 3]; raises `ExampleError`.
        drops: how many examples were left out, by reason.
        read_image: image name -> the encoded bytes as stored; raises `ExampleError`. None where
            images are drawn instead of stored.
        left_out: where each of the first examples left out is, and why: "line 3: no id: ...".
        notes: counts by reason of what was left out inside examples that are used.
        remote: whether images come from an object store, so that many should be read at a time.
        read_size: image name -> height and width of the decoded image, found without decoding it;
            raises `ExampleError`. None where that is not possible; callers use `image_size`.
    """

    prompts: Sequence[Prompt]
    load_image: Callable[[str], np.ndarray]
    drops: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    read_image: Callable[[str], bytes] | None = None
    left_out: Sequence[str] = dataclasses.field(default=(), kw_only=True)
    notes: collections.Counter[str] = dataclasses.field(
        default_factory=collections.Counter, kw_only=True
    )
    remote: bool = dataclasses.field(default=False, kw_only=True)
    read_size: Callable[[str], Size] | None = dataclasses.field(default=None, kw_only=True)

    def image_size(self, name: str) -> Size:
        """Returns the height and width of an image as `load_image` decodes it.

        Where the size is in the image's header, only that is read, and damage elsewhere in the
        file is noticed by `load_image` alone.

        Raises:
            ExampleError: the image is missing, unreadable or too large.
        """
        if self.read_size is not None:
            return self.read_size(name)
        height, width, _ = self.load_image(name).shape
        return height, width


@dataclasses.dataclass(frozen=True)
class PreferenceSet(PromptSet):
    """Prompts that come with answers, best first.

    Attributes:
        comparisons: one for each prompt, in the order of `prompts`.
    """

    comparisons: Sequence[Comparison] = ()


@dataclasses.dataclass(frozen=True)
class PromptSource:
    """Base class of sources. A source is a config value; `open()` reads it."""

    @property
    def has_answers(self) -> bool:
        """Whether `open` returns a `PreferenceSet`, so that no rollouts are needed."""
        return False

    @classmethod
    def recognizes(cls, record: Mapping[str, Any]) -> bool:
        """Returns whether a record of a file is of this format, by its fields.

        `detect.py` asks the formats that are made of records.
        """
        del record  # no format
        return False

    def open(self) -> PromptSet:
        """Reads the source.

        Raises:
            DataError: the source cannot be read; the message names the file and a remedy.
        """
        raise NotImplementedError(f"{type(self).__name__} must define open")


@dataclasses.dataclass(frozen=True)
class PreferenceSource(PromptSource):
    """Base class of sources of preferences: training on them needs no rollouts."""

    @property
    @override
    def has_answers(self) -> bool:
        return True

    @override
    def open(self) -> PreferenceSet:
        raise NotImplementedError(f"{type(self).__name__} must define open")


def generator(seed: int, purpose: str, example_id: str) -> np.random.Generator:
    """Returns the random generator of one example.

    It depends on the arguments only, so what is drawn does not depend on the other examples, on
    their order or on the process.

    Args:
        seed: the seed of a source or of the run.
        purpose: what is drawn, so that two draws for one example differ.
        example_id: the id of the record, prompt or pair.
    """
    digest = hashlib.sha256(repr((seed, purpose, example_id)).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "little"))
