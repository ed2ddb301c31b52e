"""Encodes texts word by word, with the ids of the whole text, where a tokenizer allows it.

A tokenizer of Llama's kind takes a text between two special tokens as a single sequence of
characters, with "▁" for each space, and joins pieces in the order of their precedence. No piece of
such a vocabulary has a "▁" after another character, so nothing is ever joined across the start of a
word: the ids of a text are those of its words, one after another, and words repeat. What does not
live here: which texts are encoded, and other tokenizers (`encode.py`).
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from seva_jax.types import IMAGE_MARKER

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

_SPACE = "▁"  # how the pieces write a space
_LONGEST = 64  # characters of a word that is kept; Chinese texts, for example, have no spaces
_MOST = 2**17  # words that are kept, tens of MiB
_PREPEND = {
    "type": "Sequence",
    "normalizers": [
        {"type": "Prepend", "prepend": _SPACE},
        {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE},
    ],
}
_NOT_PLAIN = ("single_word", "lstrip", "rstrip", "normalized")  # flags of an added token
_PROBES = (
    "A chat. USER: <image>\nWhat is this? ASSISTANT:",
    "<image><image> Is <image> like it,<image>too? ",
    "double  blanks, one at the end ",
    " 12 été 中文 \U0001f600 \t\n<0x0A>",
)


class _Whole(Exception):
    """A text that has to be encoded as a whole."""


class _Words(dict[str, bytes]):
    """The ids of words, int32, encoded when they are first asked for.

    Args:
        tokenizer: encodes a word.
        specials: special and added tokens; a word that holds one is not a word.
        before: token that comes directly before the word; "" for none.
    """

    def __init__(self, tokenizer: Tokenizer, specials: list[str], before: str) -> None:
        self._tokenizer, self._specials, self._before = tokenizer, specials, before
        # What a text that ends with a space has after its last word.
        self[""] = np.array([tokenizer.token_to_id(_SPACE)], np.int32).tobytes()

    def __missing__(self, word: str) -> bytes:
        if len(word) > _LONGEST or _SPACE in word or any(x in word for x in self._specials):
            raise _Whole
        try:
            encoded = self._tokenizer.encode(self._before + word, add_special_tokens=False)
        except TypeError:  # half a surrogate pair
            raise _Whole from None
        ids = np.array(encoded.ids[bool(self._before) :], np.int32).tobytes()
        if len(self) >= _MOST:
            end = self[""]
            self.clear()
            self[""] = end
        self[word] = ids
        return ids


class WordIds:
    """Encodes texts word by word; `of` says for which tokenizers this gives the right ids.

    Args:
        tokenizer: the tokenizer.
        specials: its special and added tokens, apart from `<image>`.
        first: ids that come before every text.
    """

    def __init__(self, tokenizer: Tokenizer, specials: list[str], first: list[int]) -> None:
        image = tokenizer.token_to_id(IMAGE_MARKER)
        self._first = np.array(first, np.int32).tobytes()
        self._image = np.array([image], np.int32).tobytes()
        specials = [*specials, IMAGE_MARKER]
        self._words = _Words(tokenizer, specials, "")
        # Some tokenizers put no "▁" in front of the word that follows an image.
        self._after_image = _Words(tokenizer, specials, IMAGE_MARKER)
        # What a template puts before the first image is the same in one text after another.
        self._opening = ("", b"")

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> WordIds | None:
        """Returns the encoder for a tokenizer, or None if its words cannot be encoded apart."""
        if not tokenizer.is_fast or getattr(tokenizer, "split_special_tokens", False):
            return None
        from tokenizers import Tokenizer

        backend: Any = tokenizer
        stored = backend.backend_tokenizer.to_str()
        state = json.loads(stored)
        added = {token["content"]: token for token in state["added_tokens"]}
        if not _joins_within_words(state) or not _is_apart(added):
            return None
        own = Tokenizer.from_str(stored)  # calls with padding or truncation change a tokenizer
        own.no_padding()
        own.no_truncation()
        first = list(tokenizer("").input_ids)
        out = cls(own, [name for name in added if name != IMAGE_MARKER], first)
        for text in _PROBES:
            ids = out(text)
            if ids is not None and ids.tolist() != list(tokenizer(text).input_ids):
                return None
        return out

    def __call__(self, text: str) -> np.ndarray | None:
        """Returns the ids of a text, int32 [S], or None if it has to be encoded as a whole.

        That is so if the text spells a special token other than `<image>`, has two spaces in a row,
        a very long word, or half a surrogate pair.
        """
        if "  " in text:
            return None
        opening, *others = text.split(IMAGE_MARKER)
        try:
            last, ids = self._opening  # at once, as threads share it
            if opening != last:
                ids = b"".join(self._segment(opening, self._words))
                self._opening = (opening, ids)
            parts = [self._first, ids]
            for segment in others:
                parts.append(self._image)
                parts.extend(self._segment(segment, self._after_image))
        except _Whole:
            return None
        return np.frombuffer(b"".join(parts), np.int32)

    def _segment(self, segment: str, before: _Words) -> Iterator[bytes]:
        """Yields the ids of what is between two images; its first word is encoded by `before`."""
        if segment:
            first, *others = _split(segment)
            yield before[first]
            yield from map(self._words.__getitem__, others)


def _split(segment: str) -> list[str]:
    """Returns the words of a text; a space before the first one belongs to it."""
    words = segment.split(" ")
    if words[0] == "":
        words[:2] = [" " + words[1]]
    return words


def _joins_within_words(state: dict[str, Any]) -> bool:
    """Returns whether a tokenizer joins pieces within words only, by its serialised state."""
    model, split = state["model"], state["pre_tokenizer"]
    plain = (
        model["type"] == "BPE"
        and not any(
            model.get(name)
            for name in (
                "dropout", "continuing_subword_prefix", "end_of_word_suffix", "ignore_merges",
            )
        )
    )  # fmt: skip
    if not plain or _SPACE not in model["vocab"]:
        return False
    pairs = (x.split(" ") if isinstance(x, str) else x for x in model["merges"])
    joined = map("".join, pairs)
    if any(_SPACE in x.lstrip(_SPACE) for x in itertools.chain(model["vocab"], joined)):
        return False
    if split is None:
        return state["normalizer"] == _PREPEND
    return (
        state["normalizer"] is None
        and split.get("type") == "Metaspace"
        and split.get("replacement") == _SPACE
        and split.get("split") is False
        and split.get("prepend_scheme") in ("first", "always")
    )


def _is_apart(added: dict[str, dict[str, Any]]) -> bool:
    """Returns whether image markers can be cut out before other added tokens are looked for."""
    image = added.get(IMAGE_MARKER)
    if image is None or any(image[flag] for flag in _NOT_PLAIN):
        return False
    others = [name for name in added if name != IMAGE_MARKER]
    return not any(
        " " in name or _SPACE in name or "<" in name[1:] or name.startswith(IMAGE_MARKER)
        for name in others
    )
