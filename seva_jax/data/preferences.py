"""Published pairs: the files of SeVa, RLAIF-V, RLHF-V, POVID, HA-DPO and VLFeedback.

What lives here: these formats, and `PairsFile`, which a format of your own extends with one method.
What does not: formats made of chat messages (`messages.py`), reading files (`tables.py`), checks
and counting (`collect.py`). Read next: `README.md` in this folder.

Each format may come as a JSON list, JSON lines or parquet: the content of a file says which.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import math
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
from typing_extensions import override

from seva_jax.data.collect import (
    Images,
    answers_of,
    as_object,
    compared,
    images_of,
    meta_of,
    one_each,
    preference_set,
    text_of,
)
from seva_jax.data.fields import either, given
from seva_jax.data.files import images_of_turn, seva_prompt, turns
from seva_jax.data.sources import PreferenceSet, PreferenceSource
from seva_jax.data.tables import open_table
from seva_jax.images.load import FollowsLinks
from seva_jax.ranges import FROM_0
from seva_jax.types import Comparison, ExampleError, Prompt


class Entry(NamedTuple):
    """One record of a file.

    Attributes:
        index: number of the record in the file, from 0; makes the prompt's id unique.
        record: the fields; names take the place of embedded images.
        images: the images, to try which of several names exists.
        notes: counts what is left out of a record that is used.
    """

    index: int
    record: dict[str, Any]
    images: Images
    notes: collections.Counter[str]


@dataclasses.dataclass(frozen=True)
class PairsFile(FollowsLinks, PreferenceSource):
    """Base class of files with one comparison in each record. A format defines `parse`.

    Attributes:
        path: a JSON list, JSON lines, a parquet file, or a folder of parquet files.
        image_root: folder the image names are relative to; not needed for embedded images.
        limit: use the first N usable records; 0 means all.
        split: the split to read of a folder that holds several, such as "train".
    """

    path: str = ""
    image_root: str = ""
    limit: Annotated[int, FROM_0] = 0
    split: str = dataclasses.field(default="", kw_only=True)

    @override
    def open(self) -> PreferenceSet:
        table = open_table(self.path, self.image_root, self.split, self.link_roots)
        notes: collections.Counter[str] = collections.Counter()

        def parse(index: int, record: dict[str, Any]) -> Comparison:
            return self.parse(Entry(index, record, table.images, notes))

        records = one_each(table.records, parse)
        return preference_set(self.path, table.images, records, self.limit, notes)

    def parse(self, entry: Entry) -> Comparison:
        """Returns the comparison of a record.

        Raises:
            ExampleError: the record cannot be used; the reason is counted.
        """
        raise NotImplementedError(f"{type(self).__name__} must define parse")


@dataclasses.dataclass(frozen=True)
class SevaPairs(PairsFile):
    """SeVa's pairs, `{"chosen", "reject", "question", "image_id"}` (`reject`, not `rejected`)."""

    @override
    def parse(self, entry: Entry) -> Comparison:
        prompt = seva_prompt(entry.index, entry.record)
        return compared(prompt, *answers_of(entry.record, "chosen", "reject"))

    @override
    @classmethod
    def recognizes(cls, record: Mapping[str, Any]) -> bool:
        named = isinstance(record.get("image_id"), str) and isinstance(record.get("chosen"), str)
        return named and {"question", "reject"} <= record.keys()


