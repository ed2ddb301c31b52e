"""Answers of a model as text for a terminal: printable, wrapped, in columns, with marked words.

What lives here: everything that a model wrote and a terminal shows passes through `printable`. What
does not: pages (`markup.py`), and which words differ (`diff.py`).
"""

from __future__ import annotations

import itertools
import os
import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import IO

from seva_jax.report.diff import differing_pieces

LEFT, RIGHT = "\x1b[1;31m", "\x1b[1;32m"  # bold red and bold green
_RESET = "\x1b[0m"
_GAP = " │ "
_WIDE = 80  # cells from which two answers are shown side by side
# Control characters, which move the cursor or start a sequence; characters that change the order of
# others; and halves of surrogate pairs, which cannot be printed.
_UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2028\u2029\u2066-\u2069\ud800-\udfff]"
)


def printable(text: str) -> str:
    r"""Returns text that a terminal shows as it is: U+FFFD in place of control characters.

    >>> printable("a\x1b[2Jb\tc\r\n")
    'a�[2Jb    c\n'
    """
    return _UNPRINTABLE.sub("\ufffd", text.replace("\r\n", "\n").replace("\t", "    "))


def has_colour(stream: IO[str], environment: Mapping[str, str] = os.environ) -> bool:
    """Returns whether text on a stream may be coloured, see https://no-color.org."""
    if environment.get("NO_COLOR") or environment.get("TERM") == "dumb":
        return False
    return stream.isatty()


def side_by_side(
    labels: tuple[str, str], answers: tuple[str, str], width: int, colour: bool
) -> str:
    """Returns two answers in two columns, or below each other where there is no room.

    Equal answers are shown once.

    Args:
        labels: whose answers they are.
        answers: as the models wrote them.
        width: cells of a line of the terminal.
        colour: whether words that only one answer has are coloured.
    """
    labels = (printable(labels[0]), printable(labels[1]))
    left, right = (printable(answer).strip() for answer in answers)
    if left == right:
        return one_answer(f"{labels[0]} and {labels[1]}, the same answer", left, width)
    pieces = differing_pieces(left, right)
    columns = width >= _WIDE
    each = (width - len(_GAP)) // 2 if columns else width
    blocks = [
        [_bold(cut(label, each), colour), *_wrapped(words, each, mark if colour else "")]
        for label, words, mark in zip(labels, pieces, (LEFT, RIGHT), strict=True)
    ]
    if not columns:
        return "\n\n".join("\n".join(block) for block in blocks)
    return "\n".join(
        (_padded(a, each) + _GAP + b).rstrip()
        for a, b in itertools.zip_longest(*blocks, fillvalue="")
    )


def one_answer(label: str, answer: str, width: int) -> str:
    """Returns an answer below its label."""
    lines = _wrapped([(printable(answer).strip(), False)], width, "")
    return "\n".join([cut(printable(label), width), *lines])


def cells(text: str) -> int:
    """Returns how many cells of a terminal a text takes.

    >>> cells("图a"), cells("e\u0301")
    (3, 1)
    """
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1
        for c in text
    )


def cut(text: str, width: int) -> str:
    """Returns a text of one line that takes at most `width` cells, with its end: paths end last."""
    line = " ".join(text.split())
    if cells(line) <= width:
        return line
    while cells(line) > width - 1:
        line = line[1:]
    return "…" + line


def _bold(text: str, colour: bool) -> str:
    return f"\x1b[1m{text}{_RESET}" if colour else text


def _padded(line: str, width: int) -> str:
    shown = re.sub("\x1b\\[[0-9;]*m", "", line)  # sequences of this module: others are not printed
    return line + " " * (width - cells(shown))


def _wrapped(pieces: Sequence[tuple[str, bool]], width: int, mark: str) -> list[str]:
    """Returns lines of at most `width` cells; marked pieces are between `mark` and its end."""
    text = "".join(piece for piece, _ in pieces) or "(no answer)"
    marked = [is_marked and bool(mark) for piece, is_marked in pieces for _ in piece]
    marked += [False] * (len(text) - len(marked))
    lines = []
    for start, end in _line_ends(text, width):
        line = ""
        for is_marked, places in itertools.groupby(range(start, end), marked.__getitem__):
            part = "".join(text[i] for i in places)
            line += f"{mark}{part}{_RESET}" if is_marked else part
        lines.append(line)
    return lines


def _line_ends(text: str, width: int) -> list[tuple[int, int]]:
    """Returns [start, end) of each line of a text that is broken at spaces, or in long words."""
    lines = []
    for paragraph in re.finditer(r"[^\n]*(?:\n|$)", text):
        start, end = paragraph.start(), paragraph.start() + len(paragraph[0].rstrip("\n"))
        if start == len(text) and lines:
            break
        while cells(text[start:end]) > width:
            fits = start + 1
            while cells(text[start : fits + 1]) <= width:
                fits += 1
            space = text.rfind(" ", start, fits + 1)
            stop = space if space > start else fits
            lines.append((start, stop))
            start = stop + (text[stop : stop + 1] == " ")
        lines.append((start, end))
    return lines
