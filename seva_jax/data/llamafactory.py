"""LLaMA-Factory's preference files, `ranking: true` in its `dataset_info.json`.

What lives here: both of its layouts, and the names that `dataset_info.json` may give to columns and
tags. What does not: reading files (`tables.py`).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from typing_extensions import override

from seva_jax.data.collect import as_object, compared, images_of, listed, meta_of, text_of
from seva_jax.data.files import is_conversation
from seva_jax.data.preferences import Entry, PairsFile
from seva_jax.runtime.stores import as_path
from seva_jax.types import Comparison, DataError, ExampleError, Prompt


@dataclasses.dataclass(frozen=True)
class LlamaFactoryPairs(PairsFile):
    """LLaMA-Factory's preferences in its layouts "sharegpt" and "alpaca".

    "sharegpt": `{"conversations": [{"from": "human", "value": ...}], "chosen": {"from": "gpt",
    "value": ...}, "rejected": {...}, "images": [...]}`. "alpaca": `{"instruction", "input",
    "chosen", "rejected", "images"}`, where the question is the instruction and the input, with a
    line break between them. Fields that are not there by default, such as `images`, are used if
    they are there. `<image>` says where an image is; without it, images are in front. A prompt's id
    is the record's number, from 0. A system message, or several turns, are left out and counted.

    Attributes:
        messages: column of the conversation.
        prompt: column of the instruction.
        query: column of the input.
        system: column of a system message.
        history: column of earlier turns of an instruction.
        chosen: column of the better answer.
        rejected: column of the worse answer.
        images: column of the image names.
        role_tag: key of a message's role.
        content_tag: key of a message's text.
        user_tag: role of questions.
        assistant_tag: role of answers.
        system_tag: role of a system message.
    """

    messages: str = "conversations"
    prompt: str = "instruction"
    query: str = "input"
    system: str = "system"
    history: str = "history"
    chosen: str = "chosen"
    rejected: str = "rejected"
    images: str = "images"
    role_tag: str = "from"
    content_tag: str = "value"
    user_tag: str = "human"
    assistant_tag: str = "gpt"
    system_tag: str = "system"

    @override
    def parse(self, entry: Entry) -> Comparison:
        record = entry.record
        if record.get(self.system):
            raise ExampleError(f"{self.system} is a system message; remove it", "system message")
        if record.get(self.history):
            raise ExampleError(f"{self.history} has earlier turns", "several turns")
        if self.messages in record:
            question = self._question(record[self.messages])
            sides = [self._answer(record, side) for side in (self.chosen, self.rejected)]
        else:
            parts = [record.get(name) or "" for name in (self.prompt, self.query)]
            if not all(isinstance(part, str) for part in parts) or not any(parts):
                raise ExampleError(
                    f"there is no text in {self.messages}, {self.prompt} or {self.query}; the "
                    f"record has the fields {', '.join(map(str, record))}",
                    "no question",
                )
            question = "\n".join(filter(None, parts))
            sides = [record.get(side) for side in (self.chosen, self.rejected)]
        names = images_of({"image": listed(record.get(self.images))})
        used = (self.messages, self.prompt, self.query, self.chosen, self.rejected, self.images)
        return compared(Prompt(str(entry.index), question, names, meta_of(record, used)), *sides)

    @override
    @classmethod
    def recognizes(cls, record: Mapping[str, Any]) -> bool:
        sides = (record.get("chosen"), record.get("rejected"))
        if is_conversation(record.get("conversations")):
            return all(isinstance(side, dict) and "value" in side for side in sides)
        return "instruction" in record and all(isinstance(side, str) for side in sides)

    def _question(self, messages: Any) -> str:
        turns = [as_object(message) for message in listed(messages)]
        roles = [turn.get(self.role_tag) for turn in turns]
        if self.system_tag in roles[:1]:
            raise ExampleError("the conversation has a system message", "system message")
        if len(roles) > 1:
            raise ExampleError(f"the conversation has {len(roles)} turns", "several turns")
        if roles != [self.user_tag]:
            raise ExampleError(
                f"{self.messages} must be one message whose {self.role_tag!r} is "
                f"{self.user_tag!r}, not {roles}",
                "no question",
            )
        return text_of(turns[0], self.content_tag)

    def _answer(self, record: dict[str, Any], side: str) -> str:
        message = record.get(side)
        if not isinstance(message, dict) or message.get(self.role_tag) != self.assistant_tag:
            raise ExampleError(
                f"{side} must be a message whose {self.role_tag!r} is {self.assistant_tag!r}",
                f"empty {side} answer" if message is None else "wrong role",
            )
        return message.get(self.content_tag, "")


def described_pairs(path: str, image_root: str) -> LlamaFactoryPairs | None:
    """Returns the reader that a `dataset_info.json` beside a file describes for it.

    Returns:
        None if there is none, or it does not describe the file as preferences.

    Raises:
        DataError: two entries about the file differ.
    """
    file = as_path(path).absolute()
    info = file.with_name("dataset_info.json")
    try:
        entries = json.loads(info.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    # Names of columns and tags only: the file must not say which images may be read.
    shared = {x.name for x in dataclasses.fields(PairsFile)}
    own = {x.name for x in dataclasses.fields(LlamaFactoryPairs)} - shared
    described = set[LlamaFactoryPairs]()
    for entry in entries.values() if isinstance(entries, dict) else ():
        is_about = isinstance(entry, dict) and entry.get("file_name") == file.name
        if not is_about or entry.get("ranking") is not True:
            continue
        names: dict[str, Any] = {}
        for part in ("columns", "tags"):
            given = entry.get(part)
            if isinstance(given, dict):
                names |= {k: v for k, v in given.items() if k in own and isinstance(v, str)}
        described.add(LlamaFactoryPairs(path, image_root, **names))
    if len(described) > 1:
        raise DataError(f"{info}: describes {file.name} in two ways; remove one")
    return described.pop() if described else None