@dataclasses.dataclass(frozen=True)
class RlaifVPairs(PairsFile):
    """RLAIF-V's and RLHF-V's parquet.

    RLAIF-V has the columns `ds_name, image, question, chosen, rejected, origin_dataset,
    origin_split, idx, image_path`. In RLHF-V, question and answers are an object in `text`, stored
    as a JSON string. A prompt's id is the number of its row, from 0.
    """

    @override
    def parse(self, entry: Entry) -> Comparison:
        texts = record = entry.record
        if record.get("text") is not None and "question" not in record:
            texts = record["text"]
            if isinstance(texts, str):
                try:
                    texts = json.loads(texts)
                except (ValueError, RecursionError) as error:
                    raise ExampleError(f"text is not JSON ({error})", "broken line") from error
            texts = as_object(texts)
        meta = meta_of(record, ("text", "image", "question", "chosen", "rejected"))
        names = images_of(record, "image", "image_path")
        prompt = Prompt(str(entry.index), text_of(texts, "question"), names, meta)
        return compared(prompt, *answers_of(texts, "chosen", "rejected"))

    @override
    @classmethod
    def recognizes(cls, record: Mapping[str, Any]) -> bool:
        texts = record if "question" in record else record.get("text")
        has_image = "image" in record or "image_path" in record
        needed = ("question", "chosen", "rejected")  # of a JSON string, its text is searched
        return has_image and isinstance(texts, str | dict) and all(name in texts for name in needed)


@dataclasses.dataclass(frozen=True)
class PovidPairs(PairsFile):
    """POVID's and MMedPO's JSON: LLaVA's records with `rejected_conversations` added.

    The first question of a record and both first answers are used. Later turns are not, because
    each side would need its own history; records that have some are noted, and left out if their
    first answers are equal ("several turns"). A prompt's id is the record's id, "#" and the
    record's number, from 0. Other fields, such as MMedPO's `weighted_score`, become the prompt's
    `meta`.
    """

    @override
    def parse(self, entry: Entry) -> Comparison:
        record, sides = entry.record, ("conversations", "rejected_conversations")
        asked, asked_too = (turns(record, side, "human") for side in sides)
        if asked[0] != asked_too[0] or not isinstance(asked[0], str):
            raise ExampleError("the two conversations ask different questions", "no question")
        images = images_of_turn(images_of(record), asked, 0)
        meta = meta_of(record, ("id", "image", "images", *sides))  # MMedPO's have a weighted_score
        prompt = Prompt(f"{record.get('id', '')}#{entry.index}", asked[0], images, meta)
        said, said_too = (turns(record, side, "gpt") for side in sides)
        later = any(len(values) > 1 for values in (asked, asked_too, said, said_too))
        if later and said[0] == said_too[0]:
            raise ExampleError(
                "the conversations have several turns and differ only in later ones, which are "
                "not used yet",
                "several turns",
            )
        comparison = compared(prompt, said[0], said_too[0])
        for name in images:
            entry.images.check(name)
        entry.notes["later turns not used"] += later
        return comparison

    @override
    @classmethod
    def recognizes(cls, record: Mapping[str, Any]) -> bool:
        return {"conversations", "rejected_conversations"} <= record.keys()


@dataclasses.dataclass(frozen=True)
class HaDpoPairs(PairsFile):
    """HA-DPO's JSON, `desc_data.json` and `pope_data.json`.

    A description has lists of `chosen` and `rejected` wordings, and one is drawn from each; a
    yes/no question has one `chosen` and one `reject`. `image_id` names an image of Visual Genome. A
    prompt's id is that of the image, "#" and the record's number, from 0.

    Attributes:
        question: question of the records that have none: the descriptions.
        folders: folders below `image_root` in which to look for an image.
        seed: seed of the draw.
    """

    question: str = "Describe this image in detail."
    folders: tuple[str, ...] = ("VG_100K", "VG_100K_2")
    seed: Annotated[int, FROM_0] = 0

    @override
    def parse(self, entry: Entry) -> Comparison:
        record, image = entry.record, given(entry.record, "image_id", "no image")
        if isinstance(image, bool) or not isinstance(image, str | int):
            raise ExampleError("image_id must be a number or a text", "no image")
        question = text_of({"question": self.question} | record, "question")
        rng = np.random.default_rng((self.seed, entry.index))
        sides = []
        for side in answers_of(record, "chosen", "rejected", "reject"):
            texts = side if isinstance(side, list) else [side]
            sides.append(texts[rng.integers(len(texts))] if texts else "")
        names = [str(Path(folder) / str(image)) for folder in self.folders]
        prompt = Prompt(f"{image}#{entry.index}", question, (_first_existing(entry.images, names),))
        return compared(prompt, *sides)

    @override
    @classmethod
    def recognizes(cls, record: Mapping[str, Any]) -> bool:
        # SeVa's pairs have the same fields; their `image_id` is the name of a file.
        is_number = str(record.get("image_id", "")).isdecimal()
        return is_number and "chosen" in record and not {"rejected", "reject"}.isdisjoint(record)


