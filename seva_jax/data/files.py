"""Prompt sources on disk: image folders, LLaVA's and SeVa's JSON, questions as JSON lines.

What lives here: the meaning of the fields in these files. What does not: reading whole files
(`tables.py`), checks and counting (`collect.py`), decoding images (`seva_jax/images/load.py`) and
the template around a question (`seva_jax/text/templates.py`). Read next: `sources.py`, the
contract; `mixed.py`, which combines sources.
"""

from __future__ import annotations

import collections
import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np
from typing_extensions import override

from seva_jax.data.collect import (
    FolderImages,
    as_object,
    id_of,
    images_of,
    meta_of,
    one_each,
    prompt_set,
    text_of,
)
from seva_jax.data.fields import Record, either, given
from seva_jax.data.sources import PromptSet, PromptSource, generator
from seva_jax.data.splits import folder_split, of_split
from seva_jax.data.tables import open_table
from seva_jax.images.load import IMAGE_EXTENSIONS, FollowsLinks
from seva_jax.ranges import FROM_0
from seva_jax.types import IMAGE_MARKER, DataError, ExampleError, Prompt

SHORT_ANSWER = "Answer the question using a single word or phrase."


@dataclasses.dataclass(frozen=True)
class ImageFolder(FollowsLinks, PromptSource):
    """Every image file below a folder, each with the same questions.

    A prompt's id is the path of its image inside the folder, "#" and the number of the question,
    from 0.

    Attributes:
        root: the folder. Image files are recognised by their extension and sorted by path.
        questions: questions to ask about every image.
        limit: use the first N images; 0 means all.
        split: the split to read if folders in it are named after several, such as "train".
    """

    root: str = ""
    questions: tuple[str, ...] = ("Describe this image in detail.",)
    limit: Annotated[int, FROM_0] = 0
    split: str = dataclasses.field(default="", kw_only=True)

    @override
    def open(self) -> PromptSet:
        images, root = FolderImages(self.root, self.link_roots), self.root
        files = images.files.names()
        if not files:
            kinds = " ".join(IMAGE_EXTENSIONS)
            raise DataError(f"{root}: no image files below this folder (looked for {kinds})")
        files = of_split(self.root, files, self.split, folder_split)
        if not self.questions:
            raise DataError(f"{root}: there are no questions to ask about its images; give some")

        def parse(name: str) -> Iterator[Prompt]:
            for number, question in enumerate(self.questions):
                yield Prompt(f"{name}#{number}", question, (name,))

        return prompt_set(self.root, images, ((name, parse(name)) for name in files), self.limit)


