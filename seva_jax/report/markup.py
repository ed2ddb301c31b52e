"""Text and numbers for the page: escaping and formatting.

What lives here: `esc`, through which every text of a run passes, and formats of numbers. What does
not: layout. Read next: `page.py`.
"""

from __future__ import annotations

import html
import math
import re

MINUS = "−"
# A UTF-8 HTML page may not contain control characters (except tab, newline) and lone surrogates.
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


def esc(text: object) -> str:
    """Escapes text so that HTML shows it as text, in an element or in a quoted attribute.

    Args:
        text: shown as `str(text)`; control characters and lone surrogates become U+FFFD.

    >>> esc('<b title="x">')
    '&lt;b title=&quot;x&quot;&gt;'
    """
    return html.escape(_UNPRINTABLE.sub("\ufffd", str(text).replace("\r\n", "\n")), quote=True)


def breakable(text: object) -> str:
    """Escapes text and lets long expressions and paths break after their punctuation.

    >>> breakable("objective.beta=0.5, x")
    'objective.<wbr>beta=<wbr>0.5, x'
    """
    return re.sub(r"([(,=/_](?=\S)|\.(?=[A-Za-z]))", r"\1<wbr>", esc(text))


def shorten(text: str, limit: int) -> str:
    """Shortens text to `limit` characters on one line, for alt texts."""
    line = " ".join(text.split())
    return line if len(line) <= limit else line[: limit - 1].rstrip() + "…"


def decimals_for(values: tuple[float, ...]) -> int:
    """Returns the decimals that give the largest of `values` about three significant digits."""
    largest = max((abs(value) for value in values if math.isfinite(value)), default=0.0)
    return 3 if largest <= 1 else 2 if largest < 100 else 1


def clear_decimals(values: tuple[float, ...], ends: tuple[float, ...]) -> int:
    """Returns decimals for `values` with which no end of an interval is rounded to 0.

    Args:
        values: see `decimals_for`.
        ends: ends of an interval without 0; () if it has 0.

    >>> clear_decimals((0.5, 0.6), (0.0001, 0.02)), clear_decimals((0.5, 0.6), ())
    (4, 3)
    """
    decimals = decimals_for(values)
    while decimals < 6 and any(round(end, decimals) == 0 for end in ends):
        decimals += 1
    return decimals


def number(value: float, decimals: int, *, signed: bool = False) -> str:
    """Formats a number with thousands separators and a real minus sign; "–" if not finite.

    >>> number(-1234.5, 1), number(0.25, 2, signed=True), number(-0.0001, 2, signed=True)
    ('−1,234.5', '+0.25', '0.00')
    """
    if not math.isfinite(value):
        return "–"
    rounded = round(value, decimals)
    if rounded == 0:
        return f"{0:.{decimals}f}"
    sign = MINUS if rounded < 0 else "+" if signed else ""
    return f"{sign}{abs(rounded):,.{decimals}f}"


def percent(part: float, whole: float) -> str:
    """Formats a share as a percentage; "–" if the whole is 0.

    >>> percent(1, 8), percent(1, 0), percent(1, 5000)
    ('12.5 %', '–', '<0.1 %')
    """
    if whole <= 0:
        return "–"
    share = 100 * part / whole
    return "<0.1 %" if 0 < share < 0.1 else f"{share:.1f} %"


def duration(seconds: float) -> str:
    """Formats a duration with the two units that matter.

    >>> duration(0.42), duration(83), duration(4350)
    ('0.4 s', '1 min 23 s', '1 h 12 min')
    """
    if not math.isfinite(seconds):
        return "–"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def count_of(count: int, noun: str, ending: str = "s") -> str:
    """Formats a count with its noun, which takes `ending` in the plural.

    >>> count_of(1, "pair"), count_of(1200, "pair")
    ('1 pair', '1,200 pairs')
    """
    return f"{count:,} {noun}{'' if count == 1 else ending}"
