"""Pairs made of chat messages: TRL's and ms-swift's.

What lives here: both formats, and how messages become a question and answers. What does not:
formats with plain fields (`preferences.py`). A comparison here is one question with its answers,
so a conversation of several turns, or one with a system message, is counted and left out.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from seva_jax.data.collect import compared, compared_apart, either, images_of, meta_of
from seva_jax.data.preferences import Entry, PairsFile
from seva_jax.types import IMAGE_MARKER, Comparison, ExampleError, Prompt


@dataclasses.dataclass(frozen=True)
class TrlPairs(PairsFile):
    """TRL's vision preferences: `images` (or `image`), `prompt`, `chosen`, `rejected`.

    The three are strings, or lists of messages whose content is a string or a list of
    `{"type": "image"}` and `{"type": "text", "text": ...}`. Without `prompt`, `chosen` and
    `rejected` both begin with it. A prompt's id is the record's `id`, or else its number, from 0.
    """

    def parse(self, entry: Entry) -> Comparison:
        """See `PairsFile.parse`."""
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
        prompt = Prompt(
            str(entry.index if id_ is None else id_),
            _question(question, len(names)),
            names,
            meta_of(record, ("id", "image", "images", "prompt", "chosen", "rejected")),
        )
        return compared(prompt, *(_answer(side) for side in sides))


@dataclasses.dataclass(frozen=True)
class SwiftPairs(PairsFile):
    """ms-swift's preferences: `messages` that end in the chosen answer, and what is rejected.

    That is `rejected_response`, or `rejected_messages`; images are in `images`. Where there are
    `rejected_images` other than these, the rejected side is a tree of its own (`Comparison.more`),
    and without a rejected text its answer is the chosen one. A prompt's id is the record's
    number, from 0.
    """

    def parse(self, entry: Entry) -> Comparison:
        """See `PairsFile.parse`."""
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
        shown = dataclasses.replace(
            prompt, question=_question(asked_too, len(others)), images=others
        )
        if shown.question != prompt.question:
            raise ExampleError("chosen and rejected answer different prompts", "no question")
        if others == names:
            return compared(prompt, _answer([chosen]), rejected)
        return compared_apart(prompt, _answer([chosen]), shown, rejected)


def _names(record: dict[str, Any], field: str, other: str) -> tuple[str, ...]:
    """Image names; they may be wrapped as `{"path": name}`, and none at all is a text prompt."""
    found = either(record, field, other)
    listed = [] if found is None else found if isinstance(found, list) else [found]
    unwrapped = [x.get("path") if isinstance(x, dict) else x for x in listed]
    return images_of({"image": unwrapped})


def _messages(found: Any, role: str) -> list[tuple[str, str]]:
    """Role and text of each message; a plain string is one message of `role`."""
    if isinstance(found, str):
        return [(role, found)]
    if isinstance(found, dict):
        found = [found]
    if not isinstance(found, list) or not found:
        raise ExampleError("expected a text or a list of messages", "no messages")
    return [(str(m.get("role")), _text(m.get("content"))) for m in map(_message, found)]


def _message(found: Any) -> dict[str, Any]:
    if not isinstance(found, dict):
        raise ExampleError('a message must be {"role", "content"}', "no messages")
    return found


def _text(content: Any) -> str:
    """Content as text, with a marker where an image stands."""
    parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
    text = ""
    for part in parts:
        if not isinstance(part, dict) or part.get("type") not in ("image", "text"):
            kind = part.get("type") if isinstance(part, dict) else type(part).__name__
            raise ExampleError(f"content of type {kind!r}; use image and text", "no messages")
        said = IMAGE_MARKER if part["type"] == "image" else part.get("text") or ""
        if not isinstance(said, str):
            raise ExampleError(f"a text that is {type(said).__name__}", "no messages")
        text += said
    return text.strip()


def _question(messages: list[tuple[str, str]], num_images: int) -> str:
    """The text of the one user message, without markers if all stand before the first word."""
    if [role for role, _ in messages] != ["user"]:
        roles = ", ".join(role for role, _ in messages) or "none"
        raise ExampleError(
            f"the prompt has messages of {roles}; one of user is used", "not one turn"
        )
    text = messages[0][1]
    markers = text.count(IMAGE_MARKER)
    if markers not in (0, num_images):
        raise ExampleError(
            f"the prompt has {markers} places for {num_images} images", "image markers"
        )
    words = text
    while words.startswith(IMAGE_MARKER):
        words = words.removeprefix(IMAGE_MARKER).lstrip()
    return text if IMAGE_MARKER in words else words  # the template puts leading ones there


def _answer(messages: list[tuple[str, str]]) -> str:
    if [role for role, _ in messages] != ["assistant"]:
        roles = ", ".join(role for role, _ in messages) or "none"
        raise ExampleError(
            f"the answer has messages of {roles}; one of assistant is used", "not one turn"
        )
    return messages[0][1]