@dataclasses.dataclass(frozen=True)
class LlavaJson(FollowsLinks, PromptSource):
    r"""Questions of LLaVA's conversation files; the answers are not trained on.

    The file is a list of `{"id", "image", "conversations": [{"from": "human", "value":
    "<image>\nWhat is this?"}, {"from": "gpt", ...}, ...]}`. A prompt is one human turn on its
    own, without earlier turns; its id is the record's id, "#" and the number of the turn, from 0.
    Where several records share an id, "@" and the number of the record, from 1, follow that id.

    Attributes:
        path: the file, or a folder of parquet files.
        image_root: folder the image names are relative to.
        prefix: use only records whose image name starts with this, such as "ocr_vqa/" or "textvqa/"
            of llava_v1_5_mix665k.json; the others do not count as left out.
        remove: sentences to delete from the questions, with the white space before them.
            # SeVa: OCR-VQA's request for short answers is removed, so that answers are sentences.
        questions_per_image: use N human turns of each record; 0 means all.
        which_questions: which turns these are. "first": later turns may only make sense after
            earlier ones. "random": those drawn by seed and id of the record, for data whose
            questions are independent of each other; SeVa draws 2 of each record of OCR-VQA.
        limit: use N records with at least one usable question, drawn at random; 0 means all, in
            file order.
        seed: seed of the draws.
        answers: keep the file's answer to each question as `meta["answer"]`, for pair builders that
            take it as the truth.
        split: the split to read of a folder that holds several, such as "train".
    """

    path: str = ""
    image_root: str = ""
    prefix: str = ""
    remove: tuple[str, ...] = (SHORT_ANSWER,)
    questions_per_image: Annotated[int, FROM_0] = 1
    which_questions: Literal["first", "random"] = "first"
    limit: Annotated[int, FROM_0] = 0
    seed: Annotated[int, FROM_0] = 0
    answers: bool = False
    split: str = dataclasses.field(default="", kw_only=True)

    @override
    def open(self) -> PromptSet:
        table = open_table(self.path, self.image_root, self.split, self.link_roots)
        images, records = table.images, list(table.records)
        if self.prefix:
            records = [record for record in records if self._starts_right(record[1])]
            if not records:
                raise DataError(f"{self.path}: no record's image starts with {self.prefix!r}")
        ids = collections.Counter(map(_shared_id, records))
        order = np.arange(len(records))
        if self.limit:
            order = np.random.default_rng(self.seed).permutation(len(records))
        lengths: dict[str, int] = {}
        examples = ((records[i][0], self._parse(records[i], ids, lengths)) for i in order.tolist())
        data = prompt_set(self.path, images, examples, self.limit)
        return dataclasses.replace(data, notes=self._later_turns(data.prompts, lengths))

    @override
    @classmethod
    def recognizes(cls, record: Mapping[str, Any]) -> bool:
        return is_conversation(record.get("conversations")) and not {
            "chosen", "rejected", "rejected_conversations",
        } & record.keys()  # fmt: skip

    def _starts_right(self, record: Any) -> bool:
        image = either(record, "image", "images") if isinstance(record, dict) else None
        first = image[0] if isinstance(image, list) and image else image
        return isinstance(first, str) and first.startswith(self.prefix)

    def _later_turns(
        self, prompts: Sequence[Prompt], lengths: dict[str, int]
    ) -> collections.Counter[str]:
        """Returns how many turns of the records that are used lack earlier ones, or are not used.

        Args:
            prompts: the prompts that are used.
            lengths: number of human turns in each record.
        """
        used = {id_ for id_, _, _ in (prompt.id.rpartition("#") for prompt in prompts)}
        most = self.questions_per_image or max(lengths.values(), default=0)
        left = sum(max(0, lengths.get(id_, 0) - most) for id_ in used)
        alone = sum(not prompt.id.endswith("#0") for prompt in prompts)
        counts = {"later turns not asked": left, "later turns asked without earlier ones": alone}
        return +collections.Counter(counts)

    def _parse(
        self, record: Record, ids: collections.Counter[str], lengths: dict[str, int]
    ) -> Iterator[Prompt]:
        where, fields = record[0], as_object(record[1])
        images = images_of(fields)
        if not images:
            raise ExampleError("the record has no image; only those with one are used", "no image")
        id_ = id_of(fields)
        # LLaVA's own files have several conversations about one image under the same id.
        id_ += f"@{where.split()[-1]}" if ids[id_] > 1 else ""
        asked = turns(fields, "conversations", "human")
        lengths[id_] = len(asked)
        for number in self._numbers(len(asked), id_):
            value = asked[number]
            question = self._question(value) if isinstance(value, str) else ""
            meta = _answer_of(fields["conversations"], number) if self.answers else {}
            yield Prompt(f"{id_}#{number}", question, images_of_turn(images, asked, number), meta)

    def _numbers(self, num: int, id_: str) -> list[int]:
        """Returns which of the questions of a record are used, increasing."""
        if not 0 < self.questions_per_image < num:
            return list(range(num))
        if self.which_questions == "first":
            return list(range(self.questions_per_image))
        rng = generator(self.seed, "questions", id_)
        return sorted(rng.choice(num, self.questions_per_image, replace=False).tolist())

    def _question(self, value: str) -> str:
        for sentence in self.remove:
            value = re.sub(rf"\s*{re.escape(sentence)}", "", value)
        return value.strip()


def images_of_turn(images: tuple[str, ...], asked: Sequence[Any], number: int) -> tuple[str, ...]:
    """Returns the images of one human turn of a conversation that is used on its own.

    Where the turns have one marker for each image of the record, a turn has the images of its own
    markers or, without any, those of the turns before. Otherwise it has all images.

    Args:
        images: the images of the record.
        asked: all human turns.
        number: number of the turn, from 0.
    """
    markers = [text.count(IMAGE_MARKER) if isinstance(text, str) else 0 for text in asked]
    if sum(markers) != len(images):
        return images
    shown = sum(markers[: number + 1])
    return images[shown - markers[number] if markers[number] else 0 : shown]


