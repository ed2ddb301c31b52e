"""Conversation templates: the exact words around a question and its answer.

What lives here: `Template` and the templates of LLaVA's family, InternVL3 and Qwen-VL. What does
not: token ids (`encode.py`), the chat template of an export (`seva_jax/convert/processor.py`). Read
next: `encode.py`.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated

from seva_jax.ranges import ADDED
from seva_jax.types import IMAGE_MARKER, ExampleError


@dataclasses.dataclass(frozen=True)
class Template:
    r"""One question and one answer: `SYSTEM USER: <image>\nQUESTION ASSISTANT: ANSWER</s>`.

    Chats have several turns; only an exported chat template writes them.

    Attributes:
        system: system prompt before the question; empty for none.
        user: name of the role that asks.
        assistant: name of the role that answers.
        sep: text after the system prompt and after the question.
        lead: text after "ASSISTANT:", before the answer; None means `sep`.
        end: text that closes the answer; must be one special token of the tokenizer.
        colon: whether user and assistant are names with a colon after them ("USER: "). Otherwise
            they are all of the text that comes before the question and after it.
        image_end: text after each image in front of the question.
        text_start: text between the images in front of the question and its words; also there
            without images.
        system_start: text before the system prompt.
        system_end: text after the system prompt; None means `sep`.
        turn_end: text between the end of an answer and the next question of a chat.
        earlier: text before the answers of earlier turns of a chat; None means assistant and lead.
    """

    system: str
    user: str = "USER"
    assistant: str = "ASSISTANT"
    sep: str = " "
    lead: str | None = None
    end: str = "</s>"
    colon: Annotated[bool, ADDED] = True
    image_end: Annotated[str, ADDED] = "\n"
    text_start: Annotated[str, ADDED] = ""
    system_start: Annotated[str, ADDED] = ""
    system_end: Annotated[str | None, ADDED] = None
    turn_end: Annotated[str, ADDED] = ""
    earlier: Annotated[str | None, ADDED] = None

    @property
    def before_question(self) -> str:
        """Returns "USER: ", the text before a question and its images."""
        return f"{self.user}: " if self.colon else self.user

    @property
    def after_question(self) -> str:
        """Returns "ASSISTANT:", the end of a prompt after `sep`."""
        return f"{self.assistant}:" if self.colon else self.assistant

    @property
    def before_answer(self) -> str:
        """Returns the text between "ASSISTANT:" and the answer."""
        return self.sep if self.lead is None else self.lead

    @property
    def before_earlier_answer(self) -> str:
        """Returns the text between question and answer of an earlier turn, after `sep`."""
        return self.after_question + self.before_answer if self.earlier is None else self.earlier

    @property
    def after_system(self) -> str:
        """Returns the text after a system prompt."""
        return self.sep if self.system_end is None else self.system_end

    def prompt(self, question: str, num_images: int = 1) -> str:
        r"""Returns everything before the answer, up to and including "ASSISTANT:".

        Args:
            question: the user's question. Image markers in it stay where they are.
            num_images: how many images the question is about. If the question has no markers, all
                images are put in front of it, each with `image_end` after it: a line `<image>`.

        Raises:
            ExampleError: the question is empty, or has markers, but not `num_images` of them.

        >>> PLAIN.prompt("What is this?")
        'USER: <image>\nWhat is this? ASSISTANT:'
        >>> PLAIN.prompt("Is <image> like <image>?", num_images=2)
        'USER: Is <image> like <image>? ASSISTANT:'
        >>> CHATML.prompt("What is this?")
        '<|im_start|>user\n<image>\nWhat is this?<|im_end|>\n<|im_start|>assistant\n'
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
            images = f"{IMAGE_MARKER}{self.image_end}" * num_images
            question = f"{images}{self.text_start}{question}"
        opening = self.system_start + self.system + self.after_system if self.system else ""
        return f"{opening}{self.before_question}{question}{self.sep}{self.after_question}"


# The two system prompts differ only in "user" and "human". LLaVA-NeXT with Vicuna has these words,
# too; the chat templates of the Hub's LLaVA-1.5 and LLaVA-NeXT write them without a system prompt.
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

# The chat templates of checkpoints on the Hub: llava-hf/llava-v1.6-mistral-7b-hf,
MISTRAL = Template(
    "", user="[INST] ", assistant="[/INST]", colon=False,
    system_start="<<SYS>>\n", system_end="\n<</SYS>>\n\n", turn_end=" ",
)  # fmt: skip
# llava-hf/llama3-llava-next-8b-hf, whose earlier answers have one more line break,
LLAMA_3 = Template(
    "",
    user="<|start_header_id|>user<|end_header_id|>\n\n",
    assistant="<|start_header_id|>assistant<|end_header_id|>\n\n",
    sep="<|eot_id|>",
    lead="",
    end="<|eot_id|>",
    colon=False,
    image_end="",
    text_start="\n",
    system_start="<|start_header_id|>system<|end_header_id|>\n\n\n",
    earlier="<|start_header_id|>assistant<|end_header_id|>\n\n\n",
)
# OpenGVLab/InternVL3-*-hf, and llava-hf/llava-onevision-qwen2-* before they became the next one,
CHATML = Template(
    "",
    user="<|im_start|>user\n",
    assistant="<|im_start|>assistant\n",
    sep="<|im_end|>\n",
    lead="",
    end="<|im_end|>",
    colon=False,
    system_start="<|im_start|>system\n",
    turn_end="\n",
)
# and llava-hf/llava-onevision-qwen2-*.
ONEVISION = Template(
    "",
    user="<|im_start|>user ",
    assistant="<|im_start|>assistant\n",
    sep="<|im_end|>",
    lead="",
    end="<|im_end|>",
    colon=False,
    image_end="",
    text_start="\n",
    system_start="<|im_start|>system \n",
    earlier="<|im_start|>assistant \n",
)
# OpenGVLab/InternVL3-*, from which the directories with -hf were made, have this system prompt.
INTERNVL3 = dataclasses.replace(
    CHATML,
    system="你是书生·万象，英文名是InternVL，"
    "是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。",
)
# Qwen/Qwen2-VL-*-Instruct and Qwen/Qwen2.5-VL-*-Instruct have a system prompt of their own, and
# Qwen/Qwen3-VL-*-Instruct have none.
QWEN2_VL = dataclasses.replace(CHATML, system="You are a helpful assistant.", image_end="")
QWEN3_VL = dataclasses.replace(CHATML, image_end="")
