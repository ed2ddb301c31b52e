"""Encoding of a question and its answers as token ids: a trunk and its branches.

What lives here: `Encoder`, truncation, and cleaning of decoded answers. What does not: packing
into rows and positions (`seva_jax/batches`), masks (`seva_jax/training/step.py`). Read next:
`templates.py`.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar

import numpy as np

from seva_jax.text.specials import SpecialTokenCheck, special_ids
from seva_jax.text.templates import Template
from seva_jax.text.words import WordIds
from seva_jax.types import (
    FRAME,
    IMAGE_MARKER,
    VIDEO_MARKER,
    DataError,
    ExampleError,
    ImageSize,
    Layouts,
    Prompt,
    Size,
    View,
    frames_of,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_Value = TypeVar("_Value")

_TOGETHER = 256  # trunks with their answers that are encoded at a time


class EncodedTree(NamedTuple):
    """Token ids of a trunk and its answers, without padding.

    Attributes:
        trunk: int32 [S], everything up to and including "ASSISTANT:" with image tokens expanded,
            then the start of the answer if there is one (`Prompt.start`).
        branches: int32 [T] for each answer: at least one token, and the end token last unless the
            answer was cut.
        truncated: how many answers were cut.
        sizes: size of each image of the prompt, see `Encoder.sizes`.
    """

    trunk: np.ndarray
    branches: tuple[np.ndarray, ...]
    truncated: int
    sizes: tuple[ImageSize, ...]


class _Images(NamedTuple):
    """What a trunk has to know about its images: the size of each, and their numbers of tokens.

    A video has a size for each frame, and a number for each of its layouts.
    """

    sizes: tuple[ImageSize, ...]
    counts: np.ndarray


class _Texts(NamedTuple):
    """The texts that are encoded for one trunk with its answers.

    Attributes:
        prompt: everything up to and including "ASSISTANT:".
        num_images: images of the prompt, or layouts of its video.
        start: see `Prompt.start`.
        before: everything before an answer.
        answers: the answers, without the spaces around them.
    """

    prompt: str
    num_images: int
    start: str
    before: str
    answers: tuple[str, ...]

    @property
    def encoded(self) -> list[str]:
        """Returns all texts: the prompt, what comes before an answer, and both together."""
        before = [self.before] if self.start else []
        return [self.prompt, *before, *(self.before + x for x in self.answers if x)]


@dataclasses.dataclass(frozen=True)
class Encoder:
    """Turns text into the ids that the model trains on and generates from.

    Attributes:
        tokenizer: a transformers tokenizer.
        template: the words around question and answer.
        image_token_id: id at the positions of image features, and of those of a video: it is
            never looked up, so a tokenizer needs no other token for videos.
        layouts: gives the layout of each image of a prompt; an image takes as many of these ids as
            its layout has tokens.
        max_length: maximum number of tokens in the trunk and one branch together.
        image_size: returns the size of an image by its name; not called, and not needed, where all
            images have one layout.
        image_text: what stands for one image in the text that is tokenised: the image token once,
            and other special tokens around it.

    Raises:
        DataError: tokenizer, template and image token do not fit together.
    """

    tokenizer: PreTrainedTokenizerBase
    template: Template
    image_token_id: int
    layouts: Layouts
    max_length: int
    image_size: Callable[[str], Size] | None = None
    image_text: str = IMAGE_MARKER

    def __post_init__(self):
        template, specials = self.template, special_ids(self.tokenizer, self.image_token_id)
        end = self._ids(template.end, add_special_tokens=False)
        if len(end) != 1 or end[0] not in specials - {self.image_token_id}:
            raise DataError(
                f"the template closes answers with {template.end!r}, but the tokenizer's end token "
                f"is {self.tokenizer.eos_token!r}; use Template(end=...) of this tokenizer"
            )
        image = self._ids(self.image_text, add_special_tokens=False)
        if image.count(self.image_token_id) != 1 or not specials.issuperset(image):
            raise DataError(
                f"the tokenizer does not encode {self.image_text} as image token "
                f"{self.image_token_id}: use the tokenizer and image_token_id of the same model"
            )
        words = self._ids(
            self._spelled(template.prompt(IMAGE_MARKER + template.user)),
            add_special_tokens=False,
        )
        if self.unknown_id in words:
            raise DataError(
                f"the tokenizer does not know every word of the template "
                f"{template.prompt('...')!r}; add them to its vocabulary or use another template"
            )

    @property
    def pad_id(self) -> int:
        """Id for padding. Any id will do, since padding is masked."""
        pad = self.tokenizer.pad_token_id
        return pad if isinstance(pad, int) else 0

    @functools.cached_property
    def end_id(self) -> int:
        """The id that closes an answer."""
        return self._ids(self.template.end, add_special_tokens=False)[0]

    @functools.cached_property
    def stop_ids(self) -> tuple[int, ...]:
        """The ids that end a generated answer: `end_id`, and the tokenizer's own end token."""
        end = self.tokenizer.eos_token_id
        others = [end] if isinstance(end, int) and end != self.end_id else []
        return (self.end_id, *others)

    @functools.cached_property
    def unknown_id(self) -> int | None:
        """The id that stands for an unknown word, if the tokenizer has one.

        Tokenizers of bytes know every word; some name their end token as the unknown one.
        """
        unknown = self.tokenizer.unk_token_id
        return unknown if isinstance(unknown, int) and unknown not in self.stop_ids else None

    @functools.cached_property
    def largest_id(self) -> int:
        """The largest id that a text can have."""
        return max(self.image_token_id, *self.tokenizer.get_vocab().values())

    def sizes(self, prompt: Prompt) -> tuple[ImageSize, ...]:
        """Returns what the layouts of a prompt's images depend on, see `Layouts`.

        Returns:
            The size of each image, (0, 0) where all images have one layout; or the frames of the
            video.

        Raises:
            ExampleError: an image cannot be read, or see `Prompt.seconds_per_frame`.
        """
        if prompt.about_video and not self.layouts.native:
            return (FRAME,) * len(prompt.images)
        if self.layouts.one_layout:
            return ((0, 0),) * len(prompt.images)
        assert self.image_size is not None, "layouts depend on the sizes of images"
        if prompt.about_video:
            size = self.image_size(prompt.images[0])
            return frames_of(size, len(prompt.images), prompt.seconds_per_frame)
        return tuple(self.image_size(name) for name in prompt.images)

    def sized(self, image_size: Callable[[str], Size]) -> Encoder:
        """Returns the encoder with another source of the sizes of images."""
        return self if self.layouts.one_layout else dataclasses.replace(self, image_size=image_size)

    def trunk(self, prompt: Prompt) -> np.ndarray:
        """Encodes everything before the answer, with a start token if the tokenizer adds one.

        The ids equal those that the processor of the model in transformers returns for
        `template.prompt(...)`, or, with the tokenizer of an original LLaVA, those of its
        `tokenizer_image_token`.

        Returns:
            int32 [S].

        Raises:
            ExampleError: see `Template.prompt`; or the question or the start contains a special
                token; or an image cannot be read, or not be laid out.
        """
        return self._one(View(prompt, ())).trunk

    def answer(self, prompt: Prompt, text: str) -> np.ndarray:
        """Encodes an answer as the tokens that follow `trunk(prompt)`.

        Prompt and answer are tokenised together, as the model sees them, so that the boundary
        between them is exact. Spaces around the answer are dropped; after a start, only those at
        its end.

        Returns:
            int32 [T], with the end token last. Unknown words become `<unk>`.

        Raises:
            ExampleError: the answer is empty, contains a special token, or merges with the prompt.
        """
        texts = self._texts(View(prompt, (text,)))
        before, answers = self._read(texts, iter(self._ids_of(texts.encoded)))
        del before
        return next(answers)

    def fit(self, trunk: np.ndarray, answer_ids: np.ndarray) -> tuple[np.ndarray, bool]:
        """Cuts the end of an answer so that trunk and answer fit. The trunk is never cut.

        Returns:
            int32 [T], at least one token; and whether it was cut and so has no end token.

        Raises:
            ExampleError: no token of the answer fits.
        """
        room = self.max_length - len(trunk)
        if room < 1:
            images = np.count_nonzero(trunk == self.image_token_id)
            raise ExampleError(
                f"images and question take {len(trunk)} tokens ({images} of them the images) and "
                "leave no room for an answer; raise max_length "
                f"({self.max_length}) or drop the example",
                "too long",
            )
        return answer_ids[:room], len(answer_ids) > room

    def encode(self, view: View) -> EncodedTree:
        """Encodes a trunk and its answers; each answer is cut to the room that the trunk leaves.

        Raises:
            ExampleError: see `trunk`, `answer` and `fit`.
        """
        return self._one(view)

    def trees(self, views: Iterable[View]) -> Iterator[EncodedTree | ExampleError]:
        """Encodes many trunks and their answers, many times as fast as one by one.

        Args:
            views: trunks with their answers, in any number.

        Yields:
            For each of them, in order, what `encode` returns, or the error that it raises.
        """
        views = iter(views)
        while some := list(itertools.islice(views, _TOGETHER)):
            yield from self._trees(some)

    def trunks(self, prompts: Iterable[Prompt]) -> Iterator[np.ndarray | ExampleError]:
        """Encodes many trunks, many times as fast as one by one.

        Yields:
            For each prompt, in order, what `trunk` returns for it, or the error that it raises.
        """
        for tree in self.trees(View(prompt, ()) for prompt in prompts):
            yield tree if isinstance(tree, ExampleError) else tree.trunk

    def marked(self, prompt: Prompt, text: str, spans: Sequence[tuple[int, int]]) -> np.ndarray:
        """Marks the tokens of `answer(prompt, text)` that are in a span.

        A token is in a span if they share a character.

        Args:
            prompt: as in `answer`.
            text: as in `answer`.
            spans: [start, end) in characters of `text`.

        Returns:
            int32 [T], 1 for tokens in a span; the end token is in none.

        Raises:
            DataError: the tokenizer does not report which characters a token comes from.
        """
        if not self.tokenizer.is_fast:
            raise DataError(
                f"{type(self.tokenizer).__name__} does not report which characters a token comes "
                "from, but marked phrases need that; save it as a fast tokenizer (tokenizer.json)"
            )
        texts = self._texts(View(prompt, ()))
        before, _ = self._read(texts, iter(self._ids_of(texts.encoded)))
        dropped = 0 if prompt.start else len(text) - len(text.lstrip())
        shift = len(texts.before) - dropped  # from positions in `text` to positions in `joint`
        joint = self.tokenizer(texts.before + text[dropped:].rstrip(), return_offsets_mapping=True)
        inside = [
            any(begin < last + shift and first + shift < end for first, last in spans)
            for begin, end in joint.offset_mapping[len(before) :]
        ]
        return np.asarray([*inside, False], np.int32)

    def decode(
        self, ids: Sequence[int] | np.ndarray, trunk: Sequence[int] | np.ndarray = ()
    ) -> str:
        """Decodes generated ids: drops special tokens and leaves the spacing unchanged.

        Args:
            ids: the generated ids.
            trunk: the ids before them, needed where the trunk ends in the start of the answer:
                tokenizers do not decode the space before the first word of a text.
        """
        if len(trunk):
            return self.decode([*trunk, *ids])[len(self.decode(trunk)) :]
        text = self.tokenizer.decode(
            np.asarray(ids, np.int32).tolist(),
            skip_special_tokens=True,
            clean_up_tokenization_spaces=False,
        )
        assert isinstance(text, str)  # one sequence in, one string out
        return text

    def _one(self, view: View) -> EncodedTree:
        (tree,) = self._trees([view])
        if isinstance(tree, ExampleError):
            raise tree
        return tree

    def _trees(self, views: Sequence[View]) -> list[EncodedTree | ExampleError]:
        asked = [_caught(lambda view=view: self._texts(view)) for view in views]
        every = (text for x in asked if not isinstance(x, ExampleError) for text in x.encoded)
        ids = iter(self._ids_of(list(every)))
        out = list[EncodedTree | ExampleError]()
        for view, texts in zip(views, asked, strict=True):
            if isinstance(texts, ExampleError):
                out.append(texts)
            else:
                mine = list(itertools.islice(ids, len(texts.encoded)))
                out.append(_caught(functools.partial(self._tree, texts, view.prompt, mine)))
        return out

    def _tree(
        self, texts: _Texts, prompt: Prompt, ids: Sequence[np.ndarray | ExampleError]
    ) -> EncodedTree:
        before, answers = self._read(texts, iter(ids))
        images = self._images(prompt)
        trunk = expand_images(before, self.image_token_id, images.counts)
        fitted = [self.fit(trunk, answer) for answer in answers]
        branches = tuple(ids for ids, _ in fitted)
        return EncodedTree(trunk, branches, sum(cut for _, cut in fitted), images.sizes)

    def _images(self, prompt: Prompt) -> _Images:
        """Returns sizes and numbers of tokens of images; where all are alike, by their number."""
        num = len(prompt.images)
        if prompt.about_video or not self.layouts.one_layout:
            return self._laid_out(self.sizes(prompt))
        images = self._alike.get(num)
        if images is None:
            images = self._alike[num] = self._laid_out(self.sizes(prompt))
        return images

    @functools.cached_property
    def _alike(self) -> dict[int, _Images]:
        return {}

    def _laid_out(self, sizes: tuple[ImageSize, ...]) -> _Images:
        return _Images(sizes, np.array([x.num_tokens for x in self.layouts(sizes)], np.int64))

    def _texts(self, view: View) -> _Texts:
        """Returns the texts of a trunk and its answers.

        Raises:
            ExampleError: see `Template.prompt`.
        """
        asked = view.prompt
        question, captions = self._question(asked)
        prompt = self.template.prompt(question, 1 if asked.about_video else len(captions))
        prompt = self._spelled(prompt, captions)
        answers = tuple(x.rstrip() if asked.start else x.strip() for x in view.answers)
        before = prompt + self.template.before_answer + asked.start
        return _Texts(prompt, len(captions), asked.start, before, answers)

    def _question(self, prompt: Prompt) -> tuple[str, tuple[str, ...]]:
        """Returns a question, and the text in front of each image, or each layout of a video.

        A question has one marker for all of a video.

        Raises:
            ExampleError: it is about a video, and the model takes none, or there are more markers.
        """
        if not prompt.about_video:
            return prompt.question, ("",) * len(prompt.images)
        if not self.layouts.videos:
            raise ExampleError(
                f"the question has {VIDEO_MARKER}, but the model takes no videos, only images: "
                f"{prompt.question[:80]!r}; remove the marker, and each frame is an image",
                "no videos",
            )
        words = prompt.question.replace(VIDEO_MARKER, "", 1).strip()
        if VIDEO_MARKER in words or IMAGE_MARKER in words:
            raise ExampleError(
                f"the question has other markers beside one {VIDEO_MARKER}: "
                f"{prompt.question[:80]!r}; ask about one video, or about images",
                "image markers",
            )
        frames = frames_of((0, 0), len(prompt.images), prompt.seconds_per_frame)
        return words, self.layouts.captions(frames)

    def _spelled(self, prompt: str, captions: Sequence[str] = ()) -> str:
        """Returns a prompt with images as the tokenizer knows them."""
        if any(captions):  # a video
            images = "".join(caption + self.image_text for caption in captions)
            return prompt.replace(IMAGE_MARKER, images)
        return prompt.replace(IMAGE_MARKER, self.image_text)

    def _read(
        self, texts: _Texts, ids: Iterator[np.ndarray | ExampleError]
    ) -> tuple[np.ndarray, Iterator[np.ndarray]]:
        """Checks what texts were encoded as.

        Args:
            texts: the texts.
            ids: those of `texts.encoded`, or why a text has none.

        Returns:
            int32 [S], the trunk with one image token for each image; and the ids of each answer,
            which are checked when they are asked for.

        Raises:
            ExampleError: see `trunk` and `answer`.
        """
        before = _valid(next(ids))
        self._specials.check_question(texts.prompt, before, texts.num_images)
        if texts.start:
            start = np.asarray(self._ids(texts.start, add_special_tokens=False), np.int32)
            self._specials.check_answer(texts.start, start)
            before = _valid(next(ids))
        return before, (self._answer(texts, before, text, ids) for text in texts.answers)

    def _answer(
        self,
        texts: _Texts,
        before: np.ndarray,
        text: str,
        rest: Iterator[np.ndarray | ExampleError],
    ) -> np.ndarray:
        if not text:
            raise ExampleError(
                "the answer is empty: nothing to learn from; drop it", "empty answer"
            )
        joint = _valid(next(rest))
        ids = joint[len(before) :]
        if not len(ids) or joint[: len(before)].tobytes() != before.tobytes():
            advice = (
                "change the template's lead or sep so that a token ends where the answer begins"
            )
            if texts.start:
                advice = (
                    "end the start of the answer at the end of a word, without a space after it"
                )
            raise ExampleError(
                "the tokenizer merges the end of the prompt with the answer "
                f"{text[:40]!r}; {advice}",
                "answer merges with prompt",
            )
        self._specials.check_answer(text, ids)
        return np.concatenate((ids, self._end_1))

    def _ids(self, text: str, add_special_tokens: bool = True) -> list[int]:
        try:
            return list(self.tokenizer(text, add_special_tokens=add_special_tokens).input_ids)
        except TypeError as error:  # tokenizers raise it for half a surrogate pair
            raise ExampleError(
                f"{text[:40]!r} cannot be encoded as UTF-8; fix the text", "invalid text"
            ) from error

    def _ids_of(self, texts: Sequence[str]) -> list[np.ndarray | ExampleError]:
        """Returns the ids of many texts, int32 [S], or why a text has none."""
        words = self._words
        out: list[Any] = [words(text) if words else None for text in texts]
        rest = [i for i, ids in enumerate(out) if ids is None]
        try:
            encoded = self.tokenizer([texts[i] for i in rest]).input_ids if rest else []
        except TypeError:  # one of them has none
            encoded = (_caught(lambda i=i: self._ids(texts[i])) for i in rest)
        for i, ids in zip(rest, encoded, strict=True):
            out[i] = ids if isinstance(ids, ExampleError) else np.asarray(ids, np.int32)
        return out

    @functools.cached_property
    def _words(self) -> WordIds | None:
        return WordIds.of(self.tokenizer)

    @functools.cached_property
    def _end_1(self) -> np.ndarray:
        return np.array([self.end_id], np.int32)

    @functools.cached_property
    def _specials(self) -> SpecialTokenCheck:
        return SpecialTokenCheck(
            self.tokenizer,
            special_ids(self.tokenizer, self.image_token_id),
            self.unknown_id,
            prompt=self._ids(self.template.prompt("a", 0)),
            image=self._ids(self.image_text, add_special_tokens=False),
        )


