"""Prompts with their answers as examples of supervised training, such as a stage after preferences.

What lives here: `AnsweredPrompts`. What does not: the objective, `objectives.Supervised`.
"""

from __future__ import annotations

import dataclasses

from seva_jax.data.collect import counted
from seva_jax.data.sources import PreferenceSet, PreferenceSource, PromptSource
from seva_jax.data.wrapped import changed, opened_prompts
from seva_jax.types import Comparison, DataError, ExampleError, Prompt


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
        data = opened_prompts(self.source, "AnsweredPrompts")
        kept, drops, left_out = changed(data, data.prompts, self._answered)
        if not kept:
            raise DataError(f"AnsweredPrompts: no prompt has an answer ({counted(drops)})")
        return PreferenceSet(
            [c.prompt for c in kept], data.load_image, drops, data.read_image, kept,
            left_out=left_out,
        )  # fmt: skip

    def _answered(self, prompt: Prompt) -> Comparison:
        answer = prompt.meta.get(self.field)
        if not isinstance(answer, str) or not answer.strip():
            raise ExampleError(f"{self.field} must be a text", "no answer")
        return Comparison(prompt, (answer.strip(),))
