"""Comparisons as token ids, encoded once for the whole run.

What lives here: the ids of all comparisons, to which every process contributes its share. What does
not: which of them fit (`fitting.py`), rows and batches (`pipeline.py`, read next).
"""

from __future__ import annotations

import array
import collections
import dataclasses
import io
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from typing_extensions import override

from seva_jax.batches.fitting import fitting
from seva_jax.batches.packing import Sizes
from seva_jax.batches.trees import RowShape, rounded
from seva_jax.runtime.garbage import no_search_for_cycles
from seva_jax.runtime.processes import gather_bytes, require_none
from seva_jax.text import Encoder, expand_images
from seva_jax.types import (
    Comparison,
    DataError,
    ExampleError,
    ImageLayout,
    ImageSize,
    Layouts,
    Size,
    frames_of,
)


class ImageTokens(NamedTuple):
    """What a row needs to know about the tokens of a model.

    Attributes:
        image_token_id: the id that holds the place of image features.
        pad_id: the id for places that hold nothing.
        layouts: gives the layout of each image of a prompt, by their sizes.
    """

    image_token_id: int
    pad_id: int
    layouts: Layouts

    @classmethod
    def of(cls, encoder: Encoder) -> ImageTokens:
        """Returns those of an encoder."""
        return cls(encoder.image_token_id, encoder.pad_id, encoder.layouts)

    def collapse(self, trunk: np.ndarray, layouts: Sequence[ImageLayout]) -> np.ndarray:
        """Returns a trunk with one image token for each image, which is what memory keeps."""
        is_image = trunk == self.image_token_id
        ends = np.cumsum([layout.num_tokens for layout in layouts], dtype=np.int64) - 1
        kept = ~is_image
        kept[np.flatnonzero(is_image)[ends]] = True
        return trunk[kept]

    def expand(self, collapsed: np.ndarray, layouts: Sequence[ImageLayout]) -> np.ndarray:
        """Inverts `collapse`."""
        counts = np.array([layout.num_tokens for layout in layouts], np.int64)
        return expand_images(collapsed, self.image_token_id, counts)


@dataclasses.dataclass(frozen=True)
class EncodedComparison:
    """One comparison and the ids of its trees.

    Attributes:
        comparison: the comparison.
        trees: for each of its views, the trunk as `ImageTokens.collapse` leaves it, and the
            branches: int32.
        sizes: for each of its views, the sizes of the images, see `EncodedTree.sizes`.
        spans: for each answer, 1 at tokens inside marked phrases; None where none are marked.
    """

    comparison: Comparison
    trees: tuple[tuple[np.ndarray, tuple[np.ndarray, ...]], ...]
    sizes: tuple[tuple[ImageSize, ...], ...]
    spans: tuple[np.ndarray, ...] | None


class _Ids(NamedTuple):
    """Arrays of token ids, one after another: an object for each would take more than its ids.

    Attributes:
        flat: all ids, uint16 or int32.
        bounds: int64, where each array begins, and where the last one ends.
    """

    flat: np.ndarray
    bounds: np.ndarray

    def array(self, number: int) -> np.ndarray:
        """Returns one of the arrays, int32."""
        first, last = self.bounds[number : number + 2]
        return self.flat[first:last].astype(np.int32)


class EncodedList(Sequence[EncodedComparison]):
    """Comparisons with their token ids, which are kept in one flat array.

    Args:
        comparisons: the comparisons.
        ids: trunk and branches of every tree, tree by tree.
        firsts: for each comparison, the number of its first array in `ids`.
        images: int32, height and width of each image, comparison by comparison.
        first_images: for each comparison, the number of its first image in `images`.
        spans: see `EncodedComparison`, for those that have some.
    """

    def __init__(
        self,
        comparisons: list[Comparison],
        ids: _Ids,
        firsts: np.ndarray,
        images: np.ndarray,
        first_images: np.ndarray,
        spans: dict[int, tuple[np.ndarray, ...]],
    ) -> None:
        self.comparisons = comparisons
        self._ids, self._firsts, self._spans = ids, firsts, spans
        self._images, self._first_images = images, first_images

    @override
    def __len__(self) -> int:
        return len(self.comparisons)

    @override
    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return self.select(range(*index.indices(len(self))))
        index = range(len(self))[index]
        comparison, at = self.comparisons[index], int(self._firsts[index])
        image = int(self._first_images[index])
        trees, sizes = [], list[tuple[ImageSize, ...]]()
        for view in comparison.views:
            trunk, *branches = map(self._ids.array, range(at, at + 1 + len(view.answers)))
            trees.append((trunk, tuple(branches)))
            at += 1 + len(branches)
            own = self._images[image : image + len(view.prompt.images)]
            known: list[Size] = [(height, width) for height, width in own.tolist()]
            if view.prompt.about_video:
                sizes.append(frames_of(known[0], len(known), view.prompt.seconds_per_frame))
            else:
                sizes.append(tuple(known))
            image += len(own)
        return EncodedComparison(comparison, tuple(trees), tuple(sizes), self._spans.get(index))

    def select(self, indices: Sequence[int]) -> EncodedList:
        """Returns some of the comparisons; the ids are not copied."""
        spans = {new: self._spans[old] for new, old in enumerate(indices) if old in self._spans}
        chosen = [self.comparisons[i] for i in indices]
        firsts, first_images = (x[list(indices)] for x in (self._firsts, self._first_images))
        return EncodedList(chosen, self._ids, firsts, self._images, first_images, spans)


