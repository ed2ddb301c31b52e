"""Encoding of a question and its answers as token ids: a trunk and its branches.

What lives here: `Encoder`, truncation, and cleaning of decoded answers. What does not: packing
into rows and positions (`seva_jax/batches`), masks (`seva_jax/training/step.py`). Read next:
`templates.py`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from seva_jax.text.templates import Template
from seva_jax.types import IMAGE_MARKER, DataError, ExampleError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


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


class _Before(NamedTuple):
    """Everything before an answer.

    Attributes:
        text: the text up to the answer's first character.
        ids: ids of the trunk, with one image token for each image.
        started: whether the trunk includes the start of the answer (`Prompt.start`).
    """

    text: str
    ids: list[int]
    started: bool


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
        return self._expand(self._before(question, num_images, start).ids)

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
        return self._answer(self._before(question, num_images, start), text)

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
        before = self._before(question, num_images, start)
        dropped = 0 if before.started else len(text) - len(text.lstrip())
        shift = len(before.text) - dropped  # from positions in `text` to positions in `joint`
        joint = self.tokenizer(before.text + text[dropped:].rstrip(), return_offsets_mapping=True)
        inside = [
            any(begin < last + shift and first + shift < end for first, last in spans)
            for begin, end in joint.offset_mapping[len(before.ids) :]
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

    def _ids(self, text: str, add_special_tokens: bool = True) -> list[int]:
        try:
            return list(self.tokenizer(text, add_special_tokens=add_special_tokens).input_ids)
        except TypeError as error:  # tokenizers raise it for half a surrogate pair
            raise ExampleError(
                f"{text[:40]!r} cannot be encoded as UTF-8; fix the text", "invalid text"
            ) from error

    def _prompt_ids(self, prompt: str) -> list[int]:
        ids = self._ids(prompt)
        # The first token is the tokenizer's start token or a word of the template; image tokens
        # are allowed, since the template has counted the image markers.
        self._refuse_specials(prompt, ids[1:], "question", allowed=self.image_token_id)
        return ids

    def _before(self, question: str, num_images: int, start: str) -> _Before:
        prompt = self.template.prompt(question, num_images)
        ids, text = self._prompt_ids(prompt), prompt + self.template.before_answer + start
        if not start:
            return _Before(text, ids, False)
        self._refuse_specials(start, self._ids(start, add_special_tokens=False), "answer")
        return _Before(text, self._ids(text), True)

    def _answer(self, before: _Before, text: str) -> np.ndarray:
        text = text.rstrip() if before.started else text.strip()
        if not text:
            raise ExampleError(
                "the answer is empty: nothing to learn from; drop it", "empty answer"
            )
        advice = "change the template's lead or sep so that a token ends where the answer begins"
        if before.started:
            advice = "end the start of the answer at the end of a word, without a space after it"
        joint = self._ids(before.text + text)
        ids = joint[len(before.ids) :]
        if joint[: len(before.ids)] != before.ids or not ids:
            raise ExampleError(
                "the tokenizer merges the end of the prompt with the answer "
                f"{text[:40]!r}; {advice}",
                "answer merges with prompt",
            )
        self._refuse_specials(text, ids, "answer")
        return np.asarray([*ids, self.tokenizer.eos_token_id], np.int32)

    def _refuse_specials(
        self, text: str, ids: list[int], where: str, allowed: int | None = None
    ) -> None:
        """Refuses special tokens: a literal "</s>" would end the answer, "<image>" add an image.

        The id of `<unk>` is allowed, also where it is the padding token, unless the text spells it:
        it stands for a genuine word and is trained on.
        """
        tokenizer = self.tokenizer
        refused = (
            tokenizer.bos_token_id,
            tokenizer.eos_token_id,
            tokenizer.pad_token_id,
            tokenizer.unk_token_id,
            self.image_token_id,
        )
        spells_unknown = tokenizer.unk_token is not None and str(tokenizer.unk_token) in text
        kept = (None if spells_unknown else tokenizer.unk_token_id, allowed)
        specials = [id_ for id_ in ids if id_ in refused and id_ not in kept]
        if specials:
            token = tokenizer.convert_ids_to_tokens(specials[0])
            raise ExampleError(
                f"the {where} contains the special token {token!r}; remove it from the text",
                f"special token in {where}",
            )

    def _expand(self, ids: list[int]) -> np.ndarray:
        ids_S = np.asarray(ids, np.int32)
        counts_S = np.where(ids_S == self.image_token_id, self.tokens_per_image, 1)
        return np.repeat(ids_S, counts_S)


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
