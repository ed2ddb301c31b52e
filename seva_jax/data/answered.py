"""Prompts with their answers as examples of supervised training.

What lives here: `AnsweredPrompts`. What does not: the objective
(`seva_jax/objectives/supervised.py`).
"""

from __future__ import annotations

import dataclasses

from typing_extensions import override

from seva_jax.data.collect import counted
from seva_jax.data.fields import given
from seva_jax.data.sources import PreferenceSet, PreferenceSource, PromptSource
from seva_jax.data.wrapped import changed, opened_prompts
from seva_jax.types import Comparison, DataError, ExampleError, Prompt


@dataclasses.dataclass(frozen=True)
class AnsweredPrompts(PreferenceSource):
    """The prompts of a source, each with its answer and no other to compare it with.

    Prompts without a text in the field are left out and counted ("no answer").

    Attributes:
        source: the prompts.
        field: the field of a prompt's `meta` that holds its answer; `QuestionsJsonl` puts the
            fields of a record there.
    """

    source: PromptSource = PromptSource()
    field: str = "answer"

    @override
    def open(self) -> PreferenceSet:
        data = opened_prompts(self.source, "AnsweredPrompts")
        kept, drops, left_out = changed(data, data.prompts, self._answered)
        if not kept:
            raise DataError(f"AnsweredPrompts: no prompt has an answer ({counted(drops)})")
        return PreferenceSet(
            [c.prompt for c in kept], data.load_image, drops, data.read_image, kept,
            left_out=left_out, notes=data.notes, remote=data.remote, read_size=data.read_size,
        )  # fmt: skip

    def _answered(self, prompt: Prompt) -> Comparison:
        answer = given(prompt.meta, self.field, "no answer")
        if not isinstance(answer, str) or not answer.strip():
            raise ExampleError(f"{self.field} must be a text", "no answer")
        return Comparison(prompt, (answer.strip(),))
