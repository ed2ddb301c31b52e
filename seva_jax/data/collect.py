"""Checking examples one by one, and counting those that cannot be used.

What lives here: the checks that examples of every source must pass, helpers that read the fields of
a record, and access to images. What does not: formats (`files.py`, `preferences.py`) and decoding
(`seva_jax/images/load.py`).

A bad example is left out and counted by its reason; only a source that cannot be read at all, or
has no usable example, raises. Images are looked up here and decoded later.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import itertools
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from typing_extensions import override

from seva_jax.data.fields import Unread, either, given, unusable
from seva_jax.data.places import placed
from seva_jax.data.sources import PreferenceSet, PromptSet
from seva_jax.data.unique import UniqueIds
from seva_jax.images.folder import ImageFiles
from seva_jax.images.load import decode_image, image_size, require_link_roots
from seva_jax.runtime.garbage import no_search_for_cycles
from seva_jax.runtime.stores import as_path
from seva_jax.types import IMAGE_MARKER, Comparison, DataError, ExampleError, Prompt, Size, View

Example = TypeVar("Example", Prompt, Comparison)
Records = Iterable[tuple[str, Iterator[Example]]]
"""Where each record is in the source, and an iterator over its examples."""

_MAX_DESCRIBED = 100  # examples left out; all are counted
_MAX_TEXT = 1_000_000  # characters: far beyond any context, and slow to tokenise


@dataclasses.dataclass(frozen=True)
class Images:
    """Base class: encoded images by name."""

    @property
    def remote(self) -> bool:
        """Whether reading an image takes a request to an object store."""
        return False

    def check(self, name: str) -> None:
        """Raises `ExampleError` if an image is known to be missing without reading it."""

    def frames(self, folder: str) -> tuple[str, ...]:
        """Returns the names of the images in a folder of images, in order.

        Raises:
            ExampleError: there is no such folder, or the images are not files.
        """
        raise ExampleError(
            f"{folder}: only images that are files can be in folders; list them", "missing image"
        )

    def read(self, name: str) -> bytes:
        """Returns an encoded image.

        Raises:
            ExampleError: there is no such image, or it cannot be read.
        """
        raise NotImplementedError(f"{type(self).__name__} must define read")

    def load(self, name: str) -> np.ndarray:
        """Returns an image as uint8 RGB [H, W, 3].

        Raises:
            ExampleError: see `read` and `decode_image`.
        """
        return decode_image(self.read(name), name=name)

    def size(self, name: str) -> Size:
        """Returns the height and width of an image, without decoding it.

        Raises:
            ExampleError: see `read` and `image_size`.
        """
        return image_size(self.read(name), name=name)


@dataclasses.dataclass(frozen=True)
class FolderImages(Images):
    """Image files in a folder, found by their stem where a name's extension is wrong.

    Attributes:
        root: the folder; names cannot lead out of it.
        link_roots: folders that symbolic links in it may lead to; see `FollowsLinks`.

    Raises:
        DataError: there is no such folder.
    """

    root: str
    link_roots: tuple[str, ...] = ()

    def __post_init__(self):
        if not self.root:
            raise DataError(
                "the image folder is not set; images that are files need image_root, the folder "
                "that their names are relative to (of ImageFolder: root)"
            )
        if not as_path(self.root).is_dir():
            raise DataError(f"{self.root}: no such image folder; check the path")
        require_link_roots(self.link_roots)

    @functools.cached_property
    def files(self) -> ImageFiles:
        """The files in the folder."""
        return ImageFiles(as_path(self.root), self.link_roots)

    @property
    @override
    def remote(self) -> bool:
        return self.files.remote

    @override
    def check(self, name: str) -> None:
        self.files.check(name)

    @override
    def frames(self, folder: str) -> tuple[str, ...]:
        return self.files.frames(folder)

    @override
    def read(self, name: str) -> bytes:
        return self.files.read(name)

    @override
    def size(self, name: str) -> Size:
        return self.files.size(name)


# --- fields of one record -------------------------------------------------------------------------


def as_object(record: Any) -> dict[str, Any]:
    """Returns the record if it is an object; raises the error that stands for a broken one."""
    if isinstance(record, ExampleError):
        raise record
    if isinstance(record, Unread):
        raise ExampleError(f"expected an object, found {record.kind}", "not an object")
    if not isinstance(record, dict):
        raise ExampleError(f"expected an object, found {type(record).__name__}", "not an object")
    return record


def id_of(record: dict[str, Any]) -> str:
    """Returns the field `id` or `question_id` as text."""
    id_ = either(record, "id", "question_id")
    if isinstance(id_, bool) or not isinstance(id_, str | int) or id_ == "":
        expected = "must be a text or a whole number"
        raise unusable(record, ("id", "question_id"), expected, "no id")
    return str(id_)


def listed(value: Any) -> list[Any]:
    """Returns a list itself, null as an empty list, and anything else as a list of one."""
    return [] if value is None else value if isinstance(value, list) else [value]


def images_of(
    record: dict[str, Any], field: str = "image", other: str = "images"
) -> tuple[str, ...]:
    """Returns the image names in one of two fields, which holds a name or a list of names."""
    names = [_file_of(value, field) for value in _listed_images(record, field, other)]
    if not all(isinstance(name, str) for name in names):
        message = f"{field} (or {other}) must name image files, and an entry does not"
        raise ExampleError(message, "no image")
    return tuple(names)


def _listed_images(record: dict[str, Any], field: str, other: str) -> list[Any]:
    value = either(record, field, other)
    if not isinstance(value, str | list | dict):
        names = tuple(dict.fromkeys((field, other)))
        raise unusable(record, names, "must name an image file, or list several", "no image")
    return listed(value)


def _file_of(image: Any, field: str) -> Any:
    """Returns the name in an entry of an image field, which may be wrapped as `{"path": name}`."""
    if isinstance(image, dict) and image.get("bytes") is None:
        image = image.get("path")
    inside = isinstance(image, dict) or (isinstance(image, str) and image.startswith("data:"))
    if inside:
        raise ExampleError(
            f"{field} holds an encoded image, which JSON cannot embed here; write it to a file and "
            "give the file's name, or use parquet with a column {bytes, path}",
            "no image",
        )
    if isinstance(image, str) and image.startswith(("http://", "https://")):
        raise ExampleError(
            f"{field} is an address on the web, {image[:200]}; download it and give its name",
            "no image",
        )
    return image


def text_of(record: dict[str, Any], field: str, other: str = "") -> str:
    """Returns the question in one of two fields."""
    value = record.get(field)
    text = record.get(other) if value is None and other else value
    if not isinstance(text, str):
        raise unusable(record, (field, *filter(None, [other])), "must be a text", "no question")
    return text


def answers_of(record: dict[str, Any], chosen: str, rejected: str, other: str = "") -> list[Any]:
    """Returns the answers in two fields, for `compared`; the second may have another name."""
    return [
        given(record, chosen, "empty chosen answer"),
        given(record, rejected, "empty rejected answer", other),
    ]


def number_of(value: Any, field: str, reason: str = "no score") -> float:
    """Returns the value as a float.

    Raises:
        ExampleError: it is missing or not a finite number; the message names `field`.
    """
    if value is None:
        raise ExampleError(f"{field} is missing; give a number", reason)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not abs(value) <= sys.float_info.max:  # NaN, too, and a huge integer
        raise ExampleError(f"{field}: {value!r} is not a finite number", reason)
    return float(value)


def meta_of(record: dict[str, Any], used: Iterable[str]) -> dict[str, Any]:
    """Returns the fields that hold strings, numbers or lists, except those already used.

    A value that a run cannot store is left out: NaN, text that is not UTF-8 or very long.
    """
    used = set(used)
    return {
        k: v
        for k, v in record.items()
        if k not in used and isinstance(v, str | int | float | list) and _storable(v)
    }


def _storable(value: Any) -> bool:
    try:
        return len(_stored(value)) <= _MAX_TEXT
    except (ValueError, TypeError, RecursionError):
        return False


def _stored(value: Any) -> str:
    """Returns a value as JSON; raises an error for one that no file of a run can hold.

    Those are half a surrogate pair, NaN, objects of other types, and lists nested too deeply.
    """
    stored = _JSON.encode(value)
    stored.encode()
    return stored


def _fields(value: Any) -> dict[str, Any]:
    """Returns the fields of a dataclass for JSON; `dataclasses.asdict` would copy each value."""
    if not dataclasses.is_dataclass(value):
        raise TypeError(f"{type(value).__name__} cannot be stored")
    return vars(value)


_JSON = json.JSONEncoder(ensure_ascii=False, allow_nan=False, default=_fields)


def compared(prompt: Prompt, chosen: Any, *rejected: Any) -> Comparison:
    """Returns a comparison of answers, without white space around them.

    Raises:
        ExampleError: an answer is empty or not a text, or a rejected one equals the chosen one.
    """
    texts = (_answer(chosen, "chosen"), *(_answer(text, "rejected") for text in rejected))
    if texts[0] in texts[1:]:
        raise ExampleError("both answers are the same text", "equal answers")
    return Comparison(prompt, texts)


def compared_apart(prompt: Prompt, chosen: Any, other: Prompt, rejected: Any) -> Comparison:
    """Returns a comparison whose rejected answer is to other images; the answers may be equal.

    Raises:
        ExampleError: an answer is empty or not a text.
    """
    apart = View(other, (_answer(rejected, "rejected"),))
    return Comparison(prompt, (_answer(chosen, "chosen"),), more=(apart,))


def _answer(text: Any, side: str) -> str:
    if text is None:
        raise ExampleError(f"the {side} answer is missing", f"empty {side} answer")
    if isinstance(text, Unread):
        message = f"the {side} answer is {text.kind}, not a text"
        raise ExampleError(message, text.reason or f"empty {side} answer")
    answer = text.strip() if isinstance(text, str) else ""
    if not answer:
        raise ExampleError(f"the {side} answer is empty or not a text", f"empty {side} answer")
    return answer


def one_each(
    records: Iterable[tuple[str, Any]], parse: Callable[[int, dict[str, Any]], Example]
) -> Records[Example]:
    """Returns records for `prompt_set` or `preference_set`, each with a single example.

    Args:
        records: where each record is, and its value.
        parse: makes an example from the number of a record, from 0, and its fields.
    """

    def one(index: int, record: Any) -> Iterator[Example]:
        yield parse(index, as_object(record))

    return ((where, one(i, record)) for i, (where, record) in enumerate(records))


# --- collecting -----------------------------------------------------------------------------------


def _check(example: Prompt | Comparison, images: Images) -> str:
    """Returns an example as JSON; raises `ExampleError` for one that no run could use."""
    try:
        stored = _stored(example)
    except (ValueError, TypeError, RecursionError) as error:
        message = f"a text is not UTF-8, or a number not finite ({error}); save the file as UTF-8"
        raise ExampleError(message, "invalid text") from error
    if len(stored) > _MAX_TEXT:
        raise ExampleError(
            f"its texts have {len(stored):,} characters, above {_MAX_TEXT:,}; shorten them",
            "too long",
        )
    for view in example.views if isinstance(example, Comparison) else [View(example, ())]:
        prompt = view.prompt
        if any("\0" in text for text in (prompt.id, prompt.question, *view.answers)):
            raise ExampleError("a text holds NUL characters; remove them", "invalid text")
        if not prompt.question.replace(IMAGE_MARKER, "").strip():
            raise ExampleError("the question is empty; write one", "empty question")
        for name in prompt.images:
            images.check(name)
    return stored


def _listed(example: Example, images: Images) -> Example:
    """Returns an example with the images of a folder in place of a name that ends with "/"."""
    if not any(name.endswith("/") for name in example.images):
        return example
    if isinstance(example, Prompt):
        parts = (images.frames(x) if x.endswith("/") else (x,) for x in example.images)
        return dataclasses.replace(example, images=tuple(itertools.chain(*parts)))
    more = tuple(
        dataclasses.replace(view, prompt=_listed(view.prompt, images)) for view in example.more
    )
    return dataclasses.replace(example, prompt=_listed(example.prompt, images), more=more)


def _checked(
    examples: Iterator[Example], images: Images, ids: UniqueIds
) -> Iterator[Example | ExampleError]:
    """Yields the examples of one record, and an error in place of each that is unusable."""
    try:
        for example in examples:
            try:
                example = _listed(example, images)
                stored = _check(example, images)
                yield ids.add(placed(example), stored)
            except ExampleError as error:
                yield error
    except ExampleError as error:
        yield error


@no_search_for_cycles()
def _collect(
    source: str, images: Images, records: Records[Example], limit: int
) -> tuple[list[Example], collections.Counter[str], list[str]]:
    if limit < 0:
        raise DataError(f"{source}: limit must be 0 (all) or more, not {limit}")
    kept: list[Example] = []
    drops: collections.Counter[str] = collections.Counter()
    left_out, ids, num_good = list[str](), UniqueIds(), 0
    for where, examples in records:
        num_before = len(kept)
        for example in _checked(examples, images, ids):
            if isinstance(example, ExampleError):
                leave_out(where, example, drops, left_out)
            else:
                kept.append(example)
        num_good += len(kept) > num_before
        if limit and num_good == limit:
            break
    if not kept:
        raise none_left(f"{source}: no usable prompt is left", drops, left_out)
    return kept, drops, left_out


def leave_out(
    where: str, error: ExampleError, drops: collections.Counter[str], left_out: list[str]
) -> None:
    """Counts an unusable example in `drops`, and describes the first ones in `left_out`."""
    drops[error.reason] += 1
    if len(left_out) < _MAX_DESCRIBED:
        left_out.append(f"{where}: {error.reason}: {error}")


def none_left(message: str, drops: collections.Counter[str], left_out: Sequence[str]) -> DataError:
    """Returns the error for a source without a usable example: all counts, and the first one."""
    first = f"; the first: {left_out[0]}" if left_out else ""
    return DataError(f"{message} ({counted(drops) or 'it is empty'}){first}")


def counted(drops: Mapping[str, int]) -> str:
    """Returns counts in words, most frequent first.

    >>> counted(collections.Counter({"no image": 2, "empty question": 3}))
    '3 empty question, 2 no image'
    """
    return ", ".join(f"{n:,} {reason}" for reason, n in collections.Counter(drops).most_common())


def prompt_set(source: str, images: Images, records: Records[Prompt], limit: int = 0) -> PromptSet:
    """Returns the usable prompts, and counts the others.

    Args:
        source: what was read, for errors.
        images: gives access to the images.
        records: where each record is in the source, and an iterator over its prompts, which may
            raise `ExampleError`.
        limit: stop after this many records with a usable prompt; 0 means no limit.

    Raises:
        DataError: no prompt is usable, or the limit is negative.
    """
    prompts, drops, left_out = _collect(source, images, records, limit)
    return PromptSet(
        prompts, images.load, drops, images.read, left_out=left_out, remote=images.remote,
        read_size=images.size,
    )  # fmt: skip


def preference_set(
    source: str,
    images: Images,
    records: Records[Comparison],
    limit: int = 0,
    notes: collections.Counter[str] | None = None,
) -> PreferenceSet:
    """Returns the usable comparisons, and counts the others; see `prompt_set`.

    Args:
        source: what was read, for errors.
        images: gives access to the images.
        records: where each record is in the source, and an iterator over its comparisons.
        limit: stop after this many records with a usable comparison; 0 means no limit.
        notes: counts that reading `records` fills; see `PromptSet`.
    """
    comparisons, drops, left_out = _collect(source, images, records, limit)
    prompts = [c.prompt for c in comparisons]
    return PreferenceSet(
        prompts, images.load, drops, images.read, comparisons, left_out=left_out,
        notes=+(notes or collections.Counter()), remote=images.remote, read_size=images.size,
    )  # fmt: skip
