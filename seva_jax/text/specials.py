"""Refuses texts that spell special tokens: a literal "</s>" would end an answer.

What lives here: which tokens these are, and where they are allowed. What does not: which texts are
encoded (`encode.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NoReturn

import numpy as np

from seva_jax.types import IMAGE_MARKER, ExampleError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def special_ids(tokenizer: PreTrainedTokenizerBase, image_token_id: int) -> frozenset[int]:
    """Returns the ids of all special tokens of a tokenizer, and the image token."""
    added = tokenizer.added_tokens_decoder.items()
    marked = (id_ for id_, token in added if token.special)
    return frozenset((*tokenizer.all_special_ids, *marked, image_token_id))


class SpecialTokenCheck:
    """Checks the ids of texts for special tokens that the texts themselves spell.

    The token for unknown words is allowed, also where it is the padding token, unless the text
    spells it: it stands for a genuine word and is trained on.

    Args:
        tokenizer: the tokenizer.
        ids: see `special_ids`.
        unknown_id: the id that stands for an unknown word; None if there is none.
        prompt: ids of a prompt without images, which has the special tokens of the template.
        image: ids of an image in a prompt.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        ids: Iterable[int],
        unknown_id: int | None,
        prompt: Sequence[int],
        image: Sequence[int],
    ) -> None:
        self._tokenizer, self._unknown = tokenizer, unknown_id
        refused = [id_ for id_ in ids if id_ != unknown_id]
        # For every id up to the largest special one, and one for all beyond.
        self._is_special = np.isin(np.arange(max(refused) + 2), refused)
        self._prompt, self._image = self._counts(prompt), self._counts(image)
        self._num_prompt, self._num_image = int(self._prompt.sum()), int(self._image.sum())

    def check_question(self, text: str, ids: np.ndarray, num_images: int) -> None:
        """Refuses special tokens that are neither of the template nor of an image.

        Args:
            text: the prompt.
            ids: int32, those of the prompt, with one image token for each image.
            num_images: how many images it is about, whose markers the template has counted.

        Raises:
            ExampleError: "special token in question".
        """
        # Quick, as this is done for every prompt.
        num = np.count_nonzero(self._is_special.take(ids, mode="clip"))
        if num != self._num_prompt + num_images * self._num_image:
            extra = self._counts(ids) - self._prompt - num_images * self._image
            for special in np.flatnonzero(extra > 0).tolist():
                self._refuse(special, "question")
        self._check_unknown(text, ids, "question")

    def check_answer(self, text: str, ids: np.ndarray) -> None:
        """Refuses special tokens in an answer, or in the start of one.

        Raises:
            ExampleError: "special token in answer".
        """
        is_special = self._is_special.take(ids, mode="clip")
        if is_special.any():
            self._refuse(int(ids[is_special][0]), "answer")
        if IMAGE_MARKER in text:  # where images are spelled otherwise, this is no special token
            self._refuse(IMAGE_MARKER, "answer")
        self._check_unknown(text, ids, "answer")

    def _counts(self, ids: Sequence[int] | np.ndarray) -> np.ndarray:
        """Returns how often each special token occurs, by id."""
        size = len(self._is_special)
        counts = np.bincount(np.minimum(ids, size - 1), minlength=size)
        return np.where(self._is_special, counts, 0)

    def _check_unknown(self, text: str, ids: np.ndarray, where: str) -> None:
        unknown = self._unknown
        if unknown is not None and str(self._tokenizer.unk_token) in text and unknown in ids:
            self._refuse(unknown, where)

    def _refuse(self, token: int | str, where: str) -> NoReturn:
        if isinstance(token, int):
            token = str(self._tokenizer.convert_ids_to_tokens(token))
        raise ExampleError(
            f"the {where} contains the special token {token!r}; remove it from the text",
            f"special token in {where}",
        )
