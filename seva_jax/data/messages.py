"""Pairs made of chat messages: TRL's and ms-swift's.

What lives here: both formats, and how messages become a question and answers. What does not:
formats with plain fields (`preferences.py`), and where images stand (`places.py`). A comparison is
one question with its answers, so a conversation with several turns or a system message is left out
and counted.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from typing_extensions import override

from seva_jax.data.collect import (
    compared,
    compared_apart,
    images_of,
    listed,
    meta_of,
)
from seva_jax.data.fields import either, given
from seva_jax.data.places import question_of
from seva_jax.data.preferences import Entry, PairsFile
from seva_jax.types import IMAGE_MARKER, Comparison, ExampleError, Prompt


class Message(NamedTuple):
    """A message of a chat.

    Attributes:
        role: "user", "assistant" or "system".
        texts: the parts of its content; a part that is an image is `<image>`.
    """

    role: str
    texts: tuple[str, ...]


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
        sides = [
            messages(given(record, side, "no messages"), "assistant")
            for side in ("chosen", "rejected")
        ]
        if record.get("prompt") is None:
            if len(sides[0]) == len(sides[1]) == 1:
                given(record, "prompt", "no question")  # raises, since it is missing
            (*asked, chosen), (*asked_too, rejected) = sides
            if _only(asked, "prompt", "user") != _only(asked_too, "prompt", "user"):
                raise ExampleError("chosen and rejected answer different prompts", "no question")
            sides = [[chosen], [rejected]]
        else:
            asked = messages(record["prompt"], "user")
        names, id_ = _names(record, "images", "image"), record.get("id")
        id_ = str(entry.index if id_ is None else id_)
        meta = meta_of(record, ("id", "image", "images", "prompt", "chosen", "rejected"))
        prompt = Prompt(id_, question(asked, names), names, meta)
        return compared(prompt, *(answer(side) for side in sides))

    @override
    @classmethod
    def recognizes(cls, record: Mapping[str, Any]) -> bool:
        sides = [record.get("chosen"), record.get("rejected")]
        if "prompt" in record:
            return all(isinstance(side, str) or has_roles(side) for side in sides)
        return all(map(has_roles, sides))


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
        *asked, chosen = messages(given(record, "messages", "no messages"), "user")
        if record.get("rejected_messages") is not None:
            *asked_too, rejected = messages(record["rejected_messages"], "user")
            rejected = answer([rejected])
        else:
            asked_too, rejected = asked, record.get("rejected_response")
            if rejected is None and others != names:
                rejected = answer([chosen])
        used = (key for key in record if key.startswith("rejected"))
        meta = meta_of(record, ("messages", "images", *used))
        prompt = Prompt(str(entry.index), question(asked, names), names, meta)
        shown = dataclasses.replace(prompt, question=question(asked_too, others), images=others)
        if shown.question != prompt.question:
            raise ExampleError("chosen and rejected answer different prompts", "no question")
        if rejected is None:
            given(record, "rejected_response", "empty rejected answer", "rejected_messages")
        if others == names:
            return compared(prompt, answer([chosen]), rejected)
        return compared_apart(prompt, answer([chosen]), shown, rejected)

    @override
    @classmethod
    def recognizes(cls, record: Mapping[str, Any]) -> bool:
        others = ("rejected_response", "rejected_messages", "rejected_images")
        return has_roles(record.get("messages")) and any(name in record for name in others)


def has_roles(value: Any) -> bool:
    """Returns whether a field holds chat messages, by the first one."""
    first = value[0] if isinstance(value, list) and value else value
    return isinstance(first, dict) and {"role", "content"} <= first.keys()


def _names(record: dict[str, Any], field: str, other: str) -> tuple[str, ...]:
    """Returns image names, which may be wrapped as `{"path": name}`; none is a text prompt."""
    named = field if record.get(field) is not None else other
    return images_of({named: listed(either(record, field, other))}, named, named)


def messages(value: Any, role: str) -> list[Message]:
    """Returns messages; a plain string is one message of `role`.

    Raises:
        ExampleError: it is neither a text nor a list of messages with images and texts.
    """
    if isinstance(value, str):
        return [Message(role, (value,))]
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list) or not value:
        raise ExampleError("expected a text or a list of messages", "no messages")
    if not all(isinstance(message, dict) for message in value):
        raise ExampleError('a message must be {"role", "content"}', "no messages")
    return [
        Message(
            str(given(message, "role", "no messages")),
            _texts(given(message, "content", "no messages")),
        )
        for message in value
    ]


def _texts(content: Any) -> tuple[str, ...]:
    """Returns the parts of a message's content, with a marker for each image."""
    texts = []
    for part in content if isinstance(content, list) else [{"type": "text", "text": content}]:
        if not isinstance(part, dict) or part.get("type") not in ("image", "text"):
            kind = part.get("type") if isinstance(part, dict) else type(part).__name__
            raise ExampleError(f"content of type {kind!r}; use image and text", "no messages")
        text = IMAGE_MARKER if part["type"] == "image" else part.get("text") or ""
        if not isinstance(text, str):
            raise ExampleError(f"text must be a text, not {type(text).__name__}", "no messages")
        texts.append(text)
    return tuple(texts)


def question(asked: Sequence[Message], images: Sequence[str]) -> str:
    """Returns the text of the only user message, its images placed by `question_of`.

    Raises:
        ExampleError: there are other messages; or see `question_of`.
    """
    return question_of(_only(asked, "prompt", "user").texts, images)


def answer(said: Sequence[Message]) -> str:
    """Returns the text of the only message, which must be the assistant's.

    Raises:
        ExampleError: there are other messages.
    """
    return " ".join(_only(said, "answer", "assistant").texts).strip()


def _only(said: Sequence[Message], part: str, role: str) -> Message:
    """Returns the only message, which must be of `role`."""
    roles = [message.role for message in said]
    if "system" in roles:
        raise ExampleError(
            f"the {part} has a system message; the run's template has one, so leave it out",
            "system message",
        )
    if len(roles) > 1:
        raise ExampleError(
            f"the {part} has several turns ({', '.join(roles)}); pairs have one question with its "
            "answers, so conversations are not used yet",
            "several turns",
        )
    if not roles:
        raise ExampleError(f"there is no message of {role} for the {part}", "no messages")
    if roles != [role]:
        raise ExampleError(
            f"the {part} is a message of {roles[0]}; it must be of {role}", "wrong role"
        )
    return said[0]
