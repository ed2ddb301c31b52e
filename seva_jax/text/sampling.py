"""How the tokens of an answer are chosen."""

from __future__ import annotations

import dataclasses
from typing import Annotated

from seva_jax.ranges import FROM_1, Range


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

    max_new_tokens: Annotated[int, FROM_1] = 512
    temperature: Annotated[float, Range(0, 100)] = 0.0
    top_p: Annotated[float, Range(0, 1, above=True)] = 1.0
    repetition_penalty: Annotated[float, Range(0, 100, above=True)] = 1.0

    @property
    def penalises(self) -> bool:
        """Whether it matters which tokens there were."""
        return self.repetition_penalty != 1.0
