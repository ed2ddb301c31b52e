"""Checking examples one by one, and counting those that cannot be used.

What lives here: what has to hold for the examples of every source, and where their images are.
What does not: formats (`files.py`, `preferences.py`) and decoding (`seva_jax/images/load.py`).

One bad example among many is left out and counted by its reason; only a source that cannot be
read at all, or of which nothing is left, raises. Images are looked up here and decoded later.
"""

from __future__ import annotations

import collections
import dataclasses
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from seva_jax.data.sources import PreferenceSet, PromptSet
from seva_jax.images.load import decode_image, resolve_image
from seva_jax.text.templates import IMAGE_MARKER
from seva_jax.types import Comparison, DataError, ExampleError, Prompt, View

Example = TypeVar("Example", Prompt, Comparison)

NAMED = 100  # examples left out that are named one by one; the others are only counted
_MAX_TEXT = 1_000_000  # characters: far beyond any context, and slow to tokenise


@dataclasses.dataclass(frozen=True)
class Images:
    """Base class: encoded images by name."""

    def check(self, name: str) -> None:
        """Raises `ExampleError` if it is known, without reading it, that there is no such image."""

    def read(self, name: str) -> bytes:
        """The encoded image.

        Raises:
            ExampleError: there is no such image, or it cannot be read.
        """
        raise NotImplementedError(f"{type(self).__name__} must define read")

    def load(self, name: str) -> np.ndarray:
        """The image as uint8 RGB [H, W, 3].

        Raises:
            ExampleError: see `read` and `decode_image`.
        """
        return decode_image(self.read(name), name=name)


@dataclasses.dataclass(frozen=True)
class FolderImages(Images):
    """Image files in a folder, found by their stem where the name's extension is wrong.

    Attributes:
        root: the folder, which is the only way to images.

    Raises:
        DataError: there is no such folder.
    """

    root: str

    def __post_init__(self):
        if not self.root:
            raise DataError("the image folder is not set; give its path")
        if not Path(self.root).is_dir():
            raise DataError(f"{self.root}: no such image folder; check the path")

    def check(self, name: str) -> None:
        """See `Images.check`."""
        resolve_image(Path(self.root), name)

    def read(self, name: str) -> bytes:
        """See `Images.read`."""
        path = resolve_image(Path(self.root), name)
        try:
            return path.read_bytes()
        except OSError as error:
            raise ExampleError(f"{name}: cannot be read ({error})", "unreadable image") from error


# --- fields of one record -------------------------------------------------------------------------


def as_object(record: Any) -> dict[str, Any]:
    """The record, if it is an object; an error that stands for a record is raised."""
    if isinstance(record, ExampleError):
        raise record
    if not isinstance(record, dict):
        raise ExampleError(f"expected an object, found {type(record).__name__}", "not an object")
    return record


def either(record: dict[str, Any], field: str, other: str) -> Any:
    """The value of a field that goes by two names; null counts as absent."""
    value = record.get(field)
    return record.get(other) if value is None else value


def id_of(record: dict[str, Any]) -> str:
    """`id` or `question_id`."""
    id_ = either(record, "id", "question_id")
    if isinstance(id_, bool) or not isinstance(id_, str | int) or id_ == "":
        raise ExampleError("id (or question_id) must be a text or a whole number", "no id")
    return str(id_)


def images_of(record: dict[str, Any], field: str = "image", other: str = "images") -> tuple:
    """The image names in one of two fields: one, or a list."""
    found = either(record, field, other)
    names = [found] if isinstance(found, str) else found
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ExampleError(
            f"{field} (or {other}) must name an image file, or list several", "no image"
        )
    return tuple(names)


def text_of(record: dict[str, Any], field: str, other: str = "") -> str:
    """A question in one of two fields."""
    found = either(record, field, other or field)
    if not isinstance(found, str):
        names = f"{field} (or {other})" if other else field
        raise ExampleError(f"{names} must be a text", "no question")
    return found


def meta_of(record: dict[str, Any], used: Iterable[str]) -> dict[str, Any]:
    """The fields that are strings, numbers or lists, but for those already used."""
    used = set(used)
    return {
        k: v for k, v in record.items() if k not in used and isinstance(v, str | int | float | list)
    }


def compared(prompt: Prompt, chosen: Any, *rejected: Any) -> Comparison:
    """A comparison of answers, spaces around them dropped.

    Raises:
        ExampleError: an answer is empty or no text, or a rejected one equals the chosen one.
    """
    texts = (_said(chosen, "chosen"), *(_said(text, "rejected") for text in rejected))
    if texts[0] in texts[1:]:
        raise ExampleError("both answers are the same text", "equal answers")
    return Comparison(prompt, texts)


def compared_apart(prompt: Prompt, chosen: Any, other: Prompt, rejected: Any) -> Comparison:
    """A comparison of an answer to `prompt` with one to `other` images; they may be equal.

    Raises:
        ExampleError: an answer is empty or no text.
    """
    apart = View(other, (_said(rejected, "rejected"),))
    return Comparison(prompt, (_said(chosen, "chosen"),), more=(apart,))


