"""Prompts with their answers as examples of supervised training, such as a stage after preferences.

What lives here: `AnsweredPrompts`. What does not: the objective, `objectives.Supervised`.
"""

from __future__ import annotations

import dataclasses

from seva_jax.data.collect import NAMED, counted
from seva_jax.data.sources import PreferenceSet, PreferenceSource, PromptSource
from seva_jax.types import Comparison, DataError


@dataclasses.dataclass(frozen=True)
class AnsweredPrompts(PreferenceSource):
    """The prompts of a source, each with one answer and none to compare it with.

    Prompts without a text in the field are counted and left out ("no answer").

    Attributes:
        source: the prompts.
        field: of their `meta`, the answer; `QuestionsJsonl` puts a record's fields there.
    """

    source: PromptSource = PromptSource()
    field: str = "answer"

    def open(self) -> PreferenceSet:
        """See `PromptSource.open`."""
        if self.source.has_answers:
            raise DataError(
                f"AnsweredPrompts.source is {type(self.source).__name__}, which has pairs; give a "
                "source of prompts"
            )
        data = self.source.open()
        drops, left_out = data.drops.copy(), list(data.left_out)
        kept: list[Comparison] = []
        for prompt in data.prompts:
            answer = prompt.meta.get(self.field)
            if isinstance(answer, str) and answer.strip():
                kept.append(Comparison(prompt, (answer.strip(),)))
                continue
            drops["no answer"] += 1
            if len(left_out) < NAMED:
                left_out.append(f"prompt {prompt.id!r}: no answer: {self.field} must be a text")
        if not kept:
            raise DataError(f"AnsweredPrompts: no prompt has an answer ({counted(drops)})")
        return PreferenceSet(
            [c.prompt for c in kept], data.load_image, drops, data.read_image, kept,
            left_out=left_out,
        )  # fmt: skip
