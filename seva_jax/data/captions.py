"""Prompts about captioned clips: answered with the captions, trained on without (TEMPLE).

What lives here: putting captions into questions and taking them out. What does not: other orders of
captions (`seva_jax/corrupt/sequence.py`), and which of the answers become pairs
(`seva_jax/pairs/temple.py`).
"""

from __future__ import annotations

import dataclasses

from typing_extensions import override

from seva_jax.corrupt.sequence import captioned
from seva_jax.data.collect import counted
from seva_jax.data.sources import PromptSet, PromptSource
from seva_jax.data.wrapped import changed, opened_prompts
from seva_jax.types import DataError, ExampleError, Prompt


@dataclasses.dataclass(frozen=True)
class CaptionedPrompts(PromptSource):
    """The prompts of a source with the captions of their clips in front of the question.

    Captions are a list of texts in the prompt's `meta["captions"]`, where `QuestionsJsonl` puts a
    field of that name. Prompts without captions are left out and counted ("no captions"). The
    original question and images are kept in `meta["question"]` and `meta["images"]`, for
    `without_captions`.

    Attributes:
        source: the prompts.
        images: whether the images are shown in addition to the captions.
    """

    source: PromptSource = PromptSource()
    images: bool = False

    @override
    def open(self) -> PromptSet:
        """Raises `DataError` also for prompts with answers, or if no prompt has captions."""
        data = opened_prompts(self.source, "CaptionedPrompts")
        kept, drops, left_out = changed(data, data.prompts, self._captioned)
        if not kept:
            raise DataError(f"CaptionedPrompts: no prompt has captions ({counted(drops)})")
        return dataclasses.replace(data, prompts=kept, drops=drops, left_out=left_out)

    def _captioned(self, prompt: Prompt) -> Prompt:
        captions = prompt.meta.get("captions")
        if not isinstance(captions, list) or not captions:
            raise ExampleError("meta has no list of captions; give one", "no captions")
        if not all(isinstance(text, str) and text.strip() for text in captions):
            raise ExampleError("a caption is empty or not a text; fix it", "no captions")
        return dataclasses.replace(
            prompt,
            question=captioned(prompt.question, captions),
            images=prompt.images if self.images else (),
            meta=prompt.meta | {"question": prompt.question, "images": list(prompt.images)},
        )


def without_captions(prompt: Prompt) -> Prompt:
    """Returns a prompt of `CaptionedPrompts` as it was before; others are returned unchanged."""
    if "captions" not in prompt.meta or "question" not in prompt.meta:
        return prompt
    meta = {key: x for key, x in prompt.meta.items() if key not in ("question", "images")}
    return dataclasses.replace(
        prompt, question=prompt.meta["question"], images=tuple(prompt.meta["images"]), meta=meta
    )