def _answer_of(conversation: list[dict[str, Any]], number: int) -> dict[str, Any]:
    """Returns the answer that follows a question, if it is a text from "gpt", as `meta`."""
    asked = [i for i, turn in enumerate(conversation) if turn.get("from") == "human"]
    for turn in conversation[asked[number] + 1 :][:1]:
        if turn.get("from") == "gpt" and isinstance(turn.get("value"), str):
            return {"answer": turn["value"].strip()}
    return {}


def _shared_id(record: Record) -> str:
    """Returns the id that other records may have too, or "" if there is none."""
    try:
        return id_of(as_object(record[1]))
    except ExampleError:
        return ""


def turns(record: dict[str, Any], field: str, speaker: str) -> list[Any]:
    """Returns the turns of one speaker ("human" or "gpt") in one of LLaVA's conversations.

    Raises:
        ExampleError: the field is not a conversation, it has a system message, or the speaker has
            no turn.
    """
    conversation = given(record, field, "no question")
    if not isinstance(conversation, list) or not all(isinstance(t, dict) for t in conversation):
        raise ExampleError(f"{field} must be a list of objects", "no question")
    if any(turn.get("from") == "system" for turn in conversation):
        message = f"{field} has a system message; the run's template has one, so leave it out"
        raise ExampleError(message, "system message")
    values = [turn.get("value") for turn in conversation if turn.get("from") == speaker]
    if not values:
        raise ExampleError(f'{field} has no turn from "{speaker}"', "no question")
    return values


def is_conversation(value: Any) -> bool:
    """Returns whether a field holds one of LLaVA's conversations, by its first turn."""
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict) and (
        {"from", "value"} <= value[0].keys()
    )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class QuestionsJsonl(FollowsLinks, PromptSource):
    """Questions as JSON lines, one object on each line, or as a JSON list of such objects.

    Fields: `id` or `question_id`; `question` or `text`; `image`, or `images` for a list (an empty
    one for a question without an image). Other fields that are strings, numbers or lists become the
    prompt's `meta`: with an `answer`, the file can be used for evaluation, too. A line that is not
    JSON is left out and counted.

    Attributes:
        path: the file, or a folder of parquet files.
        image_root: folder the image names are relative to.
        split: the split to read of a folder that holds several, such as "train".
    """

    path: str = ""
    image_root: str = ""
    split: str = dataclasses.field(default="", kw_only=True)

    @override
    def open(self) -> PromptSet:
        table = open_table(self.path, self.image_root, self.split, self.link_roots)
        return prompt_set(self.path, table.images, one_each(table.records, self._prompt))

    @override
    @classmethod
    def recognizes(cls, record: Mapping[str, Any]) -> bool:
        needed = ({"id", "question_id"}, {"question", "text"}, {"image", "images"})
        answered = {"chosen", "rejected", "reject"} & record.keys()
        return not answered and all(names & record.keys() for names in needed)

    def _prompt(self, index: int, record: dict[str, Any]) -> Prompt:
        del index  # the record has an id
        question = text_of(record, "question", "text")
        meta = meta_of(record, ("id", "question", "text", "image", "images"))
        return Prompt(id_of(record), question, images_of(record), meta)


@dataclasses.dataclass(frozen=True)
class SevaJson(FollowsLinks, PromptSource):
    """The prompts of SeVa's released pairs; their answers are not used.

    The file is a list of `{"chosen", "reject", "question", "image_id"}`, where `image_id` is a
    file name. A prompt's id is that name, "#" and the number of the record, from 0.

    Attributes:
        path: the file, or a folder of parquet files.
        image_root: folder the image names are relative to.
        split: the split to read of a folder that holds several, such as "train".
    """

    path: str = ""
    image_root: str = ""
    split: str = dataclasses.field(default="", kw_only=True)

    @override
    def open(self) -> PromptSet:
        table = open_table(self.path, self.image_root, self.split, self.link_roots)
        return prompt_set(self.path, table.images, one_each(table.records, seva_prompt))

    @override
    @classmethod
    def recognizes(cls, record: Mapping[str, Any]) -> bool:
        return {"image_id", "question"} <= record.keys() and "chosen" not in record


def seva_prompt(index: int, record: dict[str, Any]) -> Prompt:
    """Returns the prompt of one of SeVa's pairs, given its number in the file."""
    question, image = text_of(record, "question"), given(record, "image_id", "no image")
    if not isinstance(image, str):
        raise ExampleError("image_id must be the name of an image file", "no image")
    return Prompt(f"{image}#{index}", question, (image,))
