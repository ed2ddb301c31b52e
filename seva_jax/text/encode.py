"""One question and its answers as token ids: a trunk and its branches.

What lives here: `Encoder`, truncation, and cleaning of decoded answers. What does not: packing
into rows, positions and masks (`seva_jax/data`). Read next: `templates.py`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerBase

from seva_jax.text.templates import Template
from seva_jax.types import IMAGE_MARKER, DataError, ExampleError


class EncodedTree(NamedTuple):
    """Token ids of one trunk and its answers. Lengths are exact: there is no padding.

    Attributes:
        trunk: int32 [N], everything up to and including "ASSISTANT:", image tokens expanded, and
            the beginning of the answer where one is given.
        branches: one int32 [T_k] for each answer, at least one token, closed by the end token
            unless it was cut.
        truncated: how many branches were cut.
    """

    trunk: np.ndarray
    branches: tuple[np.ndarray, ...]
    truncated: int


class _Before(NamedTuple):
    """All that comes before an answer.

    Attributes:
        text: up to the answer's first character.
        ids: of the trunk, one for each image.
        started: whether there is a beginning of the answer among it.
    """

    text: str
    ids: list[int]
    started: bool


@dataclasses.dataclass(frozen=True)
class Encoder:
    """Turns text into the ids the model trains on and generates from.

    Attributes:
        tokenizer: must know `<image>` as one token.
        template: the words around question and answer.
        image_token_id: id that fills the places of image features.
        tokens_per_image: image features per image; each `<image>` becomes that many ids.
        max_length: most tokens of trunk and one branch together.

    Raises:
        DataError: tokenizer, template and image token do not belong together.
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
        """Id for positions that hold nothing; any will do, since they are masked."""
        pad = self.tokenizer.pad_token_id
        return pad if isinstance(pad, int) else 0

    def trunk(self, question: str, num_images: int = 1, start: str = "") -> np.ndarray:
        """Encodes everything before the answer, with the start token if the tokenizer adds one.

        Equals what `transformers`' `LlavaProcessor` makes of `template.prompt(...)`.

        Args:
            question: see `Template.prompt`.
            num_images: see `Template.prompt`.
            start: see `Prompt.start`; tokenised together with the prompt.

        Returns:
            int32 [N].

        Raises:
            ExampleError: see `Template.prompt`; or question or start contain a special token.
        """
        return self._expand(self._before(question, num_images, start).ids)

    def answer(self, question: str, num_images: int, text: str, start: str = "") -> np.ndarray:
        """Encodes an answer as the tokens that follow `trunk(question, num_images, start)`.

        Prompt and answer are tokenised together, as the model meets them, so nothing is guessed
        about their boundary. Spaces around the answer are dropped; where it goes on from a start,
        only those behind it.

        Returns:
            int32 [T], closed by the end token. Unknown words keep their `<unk>` ids.

        Raises:
            ExampleError: the answer is empty, contains a special token, or merges with the prompt.
        """
        return self._answer(self._before(question, num_images, start), text)

    def fit(self, trunk_len: int, answer_ids: np.ndarray) -> tuple[np.ndarray, bool]:
        """Cuts an answer at its end so that trunk and answer fit. The trunk is never cut.

        Returns:
            int32 [T'], at least one token, and whether it was cut (it then has no end token).

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
        """Encodes one trunk with its answers, each cut on its own to what `max_length` leaves.

        Raises:
            ExampleError: see `trunk`, `answer` and `fit`.
        """
        before = self._before(question, num_images, start)
        trunk = self._expand(before.ids)
        fitted = [self.fit(len(trunk), self._answer(before, text)) for text in answers]
        return EncodedTree(trunk, tuple(ids for ids, _ in fitted), sum(cut for _, cut in fitted))

    def marked(
        self,
        question: str,
        num_images: int,
        text: str,
        spans: Sequence[tuple[int, int]],
        start: str = "",
    ) -> np.ndarray:
        """Which tokens of `answer(question, num_images, text, start)` are inside of some span.

        A token that shares a character with a span is inside.

        Args:
            question: as in `answer`.
            num_images: as in `answer`.
            text: as in `answer`.
            spans: [start, end) in characters of `text`.
            start: as in `answer`.

        Returns:
            int32 [T], 0 at the end token.

        Raises:
            DataError: the tokenizer does not say which characters its tokens come from.
        """
        if not self.tokenizer.is_fast:
            raise DataError(
                f"{type(self.tokenizer).__name__} does not say which characters a token comes "
                "from, which marked phrases need; save it as a fast tokenizer (tokenizer.json)"
            )
        before = self._before(question, num_images, start)
        dropped = 0 if before.started else len(text) - len(text.lstrip())
        shift = len(before.text) - dropped  # from characters of `text` to those of all
        joint = self.tokenizer(before.text + text[dropped:].rstrip(), return_offsets_mapping=True)
        inside = [
            any(begin < last + shift and first + shift < end for first, last in spans)
            for begin, end in joint.offset_mapping[len(before.ids) :]
        ]
        return np.asarray([*inside, False], np.int32)

    def decode(
        self, ids: Sequence[int] | np.ndarray, trunk: Sequence[int] | np.ndarray = ()
    ) -> str:
        """Decodes generated ids as they are: special tokens dropped, spacing untouched.

        Args:
            ids: what was generated.
            trunk: what was there before, where the answer has a start: the blank before a first
                word is not decoded.
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

    def _ids(self, text: str, add_special_tokens: bool = True) -> list[int]:
        try:
            return list(self.tokenizer(text, add_special_tokens=add_special_tokens).input_ids)
        except TypeError as error:  # what tokenizers say of half a surrogate pair
            raise ExampleError(
                f"{text[:40]!r} is no text that UTF-8 could hold; mend it", "invalid text"
            ) from error

    def _prompt_ids(self, prompt: str) -> list[int]:
        ids = self._ids(prompt)
        # The first token is the tokenizer's start token or a word of the template, and the
        # template has counted the image markers.
        self._refuse_specials(ids[1:], "question", allowed=self.image_token_id)
        return ids

    def _before(self, question: str, num_images: int, start: str) -> _Before:
        prompt = self.template.prompt(question, num_images)
        ids, text = self._prompt_ids(prompt), prompt + self.template.sep + start
        if not start:
            return _Before(text, ids, False)
        self._refuse_specials(self._ids(start, add_special_tokens=False), "answer")
        return _Before(text, self._ids(text), True)

    def _answer(self, before: _Before, text: str) -> np.ndarray:
        text = text.rstrip() if before.started else text.strip()
        if not text:
            raise ExampleError(
                "the answer is empty: nothing to learn from; drop it", "empty answer"
            )
        advice = "change the template's sep so that a token ends where the answer begins"
        if before.started:
            advice = "end its start where a word ends, without a blank behind it"
        joint = self._ids(before.text + text)
        ids = joint[len(before.ids) :]
        if joint[: len(before.ids)] != before.ids or not ids:
            raise ExampleError(
                "the tokenizer merges the end of the prompt with the answer "
                f"{text[:40]!r}; {advice}",
                "answer merges with prompt",
            )
        self._refuse_specials(ids, "answer")
        return np.asarray([*ids, self.tokenizer.eos_token_id], np.int32)

    def _refuse_specials(self, ids: list[int], where: str, allowed: int | None = None) -> None:
        """A literal "</s>" or "<image>" in a text would end the answer or ask for an image.

        `<unk>` is not one of them, even where it doubles as the padding token: it stands for a
        genuine word and stays a label.
        """
        tokenizer = self.tokenizer
        refused = (
            tokenizer.bos_token_id,
            tokenizer.eos_token_id,
            tokenizer.pad_token_id,
            self.image_token_id,
        )
        kept = (tokenizer.unk_token_id, allowed)
        found = [id_ for id_ in ids if id_ in refused and id_ not in kept]
        if found:
            token = tokenizer.convert_ids_to_tokens(found[0])
            raise ExampleError(
                f"the {where} contains the special token {token!r}; remove it from the text",
                f"special token in {where}",
            )

    def _expand(self, ids: list[int]) -> np.ndarray:
        ids_N = np.asarray(ids, np.int32)
        counts_N = np.where(ids_N == self.image_token_id, self.tokens_per_image, 1)
        return np.repeat(ids_N, counts_N)


def clean_answer(text: str, newline: Literal["space", "delete"] = "space") -> str:
    r"""Makes a raw decoded answer fit for training: one line, without `</s>`.

    Args:
        text: the decoded answer.
        newline: "space" replaces line breaks and the blanks around them by one space.
            # SeVa: "delete" removes them, which glues the words at both sides together.

    >>> clean_answer("A cat.\n\nAnd a dog.</s>")
    'A cat. And a dog.'
    >>> clean_answer("A cat\nand a dog.</s>", newline="delete")
    'A catand a dog.'
    """
    text = text.replace("</s>", "")
    text = text.replace("\n", "") if newline == "delete" else re.sub(r"\s*[\r\n]\s*", " ", text)
    return text.strip()
