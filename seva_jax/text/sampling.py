"""How the tokens of an answer are chosen."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from seva_jax.ranges import FROM_1, Range, Ranges


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How tokens are chosen.

    Attributes:
        max_new_tokens: longest answer, tokens.
        temperature: 0 is greedy.
        top_p: keep the smallest set of tokens whose probability reaches this (nucleus).
        repetition_penalty: above 1, tokens that the prompt or the answer has already become less
            likely: their logits are divided by it where positive and multiplied where negative
            (CTRL, arXiv 1909.05858, as transformers does it). 1 is none.
    """

    ranges: ClassVar[Ranges] = {
        "max_new_tokens": FROM_1,
        "temperature": Range(0, 100),
        "top_p": Range(0, 1, above=True),
        "repetition_penalty": Range(0, 100, above=True),
    }

    max_new_tokens: int = 512
    temperature: float = 0.0
    top_p: float = 1.0
    repetition_penalty: float = 1.0

    @property
    def penalises(self) -> bool:
        """Whether it matters which tokens there were."""
        return self.repetition_penalty != 1.0