@dataclasses.dataclass(frozen=True)
class EncodedComparisons:
    """The comparisons that fit the model, and why others do not.

    Attributes:
        encoded: those that fit, in order.
        tokens: the model's image tokens.
        drops: how many do not fit, by reason.
        num_cut: how many answers were cut to fit.
        shape: a row shape that holds each of them; None if there are none.
        sizes: what each of them needs of a row.
    """

    encoded: EncodedList
    tokens: ImageTokens
    drops: collections.Counter[str]
    num_cut: int
    shape: RowShape | None
    sizes: Sizes

    @property
    def comparisons(self) -> list[Comparison]:
        """The comparisons that fit, in order."""
        return self.encoded.comparisons

    def select(self, indices: Sequence[int]) -> EncodedComparisons:
        """Returns some of the comparisons, in rows of the same shape."""
        sizes = Sizes(*(x[list(indices)] for x in self.sizes))
        return dataclasses.replace(self, encoded=self.encoded.select(indices), sizes=sizes)


def encode_comparisons(comparisons: Sequence[Comparison], encoder: Encoder) -> EncodedComparisons:
    """Encodes comparisons, leaving out and counting those whose text does not fit."""
    return _joined(comparisons, encoder, [_encode(comparisons, encoder)])


def encode_together(comparisons: Sequence[Comparison], encoder: Encoder) -> EncodedComparisons:
    """Returns what `encode_comparisons` does; every process encodes its share.

    Args:
        comparisons: the same ones on every process; all of them have to call this.
        encoder: the encoder, the same likewise.

    Raises:
        DataError: what encoding a share raised, on every process.
    """
    everyone = jax.process_count()
    if everyone == 1:
        return encode_comparisons(comparisons, encoder)
    ends = [len(comparisons) * number // everyone for number in range(everyone + 1)]
    first, last = ends[jax.process_index() :][:2]
    problems, part = list[str](), None
    try:
        part = _encode(comparisons[first:last], encoder, first)
    except DataError as error:
        problems.append(str(error))
    require_none(problems)
    assert part is not None
    parts = [_Part.read(data) for data in gather_bytes(part.written())]
    return _joined(comparisons, encoder, parts)


class _Part(NamedTuple):
    """Some comparisons as token ids, in arrays of numbers, not lists: there may be millions.

    Attributes:
        facts_NF: int64, `_FACTS` of each comparison that fits.
        flat: ids of trunk and branches of every tree, tree by tree: uint16 or int32.
        lengths: int64, how many of them each trunk or branch has.
        image_sizes: int32, height and width of the images of all trees, one after another.
        spans: int8, those of `EncodedComparison` one after another, where there are some.
        span_lengths: int64, how many each answer has.
        span_answers: int64, of each comparison with spans, its number and how many answers it has.
        drops: JSON as uint8, see `EncodedComparisons`.
    """

    facts_NF: np.ndarray
    flat: np.ndarray
    lengths: np.ndarray
    image_sizes: np.ndarray
    spans: np.ndarray
    span_lengths: np.ndarray
    span_answers: np.ndarray
    drops: np.ndarray

    def written(self) -> bytes:
        """Returns the part as bytes."""
        file = io.BytesIO()
        np.savez(file, **self._asdict())
        return file.getvalue()

    @classmethod
    def read(cls, data: bytes) -> _Part:
        """Inverts `written`."""
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            return cls(**arrays)


# Of a comparison: its number, how many trunks and branches, three of `Sizes`, how many images and
# answers, the length of the longest answer, and how many were cut.
_FACTS = ("number", "arrays", "length", "targets", "tiles", "images", "answers", "longest", "cut")


@no_search_for_cycles()
def _encode(comparisons: Sequence[Comparison], encoder: Encoder, first: int = 0) -> _Part:
    """Encodes comparisons, the first of which has the number `first` among all."""
    tokens = ImageTokens.of(encoder)
    dtype = np.uint16 if encoder.largest_id < 2**16 else np.int32
    flat, lengths, facts = bytearray(), array.array("q"), array.array("q")
    image_sizes = array.array("i")
    spans, span_lengths, span_answers = bytearray(), array.array("q"), array.array("q")
    drops: collections.Counter[str] = collections.Counter()
    for number, fitted in enumerate(fitting(comparisons, encoder), first):
        if isinstance(fitted, ExampleError):
            drops[fitted.reason] += 1
            continue
        if fitted.spans is not None:
            span_answers.extend((number, len(fitted.spans)))
            for marks in fitted.spans:
                span_lengths.append(len(marks))
                spans += marks.astype(np.int8).tobytes()
        trees, arrays, tiles, images = fitted.trees, len(lengths), 0, len(image_sizes)
        for tree in trees:
            layouts = tokens.layouts(tree.sizes)
            tiles += sum(layout.tiles for layout in layouts)
            for size in tree.sizes:
                image_sizes.extend(size[:2])
            for ids in (tokens.collapse(tree.trunk, layouts), *tree.branches):
                lengths.append(len(ids))
                flat += ids.astype(dtype).tobytes()
        answers = [len(ids) for tree in trees for ids in tree.branches]
        length = sum(len(tree.trunk) for tree in trees) + sum(answers)
        cut = sum(tree.truncated for tree in trees)
        images = (len(image_sizes) - images) // 2
        facts.extend((number, len(lengths) - arrays, length, sum(answers), tiles, images))
        facts.extend((len(answers), max(answers, default=0), cut))
    return _Part(
        np.frombuffer(facts, np.int64).reshape(-1, len(_FACTS)),
        np.frombuffer(flat, dtype),
        np.frombuffer(lengths, np.int64),
        np.frombuffer(image_sizes, np.int32).reshape(-1, 2),
        np.frombuffer(spans, np.int8),
        np.frombuffer(span_lengths, np.int64),
        np.frombuffer(span_answers, np.int64).reshape(-1, 2),
        np.frombuffer(json.dumps(drops).encode(), np.uint8),
    )


def _joined(
    comparisons: Sequence[Comparison], encoder: Encoder, parts: Sequence[_Part]
) -> EncodedComparisons:
    """Returns the comparisons that parts have encoded.

    Args:
        comparisons: all comparisons.
        encoder: what encoded them.
        parts: cover all of them, in order.
    """
    drops: collections.Counter[str] = collections.Counter()
    for part in parts:
        drops.update(json.loads(part.drops.tobytes()))
    whole = parts[0]
    if len(parts) > 1:
        whole = _Part(*map(np.concatenate, zip(*parts, strict=True)))
    fact = dict(zip(_FACTS, np.ascontiguousarray(whole.facts_NF.T), strict=True))
    sizes = Sizes(fact["length"], fact["targets"], fact["tiles"])
    numbers = fact["number"].tolist()
    shape = None
    if numbers:
        shape = RowShape(
            length=rounded(int(sizes.length_N.max())),
            comparisons=1,
            branches=int(fact["answers"].max()),
            answer=rounded(int(fact["longest"].max())),
            tiles=int(sizes.tiles_N.max()),
            targets=rounded(int(sizes.targets_N.max())),
        )
    ids = _Ids(whole.flat, _bounds(whole.lengths))
    firsts, first_images = (_bounds(fact[name])[:-1] for name in ("arrays", "images"))
    chosen, spans = [comparisons[i] for i in numbers], _spans(whole, numbers)
    encoded = EncodedList(chosen, ids, firsts, whole.image_sizes, first_images, spans)
    cut = int(fact["cut"].sum())
    return EncodedComparisons(encoded, ImageTokens.of(encoder), drops, cut, shape, sizes)


def _bounds(lengths: np.ndarray) -> np.ndarray:
    """Returns where arrays that follow one another begin, and where the last one ends."""
    return np.concatenate([[0], np.cumsum(lengths)])


def _spans(part: _Part, numbers: Sequence[int]) -> dict[int, tuple[np.ndarray, ...]]:
    """Returns the spans of the comparisons that have some, by their place in `numbers`."""
    places = dict(zip(numbers, range(len(numbers)), strict=True)) if len(part.span_answers) else {}
    marks = _Ids(part.spans, _bounds(part.span_lengths))
    ends = _bounds(part.span_answers[:, 1]).tolist()
    return {
        places[number]: tuple(map(marks.array, range(*ends[i : i + 2])))
        for i, number in enumerate(part.span_answers[:, 0].tolist())
    }