def expand_images(ids_S: np.ndarray, image_token_id: int, counts: np.ndarray) -> np.ndarray:
    """Repeats the one token of each image as often as the image has tokens.

    Args:
        ids_S: int32, a trunk with one image token for each image.
        image_token_id: the id of that token.
        counts: how many tokens each image takes, in order.

    Returns:
        int32, the trunk that the model sees.
    """
    counts_S = np.ones(len(ids_S), np.int64)
    counts_S[ids_S == image_token_id] = counts
    return np.repeat(ids_S, counts_S)


def _caught(call: Callable[[], _Value]) -> _Value | ExampleError:
    """Returns what a call returns, or the `ExampleError` that it raises."""
    try:
        return call()
    except ExampleError as error:
        return error.with_traceback(None)


def _valid(ids: np.ndarray | ExampleError) -> np.ndarray:
    if isinstance(ids, ExampleError):
        raise ids
    return ids


def clean_answer(text: str, newline: Literal["space", "delete"] = "space") -> str:
    r"""Cleans a decoded answer for training: puts it on one line and removes `</s>`.

    Args:
        text: the decoded answer.
        newline: "space" replaces every line break, with the spaces around it, by one space.
            # SeVa: "delete" removes line breaks, which joins the words on both sides.

    >>> clean_answer("A cat.\n\nAnd a dog.</s>")
    'A cat. And a dog.'
    >>> clean_answer("A cat\nand a dog.</s>", newline="delete")
    'A catand a dog.'
    """
    text = text.replace("</s>", "")
    text = text.replace("\n", "") if newline == "delete" else re.sub(r"\s*[\r\n]\s*", " ", text)
    return text.strip()
