"""Pairs made of chat messages: TRL's and ms-swift's.

What lives here: both formats, and how messages become a question and answers. What does not:
formats with plain fields (`preferences.py`). A comparison is one question with its answers, so a
conversation with several turns or a system message is left out and counted.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from typing_extensions import override

from seva_jax.data.collect import compared, compared_apart, either, images_of, listed, meta_of
from seva_jax.data.preferences import Entry, PairsFile
from seva_jax.types import IMAGE_MARKER, Comparison, ExampleError, Prompt


@dataclasses.dataclass(frozen=True)
class TrlPairs(PairsFile):
    """TRL's vision preferences: `images` (or `image`), `prompt`, `chosen`, `rejected`.

    The last three are strings, or lists of messages whose content is a string or a list of
    `{"type": "image"}` and `{"type": "text", "text": ...}`. Where `prompt` is missing, `chosen` and
    `rejected` both begin with it. A prompt's id is the record's `id`, or else its number, from 0.
    """

    @override
    def parse(self, entry: Entry) -> Comparison:
        record = entry.record
        sides = [_messages(record.get(side), "assistant") for side in ("chosen", "rejected")]
        if record.get("prompt") is None:
            openings = [side[:-1] for side in sides]
            if openings[0] != openings[1]:
                raise ExampleError("chosen and rejected answer different prompts", "no question")
            question, sides = openings[0], [side[-1:] for side in sides]
        else:
            question = _messages(record["prompt"], "user")
        names, id_ = _names(record, "images", "image"), record.get("id")
        id_ = str(entry.index if id_ is None else id_)
        meta = meta_of(record, ("id", "image", "images", "prompt", "chosen", "rejected"))
        prompt = Prompt(id_, _question(question, len(names)), names, meta)
        return compared(prompt, *(_answer(side) for side in sides))

    @override
    @classmethod
    def recognizes(cls, record: Mapping[str, Any]) -> bool:
        sides = [record.get("chosen"), record.get("rejected")]
        if "prompt" in record:
            return all(isinstance(side, str) or _has_roles(side) for side in sides)
        return all(map(_has_roles, sides))


@dataclasses.dataclass(frozen=True)
class SwiftPairs(PairsFile):
    """ms-swift's preferences: `messages` that end in the chosen answer, and a rejected one.

    The rejected answer is in `rejected_response`, or ends `rejected_messages`; images are in
    `images`. Where `rejected_images` differ from these, the rejected side is a view of its own
    (`Comparison.more`); if it has no text, its answer is the chosen one. A prompt's id is the
    record's number, from 0.
    """

    @override
    def parse(self, entry: Entry) -> Comparison:
        record = entry.record
        names = _names(record, "images", "images")
        others = _names(record, "rejected_images", "images")
        *asked, chosen = _messages(record.get("messages"), "user")
        if record.get("rejected_messages") is not None:
            *asked_too, rejected = _messages(record["rejected_messages"], "user")
            rejected = _answer([rejected])
        else:
            asked_too, rejected = asked, record.get("rejected_response")
            if rejected is None and others != names:
                rejected = _answer([chosen])
        used = (key for key in record if key.startswith("rejected"))
        meta = meta_of(record, ("messages", "images", *used))
        prompt = Prompt(str(entry.index), _question(asked, len(names)), names, meta)
        question = _question(asked_too, len(others))
        shown = dataclasses.replace(prompt, question=question, images=others)
        if question != prompt.question:
            raise ExampleError("chosen and rejected answer different prompts", "no question")
        if others == names:
            return compared(prompt, _answer([chosen]), rejected)
        return compared_apart(prompt, _answer([chosen]), shown, rejected)

    @override
    @classmethod
    def recognizes(cls, record: Mapping[str, Any]) -> bool:
        others = ("rejected_response", "rejected_messages", "rejected_images")
        return _has_roles(record.get("messages")) and any(name in record for name in others)


def _has_roles(value: Any) -> bool:
    """Returns whether a field holds chat messages, by the first one."""
    first = value[0] if isinstance(value, list) and value else value
    return isinstance(first, dict) and {"role", "content"} <= first.keys()


def _names(record: dict[str, Any], field: str, other: str) -> tuple[str, ...]:
    """Returns image names, which may be wrapped as `{"path": name}`; none is a text prompt."""
    images = listed(either(record, field, other))
    return images_of({"image": [x.get("path") if isinstance(x, dict) else x for x in images]})


def _messages(value: Any, role: str) -> list[tuple[str, str]]:
    """Returns role and text of each message; a plain string is one message of `role`."""
    if isinstance(value, str):
        return [(role, value)]
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list) or not value:
        raise ExampleError("expected a text or a list of messages", "no messages")
    if not all(isinstance(message, dict) for message in value):
        raise ExampleError('a message must be {"role", "content"}', "no messages")
    return [(str(message.get("role")), _text(message.get("content"))) for message in value]


def _text(content: Any) -> str:
    """Returns content as text, with a marker for each image."""
    parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
    text = ""
    for part in parts:
        if not isinstance(part, dict) or part.get("type") not in ("image", "text"):
            kind = part.get("type") if isinstance(part, dict) else type(part).__name__
            raise ExampleError(f"content of type {kind!r}; use image and text", "no messages")
        words = IMAGE_MARKER if part["type"] == "image" else part.get("text") or ""
        if not isinstance(words, str):
            raise ExampleError(f"text must be a text, not {type(words).__name__}", "no messages")
        text += words
    return text.strip()


def _question(messages: list[tuple[str, str]], num_images: int) -> str:
    """Returns the text of the only user message, without markers that are all in front."""
    text = _only(messages, "prompt", "user")
    markers = text.count(IMAGE_MARKER)
    if markers not in (0, num_images):
        raise ExampleError(
            f"the prompt has {markers} places for {num_images} images", "image markers"
        )
    words = text
    while words.startswith(IMAGE_MARKER):
        words = words.removeprefix(IMAGE_MARKER).lstrip()
    return text if IMAGE_MARKER in words else words  # the template adds leading ones itself


def _answer(messages: list[tuple[str, str]]) -> str:
    return _only(messages, "answer", "assistant")


def _only(messages: list[tuple[str, str]], part: str, role: str) -> str:
    """Returns the text of the only message, which must be of `role`."""
    roles = [own for own, _ in messages]
    if roles != [role]:
        raise ExampleError(
            f"the {part} has messages of {', '.join(roles) or 'none'}; it must be one of {role}",
            "not one turn",
        )
    return messages[0][1]
