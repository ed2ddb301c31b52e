"""The options for sampling an answer; `seva_jax/inference/sampler.py` applies them."""

from __future__ import annotations

import dataclasses
from typing import Annotated

from seva_jax.ranges import FROM_1, Range


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How the tokens of an answer are sampled.

    Attributes:
        max_new_tokens: maximum length of an answer in tokens; a longer one is cut there.
        temperature: 0 always takes the likeliest token (greedy decoding), 1 samples from the
            model's own distribution. A lower temperature favours likely tokens, a higher one makes
            answers more random.
        top_p: sample only from the smallest set of likeliest tokens whose probabilities sum to at
            least this (nucleus sampling); 1 keeps all tokens.
        repetition_penalty: above 1, tokens that already occur in the prompt or the answer become
            less likely: their logits are divided by it where positive and multiplied by it where
            negative (CTRL, arXiv 1909.05858, as in transformers). 1 means no penalty.
    """

    max_new_tokens: Annotated[int, FROM_1] = 512
    temperature: Annotated[float, Range(0, 100)] = 0.0
    top_p: Annotated[float, Range(0, 1, above=True)] = 1.0
    repetition_penalty: Annotated[float, Range(0, 100, above=True)] = 1.0

    @property
    def penalises(self) -> bool:
        """Whether there is a repetition penalty."""
        return self.repetition_penalty != 1.0
