"""Where unlabelled prompts come from: the contract, and files on disk.

A source is a config value; `open()` reads it once and gives a `PromptSet`. The procedural world
is a source too (`seva_jax/worlds/shapes.py`).
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from seva_jax.types import Prompt


@dataclasses.dataclass(frozen=True)
class PromptSet:
    """Prompts that passed the checks, and the way to their images.

    Attributes:
        prompts: in file order.
        load_image: image name -> uint8 RGB [H, W, 3]; raises `ExampleError`.
        drops: how many examples were left out, by reason.
    """

    prompts: Sequence[Prompt]
    load_image: Callable[[str], np.ndarray]
    drops: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)


@dataclasses.dataclass(frozen=True)
class PromptSource:
    """Base class of prompt sources."""

    def open(self) -> PromptSet:
        """Reads the source.

        Raises:
            DataError: the source as a whole cannot be read; names the file and says what to do.
        """
        raise NotImplementedError(f"{type(self).__name__} must define open")