@dataclasses.dataclass(frozen=True)
class VLFeedbackPairs(PairsFile):
    """VLFeedback: the best and the worst of the rated answers to a question.

    A record is `{"id", "prompt", "models", "completions", "img_path"}`. A completion has a
    `response`, and `annotations` with a `Rating` and a `Rationale` for each aspect. Ratings are
    strings; a completion with a rating that is not a number ("N/A") is left out and noted. The
    rating of an answer is the mean over `aspects`; of equally rated answers, the first is used. A
    record whose answers are all rated equal is left out and counted. If the file `img_path` does
    not exist, the image named by the record's id is used.

    Attributes:
        aspects: aspects whose ratings are averaged.
    """

    aspects: tuple[str, ...] = ("Helpfulness", "Visual Faithfulness", "Ethical Considerations")

    @override
    def parse(self, entry: Entry) -> Comparison:
        record, unrated = entry.record, 0
        question = text_of(record, "prompt")
        rated: list[tuple[float, str]] = []
        for completion in _completions(given(record, "completions", "no answers")):
            rating = self._rating(completion.get("annotations"))
            if rating is None:
                unrated += 1
            elif isinstance(completion.get("response"), str):
                rated.append((rating, completion["response"]))
        if len(rated) < 2:
            raise ExampleError("fewer than two answers have ratings", "unparsable rating")
        best, worst = max(rated, key=lambda x: x[0]), min(rated, key=lambda x: x[0])
        if best[0] == worst[0]:
            raise ExampleError("all answers are rated equal", "equal ratings")
        id_ = record.get("id", "")
        if either(record, "image", "images") is not None:  # embedded
            names = images_of(record)
        else:
            candidates = [x for x in (record.get("img_path"), id_) if isinstance(x, str) and x]
            if not candidates:
                given(record, "img_path", "no image")  # raises, since it is missing
            names = (_first_existing(entry.images, candidates),)
        meta = {"ratings": [best[0], worst[0]]}
        prompt = Prompt(f"{id_}#{entry.index}", question, names, meta)
        comparison = compared(prompt, best[1], worst[1])
        entry.notes["unparsable rating"] += unrated
        return dataclasses.replace(comparison, scores=(best[0], worst[0]))

    @override
    @classmethod
    def recognizes(cls, record: Mapping[str, Any]) -> bool:
        return {"prompt", "completions"} <= record.keys()

    def _rating(self, annotations: Any) -> float | None:
        try:
            # `fmean` does not depend on the order, so equal ratings have equal means.
            mean = statistics.fmean(float(annotations[x]["Rating"]) for x in self.aspects)
        except (KeyError, TypeError, ValueError, OverflowError):
            return None
        return mean if math.isfinite(mean) else None


def _completions(value: Any) -> list[dict[str, Any]]:
    """Returns a dict for each answer, from a list of them or (in parquet) from a dict of lists."""
    if isinstance(value, list):
        return [completion for completion in value if isinstance(completion, dict)]
    if not isinstance(value, dict) or not isinstance(value.get("response"), list):
        raise ExampleError("completions must be a list of answers", "no answers")

    def pick(value: Any, i: int) -> Any:
        if isinstance(value, dict):
            return {key: pick(inner, i) for key, inner in value.items()}
        return value[i] if isinstance(value, list) and i < len(value) else None

    return [pick(value, i) for i in range(len(value["response"]))]


def _first_existing(images: Images, names: list[str]) -> str:
    """Returns the first name whose image exists; raises the first error if none does."""
    first: ExampleError | None = None
    for name in names:
        try:
            images.check(name)
        except ExampleError as error:
            first = first or error
            continue
        return name
    raise first or ExampleError("the record names no image", "no image")
