"""Marks the words in which answers differ.

What lives here: the word-level comparison of two or more answers and its HTML. What does not: the
cards the answers stand in (`gallery.py`).
"""

from __future__ import annotations

import difflib
import re

from seva_jax.report.markup import esc

# Scripts written without spaces are compared by character, everything else by word.
_TOKEN = re.compile(r"\s+|[\u3040-\u30ff\u3400-\u9fff]|[^\W_]+(?:['’-][^\W_]+)*|[\W_]")


def mark_differences(chosen: str, rejected: tuple[str, ...]) -> tuple[str, tuple[str, ...]]:
    """Answers as HTML, with the words that set them apart marked.

    Args:
        chosen: one answer; a word missing from at least one of the others is put in `<mark>`.
        rejected: the others; a word missing from `chosen` is put in `<del>`.

    Returns:
        HTML of `chosen` and of each of `rejected`. Letter case and white space are not
        differences.

    >>> mark_differences("a red circle", ("a blue circle",))
    ('a <mark>red</mark> circle', ('a <del>blue</del> circle',))
    """
    chosen_tokens = _TOKEN.findall(chosen)
    chosen_words = _words(chosen_tokens)
    chosen_only: set[int] = set()
    rejected_html = []
    for answer in rejected:
        tokens = _TOKEN.findall(answer)
        words = _words(tokens)
        matcher = difflib.SequenceMatcher(
            None, [word for _, word in chosen_words], [word for _, word in words], autojunk=False
        )
        answer_only: set[int] = set()
        for tag, left, left_end, right, right_end in matcher.get_opcodes():
            if tag != "equal":
                chosen_only.update(index for index, _ in chosen_words[left:left_end])
                answer_only.update(index for index, _ in words[right:right_end])
        rejected_html.append(_wrap(tokens, answer_only, "del"))
    return _wrap(chosen_tokens, chosen_only, "mark"), tuple(rejected_html)


def _words(tokens: list[str]) -> list[tuple[int, str]]:
    """(token index, comparable form) of every token that is not white space."""
    return [(index, token.casefold()) for index, token in enumerate(tokens) if token.strip()]


def _wrap(tokens: list[str], marked: set[int], tag: str) -> str:
    """Tokens as HTML, with each run of marked words in one element."""
    html, run, gap = [], [], ""
    for index, token in enumerate(tokens):
        if index in marked:
            run.append(gap + token)
            gap = ""
        elif run and not token.strip():
            gap = token
        else:
            if run:
                html.append(f"<{tag}>{esc(''.join(run))}</{tag}>")
                run = []
            html.append(esc(gap + token))
            gap = ""
    if run:
        html.append(f"<{tag}>{esc(''.join(run))}</{tag}>")
    return "".join(html) + esc(gap)
