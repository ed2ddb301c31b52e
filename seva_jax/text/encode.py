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

from seva_jax.text.templates import Template
from seva_jax.text.words import WordIds
from seva_jax.types import IMAGE_MARKER, DataError, ExampleError, Prompt, View

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
    """

    trunk: np.ndarray
    branches: tuple[np.ndarray, ...]
    truncated: int


class _Texts(NamedTuple):
    """The texts that are encoded for one trunk with its answers.

    Attributes:
        prompt: everything up to and including "ASSISTANT:".
        start: see `Prompt.start`.
        before: everything before an answer.
        answers: the answers, without the spaces around them.
    """

    prompt: str
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
        tokenizer: tokenizer that encodes `<image>` as one token.
        template: the words around question and answer.
        image_token_id: id at the positions of image features.
        tokens_per_image: features of an image; each `<image>` becomes that many ids.
        max_length: maximum number of tokens in the trunk and one branch together.

    Raises:
        DataError: tokenizer, template and image token do not fit together.
    """

    tokenizer: PreTrainedTokenizerBase
    template: Template
    image_token_id: int
    tokens_per_image: int
    max_length: int

    def __post_init__(self):
        end_id, template = self.tokenizer.eos_token_id, self.template
        if end_id is None or self._ids(template.end, add_special_tokens=False) != [end_id]:
            raise DataError(
                f"the template closes answers with {template.end!r}, but the tokenizer's end token "
                f"is {self.tokenizer.eos_token!r}; use Template(end=...) of this tokenizer"
            )
        if self._ids(IMAGE_MARKER, add_special_tokens=False) != [self.image_token_id]:
            raise DataError(
                f"the tokenizer does not encode {IMAGE_MARKER} as image token {self.image_token_id}"
                ": use the tokenizer and image_token_id of the same model"
            )
        words = self._ids(template.prompt(IMAGE_MARKER + template.user), add_special_tokens=False)
        if self.tokenizer.unk_token_id in words:
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
    def unknown_id(self) -> int | None:
        """The id that stands for an unknown word, if the tokenizer has one."""
        unknown = self.tokenizer.unk_token_id
        return unknown if isinstance(unknown, int) else None

    @functools.cached_property
    def largest_id(self) -> int:
        """The largest id that a text can have."""
        return max(self.image_token_id, *self.tokenizer.get_vocab().values())

    def trunk(self, question: str, num_images: int = 1, start: str = "") -> np.ndarray:
        """Encodes everything before the answer, with a start token if the tokenizer adds one.

        The ids equal those that transformers' `LlavaProcessor` returns for `template.prompt(...)`,
        or, with the tokenizer of an original LLaVA, those of its `tokenizer_image_token`.

        Args:
            question: see `Template.prompt`.
            num_images: see `Template.prompt`.
            start: see `Prompt.start`; tokenised together with the prompt.

        Returns:
            int32 [S].

        Raises:
            ExampleError: see `Template.prompt`; or the question or the start contains a special
                token.
        """
        return self._one(View(_prompt(question, num_images, start), ())).trunk

    def answer(self, question: str, num_images: int, text: str, start: str = "") -> np.ndarray:
        """Encodes an answer as the tokens that follow `trunk(question, num_images, start)`.

        Prompt and answer are tokenised together, as the model sees them, so that the boundary
        between them is exact. Spaces around the answer are dropped; after a start, only those at
        its end.

        Returns:
            int32 [T], with the end token last. Unknown words become `<unk>`.

        Raises:
            ExampleError: the answer is empty, contains a special token, or merges with the prompt.
        """
        texts = self._texts(View(_prompt(question, num_images, start), (text,)))
        before, answers = self._read(texts, iter(self._ids_of(texts.encoded)))
        del before
        return next(answers)

    def fit(self, trunk_len: int, answer_ids: np.ndarray) -> tuple[np.ndarray, bool]:
        """Cuts the end of an answer so that trunk and answer fit. The trunk is never cut.

        Returns:
            int32 [T], at least one token; and whether it was cut and so has no end token.

        Raises:
            ExampleError: no token of the answer fits.
        """
        room = self.max_length - trunk_len
        if room < 1:
            raise ExampleError(
                f"images and question take {trunk_len} tokens and leave no room for an answer; "
                f"raise max_length ({self.max_length}) or drop the example",
                "too long",
            )
        return answer_ids[:room], len(answer_ids) > room

    def encode(
        self, question: str, num_images: int, answers: Sequence[str], start: str = ""
    ) -> EncodedTree:
        """Encodes a trunk and its answers; each answer is cut to the room that the trunk leaves.

        Raises:
            ExampleError: see `trunk`, `answer` and `fit`.
        """
        return self._one(View(_prompt(question, num_images, start), tuple(answers)))

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

    def marked(
        self,
        question: str,
        num_images: int,
        text: str,
        spans: Sequence[tuple[int, int]],
        start: str = "",
    ) -> np.ndarray:
        """Marks the tokens of `answer(question, num_images, text, start)` that are in a span.

        A token is in a span if they share a character.

        Args:
            question: as in `answer`.
            num_images: as in `answer`.
            text: as in `answer`.
            spans: [start, end) in characters of `text`.
            start: as in `answer`.

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
        texts = self._texts(View(_prompt(question, num_images, start), ()))
        before, _ = self._read(texts, iter(self._ids_of(texts.encoded)))
        dropped = 0 if start else len(text) - len(text.lstrip())
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
        for texts in asked:
            if isinstance(texts, ExampleError):
                out.append(texts)
            else:
                mine = list(itertools.islice(ids, len(texts.encoded)))
                out.append(_caught(lambda texts=texts, mine=mine: self._tree(texts, mine)))
        return out

    def _tree(self, texts: _Texts, ids: Sequence[np.ndarray | ExampleError]) -> EncodedTree:
        before, answers = self._read(texts, iter(ids))
        trunk = self._expand(before)
        fitted = [self.fit(len(trunk), answer) for answer in answers]
        return EncodedTree(trunk, tuple(ids for ids, _ in fitted), sum(cut for _, cut in fitted))

    def _texts(self, view: View) -> _Texts:
        """Returns the texts of a trunk and its answers.

        Raises:
            ExampleError: see `Template.prompt`.
        """
        asked = view.prompt
        prompt = self.template.prompt(asked.question, len(asked.images))
        answers = tuple(x.rstrip() if asked.start else x.strip() for x in view.answers)
        before = prompt + self.template.before_answer + asked.start
        return _Texts(prompt, asked.start, before, answers)

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
        # The first token is the tokenizer's start token or a word of the template; image tokens
        # are allowed, since the template has counted the image markers.
        self._refuse_specials(texts.prompt, before[1:], "question", allowed=self.image_token_id)
        if texts.start:
            start = np.asarray(self._ids(texts.start, add_special_tokens=False), np.int32)
            self._refuse_specials(texts.start, start, "answer")
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
        self._refuse_specials(text, ids, "answer")
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
        end: Any = self.tokenizer.eos_token_id
        return np.array([end], np.int32)

    @functools.cached_property
    def _specials(self) -> tuple[int, ...]:
        """Ids that no text may spell, see `_refuse_specials`."""
        tokenizer = self.tokenizer
        ids: Any = (
            tokenizer.bos_token_id,
            tokenizer.eos_token_id,
            tokenizer.pad_token_id,
            tokenizer.unk_token_id,
            self.image_token_id,
        )
        return tuple(id_ for id_ in ids if id_ is not None)

    @functools.cached_property
    def _is_special(self) -> np.ndarray:
        """For every id up to the largest of `_specials`, and one beyond, whether it is one."""
        return np.isin(np.arange(max(self._specials) + 2), self._specials)

    def _refuse_specials(
        self, text: str, ids: np.ndarray, where: str, allowed: int | None = None
    ) -> None:
        """Refuses special tokens: a literal "</s>" would end the answer, "<image>" add an image.

        The id of `<unk>` is allowed, also where it is the padding token, unless the text spells it:
        it stands for a genuine word and is trained on.
        """
        is_special = self._is_special.take(ids, mode="clip")
        if not is_special.any():
            return
        tokenizer = self.tokenizer
        spells_unknown = tokenizer.unk_token is not None and str(tokenizer.unk_token) in text
        kept = (None if spells_unknown else tokenizer.unk_token_id, allowed)
        specials = [id_ for id_ in ids[is_special].tolist() if id_ not in kept]
        if specials:
            token = tokenizer.convert_ids_to_tokens(specials[0])
            raise ExampleError(
                f"the {where} contains the special token {token!r}; remove it from the text",
                f"special token in {where}",
            )

    def _expand(self, ids_S: np.ndarray) -> np.ndarray:
        counts_S = np.where(ids_S == self.image_token_id, self.tokens_per_image, 1)
        return np.repeat(ids_S, counts_S)


def _prompt(question: str, num_images: int, start: str) -> Prompt:
    return Prompt("", question, ("",) * num_images, start=start)


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