def _said(text: Any, side: str) -> str:
    said = text.strip() if isinstance(text, str) else ""
    if not said:
        raise ExampleError(f"the {side} answer is empty or no text", f"empty {side} answer")
    return said


# --- collecting -----------------------------------------------------------------------------------


def _check(example: Prompt | Comparison, images: Images) -> None:
    """What has to hold for the examples of every source."""
    try:
        stored = json.dumps(dataclasses.asdict(example), ensure_ascii=False, allow_nan=False)
        stored.encode()
    # Half a surrogate pair, NaN, lists in lists without end: no file of the run could hold it.
    except (ValueError, RecursionError) as error:
        raise ExampleError(f"not storable as JSON in UTF-8 ({error})", "invalid text") from error
    if len(stored) > _MAX_TEXT:
        raise ExampleError(
            f"its texts have {len(stored):,} characters, above {_MAX_TEXT:,}; shorten them",
            "too long",
        )
    for prompt, answers in _views(example):
        if any("\0" in text for text in (prompt.id, prompt.question, *answers)):
            raise ExampleError("a text holds NUL characters; remove them", "invalid text")
        if not prompt.question.replace(IMAGE_MARKER, "").strip():
            raise ExampleError("the question is empty; write one", "empty question")
        for name in prompt.images:
            images.check(name)


def _views(example: Prompt | Comparison) -> list[tuple[Prompt, tuple[str, ...]]]:
    """Each tree's prompt and answers."""
    if isinstance(example, Prompt):
        return [(example, ())]
    return [(view.prompt, view.answers) for view in example.views]


def _prompt(example: Prompt | Comparison) -> Prompt:
    return example.prompt if isinstance(example, Comparison) else example


def _checked(
    examples: Iterator[Example], images: Images, seen: set[str]
) -> Iterator[Example | ExampleError]:
    """What one record gives, each checked; an error stands for what it made unusable."""
    try:
        for example in examples:
            try:
                _check(example, images)
            except ExampleError as error:
                yield error
                continue
            id_ = _prompt(example).id
            if id_ in seen:
                yield ExampleError(f"the id {id_!r} was there before", "duplicate id")
                continue
            seen.add(id_)
            yield example
    except ExampleError as error:
        yield error


def _collect(
    source: str,
    images: Images,
    records: Iterable[tuple[str, Iterator[Example]]],
    limit: int,
) -> tuple[list[Example], collections.Counter[str], list[str]]:
    if limit < 0:
        raise DataError(f"{source}: limit must be 0 (all) or more, not {limit}")
    kept: list[Example] = []
    drops: collections.Counter[str] = collections.Counter()
    left_out, seen, num_good = list[str](), set[str](), 0
    for where, examples in records:
        num_before = len(kept)
        for found in _checked(examples, images, seen):
            if not isinstance(found, ExampleError):
                kept.append(found)
                continue
            drops[found.reason] += 1
            if len(left_out) < NAMED:
                left_out.append(f"{where}: {found.reason}: {found}")
        num_good += len(kept) > num_before
        if limit and num_good == limit:
            break
    if not kept:
        raise DataError(
            f"{source}: no usable prompt is left ({counted(drops) or 'it is empty'})"
            + (f"; the first: {left_out[0]}" if left_out else "")
        )
    return kept, drops, left_out


def counted(drops: collections.Counter[str]) -> str:
    """Counts in words, most frequent first.

    >>> counted(collections.Counter({"no image": 2, "empty question": 3}))
    '3 empty question, 2 no image'
    """
    return ", ".join(f"{n:,} {reason}" for reason, n in drops.most_common())


def prompt_set(
    source: str, images: Images, records: Iterable[tuple[str, Iterator[Prompt]]], limit: int = 0
) -> PromptSet:
    """Keeps good prompts and counts the others.

    Args:
        source: what was read, for errors.
        images: where images are.
        records: where each is in the source, and its prompts; they may raise `ExampleError`.
        limit: stop after this many records with a good prompt; 0 means no limit.

    Raises:
        DataError: no prompt is left, or the limit is negative.
    """
    prompts, drops, left_out = _collect(source, images, records, limit)
    return PromptSet(prompts, images.load, drops, images.read, left_out=left_out)


def preference_set(
    source: str,
    images: Images,
    records: Iterable[tuple[str, Iterator[Comparison]]],
    limit: int = 0,
    notes: collections.Counter[str] | None = None,
) -> PreferenceSet:
    """As `prompt_set`, for comparisons.

    Args:
        source: what was read, for errors.
        images: where images are.
        records: where each is in the source, and its comparisons.
        limit: see `prompt_set`.
        notes: counts that reading `records` fills; see `PreferenceSet`.
    """
    comparisons, drops, left_out = _collect(source, images, records, limit)
    prompts = [c.prompt for c in comparisons]
    return PreferenceSet(
        prompts, images.load, drops, images.read, comparisons, notes or collections.Counter(),
        left_out=left_out,
    )  # fmt: skip
