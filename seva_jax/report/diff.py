"""Marking and counting the words in which answers differ.

What lives here: the word-level comparison of two or more answers and its HTML. What does not: the
cards around the answers (`gallery.py`).
"""

from __future__ import annotations

import difflib
import itertools
import re

from seva_jax.report.markup import esc

# Scripts written without spaces are compared by character, everything else by word.
_TOKEN = re.compile(r"\s+|[\u3040-\u30ff\u3400-\u9fff]|[^\W_]+(?:['’-][^\W_]+)*|[\W_]")


def mark_differences(chosen: str, rejected: tuple[str, ...]) -> tuple[str, tuple[str, ...]]:
    """Returns answers as HTML, with the words in which they differ marked.

    Args:
        chosen: one answer; a word missing from at least one of the others is put in `<mark>`.
        rejected: the others; a word missing from `chosen` is put in `<del>`.

    Returns:
        HTML of `chosen` and of each of `rejected`. Case and white space do not count as
        differences.

    >>> mark_differences("a red circle", ("a blue circle",))
    ('a <mark>red</mark> circle', ('a <del>blue</del> circle',))
    """
    chosen_tokens = _TOKEN.findall(chosen)
    chosen_only: set[int] = set()
    rejected_html = []
    for answer in rejected:
        tokens = _TOKEN.findall(answer)
        only, answer_only = _compare(chosen_tokens, tokens)
        chosen_only |= only
        rejected_html.append(_wrap(tokens, answer_only, "del"))
    return _wrap(chosen_tokens, chosen_only, "mark"), tuple(rejected_html)


def differing_pieces(
    left: str, right: str
) -> tuple[list[tuple[str, bool]], list[tuple[str, bool]]]:
    """Returns two answers in pieces, each with whether the other answer lacks its words.

    >>> differing_pieces("a red circle", "a blue circle")[0]
    [('a ', False), ('red', True), (' circle', False)]
    """
    left_tokens, right_tokens = _TOKEN.findall(left), _TOKEN.findall(right)
    left_only, right_only = _compare(left_tokens, right_tokens)
    return _pieces(left_tokens, left_only), _pieces(right_tokens, right_only)


def difference(chosen: str, rejected: tuple[str, ...]) -> float:
    """Returns the share of words that only one of two answers has, 0 to 1, a mean over `rejected`.

    >>> difference("a red circle", ("a blue circle", "a red circle"))
    0.16666666666666666
    """
    tokens = _TOKEN.findall(chosen)
    shares = []
    for answer in rejected:
        theirs = _TOKEN.findall(answer)
        left, right = _compare(tokens, theirs)
        total = len(_words(tokens)) + len(_words(theirs))
        shares.append((len(left) + len(right)) / max(total, 1))
    return sum(shares) / max(len(shares), 1)


def num_words(text: str) -> int:
    """Counts the words of a text; in scripts without spaces every character is a word.

    >>> num_words("It's a red circle, I think.")
    6
    """
    return sum(token[0].isalnum() for token in _TOKEN.findall(text))


def _compare(left: list[str], right: list[str]) -> tuple[set[int], set[int]]:
    """Returns the indices of tokens that only the left list has, and that only the right has."""
    left_words, right_words = _words(left), _words(right)
    matcher = difflib.SequenceMatcher(
        None, [word for _, word in left_words], [word for _, word in right_words], autojunk=False
    )
    left_only: set[int] = set()
    right_only: set[int] = set()
    for tag, start, end, other_start, other_end in matcher.get_opcodes():
        if tag != "equal":
            left_only.update(index for index, _ in left_words[start:end])
            right_only.update(index for index, _ in right_words[other_start:other_end])
    return left_only, right_only


def _words(tokens: list[str]) -> list[tuple[int, str]]:
    """Returns (token index, comparable form) of every token that is not white space."""
    return [(index, token.casefold()) for index, token in enumerate(tokens) if token.strip()]


def _wrap(tokens: list[str], marked: set[int], tag: str) -> str:
    """Returns tokens as HTML, with each run of marked words in one element."""
    return "".join(
        f"<{tag}>{esc(text)}</{tag}>" if is_marked else esc(text)
        for text, is_marked in _pieces(tokens, marked)
    )


def _pieces(tokens: list[str], marked: set[int]) -> list[tuple[str, bool]]:
    """Returns runs of words that are marked, or not, and whether each is."""
    # White space between two marked words is marked with them.
    inside = marked | {i + 1 for i in marked if i + 2 in marked and not tokens[i + 1].strip()}
    return [
        ("".join(tokens[index] for index in indices), is_marked)
        for is_marked, indices in itertools.groupby(range(len(tokens)), inside.__contains__)
    ]
