"""The words around a question, as a checkpoint's own chat template has them.

What lives here: `read_template`, which reads what `processor.write_chat_template` and others write.
What does not: templates and their tokens (`seva_jax/text`).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from seva_jax.convert.original import original_text, read_json
from seva_jax.convert.processor import CHAT, OLD_CHAT, TOKENIZER
from seva_jax.images.processor_files import PROCESSOR
from seva_jax.text.templates import (
    CHATML,
    LLAMA_3,
    MISTRAL,
    ONEVISION,
    QWEN3_VL,
    QWEN_1_5,
    VICUNA_V1,
    Template,
)
from seva_jax.types import IMAGE_MARKER, DataError

_QUESTION, _ANSWER = "QUESTION", "ANSWER"
_TEXT = f"{IMAGE_MARKER}\n{_QUESTION}"
_KNOWN = (MISTRAL, LLAMA_3, CHATML, ONEVISION, QWEN3_VL)
# OPENING USER: <image>\nQUESTION SEP ASSISTANT:
_PROMPT = re.compile(
    rf"(?P<opening>.*?)(?P<user>\w+): {IMAGE_MARKER}\n{_QUESTION}(?P<sep>\W*?)(?P<assistant>\w+):",
    re.DOTALL,
)


def read_template(
    directory: Path, tokenizer: Any, original: bool = False, image: str = IMAGE_MARKER
) -> Template:
    """Returns the template of a checkpoint's chat template, or `VICUNA_V1` if it has none.

    A checkpoint in the original LLaVA's layout has none: LLaVA's code knows those of its models.

    Args:
        directory: the checkpoint.
        tokenizer: its tokenizer, whose end token ends an answer.
        original: whether it is in the original LLaVA's layout.
        image: what its chat template writes for an image.

    Raises:
        DataError: a file cannot be read, or the chat template writes something other than
            SYSTEM USER: QUESTION ASSISTANT: ANSWER, with any names of the two, or than Mistral,
            Llama 3 or ChatML.
    """
    if original:
        config = directory / "config.json"
        named = original_text(config, read_json(config))
        if named == "llama" and LLAMA_3.end in tokenizer.get_vocab():
            return LLAMA_3
        return {"llama": VICUNA_V1, "mistral": MISTRAL, "qwen2": QWEN_1_5}[named]
    path, chat = _stored(directory)
    if chat is None:
        return VICUNA_V1
    one, two = ([{"type": "image"}] * n + [{"type": "text", "text": _QUESTION}] for n in (1, 2))
    for content in (one, _TEXT):
        template = _parsed(tokenizer, chat, _asked(content))
        if template is not None:
            return template
    # Two images tell whether a line break follows each of them. A text has its own line breaks.
    for contents in ([(one, _QUESTION, 1), (two, _QUESTION, 2)], [(_TEXT, _TEXT, 1)]):
        template = _known(tokenizer, chat, contents, image)
        if template is not None:
            return template
    raise DataError(
        f"{path}: its chat template is not of the form SYSTEM USER: QUESTION ASSISTANT: ANSWER, "
        "nor that of Mistral, Llama 3 or ChatML; give the template yourself"
    )


def own_chat_template(directory: Path) -> str | None:
    """Returns the chat template that a directory has for transformers; None if it has none.

    Raises:
        DataError: a file cannot be read.
    """
    return _stored(directory)[1]


def _asked(content: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": content}]


def _known(
    tokenizer: Any, chat: str, contents: Sequence[tuple[Any, str, int]], image: str
) -> Template | None:
    """Returns which of `_KNOWN` a chat template writes, with its system prompt, or None.

    Args:
        tokenizer: renders the chat template.
        chat: the chat template.
        contents: contents of a message, each with the question and the number of images that it is
            for `Template.prompt`.
        image: see `read_template`.
    """
    try:
        written = [
            _rendered(tokenizer, chat, _asked(content), add_generation_prompt=True)
            for content, _, _ in contents
        ]
    except Exception:  # as in `_parsed`
        return None
    written = [text.replace(image, IMAGE_MARKER) for text in written]
    for known in _KNOWN:
        opening = written[0].removesuffix(known.prompt(*contents[0][1:]))
        system = opening.removeprefix(known.system_start).removesuffix(known.after_system)
        template = dataclasses.replace(known, system=system)
        if written == [template.prompt(question, num) for _, question, num in contents]:
            return template
    return None


def _stored(directory: Path) -> tuple[Path, str | None]:
    """Returns a checkpoint's chat template and the file that has it; None if there is none."""
    path = directory / CHAT
    if path.is_file():
        try:
            return path, path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{path} cannot be read ({error}): fetch it again") from None
    for name in (OLD_CHAT, PROCESSOR, TOKENIZER):
        path = directory / name
        chat = read_json(path).get("chat_template") if path.is_file() else None
        if isinstance(chat, list):  # several, with names
            named = {x.get("name"): x.get("template") for x in chat if isinstance(x, dict)}
            chat = named.get("default")
        if isinstance(chat, str):
            return path, chat
    return directory, None


def _parsed(tokenizer: Any, chat: str, messages: list[dict[str, Any]]) -> Template | None:
    """Returns the template that writes the messages as a chat template does, or None."""
    answered = [*messages, {"role": "assistant", "content": [{"type": "text", "text": _ANSWER}]}]
    if isinstance(messages[0]["content"], str):
        answered[-1]["content"] = _ANSWER
    try:
        asked = _rendered(tokenizer, chat, messages, add_generation_prompt=True)
        whole = _rendered(tokenizer, chat, answered)
    except Exception:  # Jinja raises many types, and a chat template may raise its own
        return None
    match = _PROMPT.fullmatch(asked)
    if match is None:
        return None
    lead, marker, _ = whole.removeprefix(asked).partition(_ANSWER)
    sep = match["sep"]
    template = Template(
        system=match["opening"].removesuffix(sep),
        user=match["user"],
        assistant=match["assistant"],
        sep=sep,
        lead=None if lead == sep or not marker or not whole.startswith(asked) else lead,
        end=tokenizer.eos_token,
    )
    return template if template.prompt(_QUESTION) == asked else None


def _rendered(tokenizer: Any, chat: str, messages: list[dict[str, Any]], **options: bool) -> str:
    """Returns messages as transformers writes them, without the start token in front."""
    text = tokenizer.apply_chat_template(messages, chat_template=chat, tokenize=False, **options)
    return text.removeprefix(tokenizer.bos_token or "")
