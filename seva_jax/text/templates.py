"""Conversation templates: the exact words around a question and its answer.

What lives here: `Template` and the templates of the LLaVA-1.5 family. What does not: token ids
(`encode.py`). Read next: `encode.py`.
"""

from __future__ import annotations

import dataclasses

from seva_jax.types import IMAGE_MARKER, ExampleError


@dataclasses.dataclass(frozen=True)
class Template:
    r"""One question and one answer: `SYSTEM USER: <image>\nQUESTION ASSISTANT: ANSWER</s>`.

    Attributes:
        system: system prompt before the question; empty for none.
        user: name of the role that asks.
        assistant: name of the role that answers.
        sep: text after the system prompt and after the question.
        lead: text after "ASSISTANT:", before the answer; None means `sep`.
        end: text that closes the answer; must be the tokenizer's end token.
    """

    system: str
    user: str = "USER"
    assistant: str = "ASSISTANT"
    sep: str = " "
    lead: str | None = None
    end: str = "</s>"

    @property
    def before_answer(self) -> str:
        """Returns the text between "ASSISTANT:" and the answer."""
        return self.sep if self.lead is None else self.lead

    def prompt(self, question: str, num_images: int = 1) -> str:
        r"""Returns everything before the answer, up to and including "ASSISTANT:".

        Args:
            question: the user's question. Image markers in it stay where they are.
            num_images: how many images the question is about. If the question has no markers, a
                line `<image>` is put before it for each image.

        Raises:
            ExampleError: the question is empty, or has markers, but not `num_images` of them.

        >>> PLAIN.prompt("What is this?")
        'USER: <image>\nWhat is this? ASSISTANT:'
        >>> PLAIN.prompt("Is <image> like <image>?", num_images=2)
        'USER: Is <image> like <image>? ASSISTANT:'
        """
        if not question.replace(IMAGE_MARKER, "").strip():
            raise ExampleError(
                f"empty question: {question!r} has no words; drop the example or write a question",
                "empty question",
            )
        markers = question.count(IMAGE_MARKER)
        if markers not in (0, num_images):
            raise ExampleError(
                f"the question has {markers} {IMAGE_MARKER} markers but the example has "
                f"{num_images} images: {question[:80]!r}; make them agree or leave the markers out",
                "image markers",
            )
        if markers == 0:
            question = f"{IMAGE_MARKER}\n" * num_images + question
        opening = self.system + self.sep if self.system else ""
        return f"{opening}{self.user}: {question}{self.sep}{self.assistant}:"


# The two system prompts differ only in "user" and "human".
# SeVa: answers are generated with LLAVA_V1 and trained with VICUNA_V1.
VICUNA_V1 = Template(
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
LLAVA_V1 = Template(
    "A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the human's questions."
)
# MIA-DPO: answers are generated with LLAVA_V0 and trained with VICUNA_V1. LLaVA's template ends an
# answer with "###" too; a model that was not trained with it ends with "</s>".
LLAVA_V0 = Template(LLAVA_V1.system, user="Human", assistant="Assistant", sep="###", lead=" ")
PLAIN = Template("")  # for models too small to afford a system prompt
