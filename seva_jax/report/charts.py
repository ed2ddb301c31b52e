"""Charts as inline SVG: training curves, difference strips, margin strips, stacked bars.

What lives here: scales, ticks and SVG. Colours are CSS classes (`style.css`), so the same drawing
fits the light and the dark theme; lines also differ in dashes, results also in words. What does
not: the tables and cards around the charts. Read next: `page.py`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

from seva_jax.report.data import Curve, EvalRow, Series
from seva_jax.report.markup import MINUS, esc, number

WIDTH, HEIGHT = 520, 290
LEFT, RIGHT, TOP, BOTTOM = 74, 14, 12, 50
NUM_STYLES = 6  # colours and dash patterns in style.css
MAX_DRAWN = 400  # points of a line; more cannot be distinguished in 520 px
MAX_HOVER = 40  # points with a hover title
SMOOTH_FROM = 60  # noisy lines with more points than this get a running mean
NOISE = 0.01  # share of the chart's height that a line must jitter by to count as noisy

Point = tuple[float, float]
Place = Callable[[Point], Point]  # from values to SVG units


def line_chart(curve: Curve) -> str:
    """Returns a chart with axes, ticks, hover titles and a legend, as an HTML `<figure>`.

    A noisy series of more than 60 points is drawn faintly, with its running mean over a twentieth
    of the points on top; the caption says so. Values that are not finite are left out and counted.
    """
    drawn = [_finite(series) for series in curve.series]
    xs = [x for points in drawn for x, _ in points]
    ys = [y for points in drawn for _, y in points]
    head = f"<h3>{esc(curve.title)}</h3>"
    if not xs:
        return f'<figure class="chart">{head}<p class="empty">No values were recorded.</p></figure>'
    # A step axis should end where the training does, so only the y axis grows to round numbers.
    x_low, x_high = _widen(min(xs), max(xs))
    if 0 < x_low < 0.1 * x_high:
        x_low = 0.0
    x_ticks = [tick for tick in ticks(x_low, x_high, 6) if x_low <= tick <= x_high]
    y_ticks = ticks(*_widen(min(ys), max(ys)), 5)
    y_low, y_high = y_ticks[0], y_ticks[-1]

    def place(point: Point) -> Point:
        x = LEFT + (point[0] - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT)
        y = HEIGHT - BOTTOM - (point[1] - y_low) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM)
        return x, y

    parts = [_axes(curve, x_ticks, y_ticks, place)]
    notes, labels = [], []
    windows: set[int] = set()
    for index, (series, points) in enumerate(zip(curve.series, drawn, strict=True)):
        style = f"s{index % NUM_STYLES}"
        missing = len(series.xs) - len(points)
        if missing:
            notes.append(f"{series.label}: {missing} values were not finite and are not drawn.")
        if not points:
            continue
        labels.append(f"{series.label} from {_value(points[0][1])} to {_value(points[-1][1])}")
        window = len(points) // 20
        smooth = running_mean(points, window)
        if len(points) > SMOOTH_FROM and _roughness(points, smooth) > NOISE * (y_high - y_low):
            windows.add(window)
            parts.append(_line(points, place, f"line faint {style}"))
            points = smooth
        parts.append(_line(points, place, f"line {style}"))
        parts.append(_hover(series.label, points, place, style))
    if windows:
        spans = " or ".join(str(window) for window in sorted(windows))
        notes.insert(0, f"Faint: every logged value. Strong: mean over {spans} neighbouring ones.")
    label = f"Line chart of {curve.y_label} against {curve.x_label}: {'; '.join(labels)}."
    return (
        f'<figure class="chart">{head}{_legend(curve.series)}'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{esc(label)}">'
        f"{''.join(parts)}</svg>"
        + (f"<figcaption>{esc(' '.join(notes))}</figcaption>" if notes else "")
        + "</figure>"
    )


def ticks(low: float, high: float, most: int) -> list[float]:
    """Returns round numbers, 1, 2 or 5 times a power of ten apart, that cover `low` to `high`.

    >>> ticks(0.0, 0.93, 5)
    [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    """
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    digits = max(0, 1 - math.floor(math.log10(step)))
    return [round(index * step, digits) for index in range(first, last + 1)]


def running_mean(points: Sequence[Point], window: int) -> list[Point]:
    """Returns the mean of y over about `window` points around each, fewer towards both ends."""
    half = window // 2
    sums = list(itertools.accumulate((y for _, y in points), initial=0.0))
    means = []
    for index, (x, _) in enumerate(points):
        low, high = max(0, index - half), min(len(points), index + half + 1)
        means.append((x, (sums[high] - sums[low]) / (high - low)))
    return means


def row_extent(row: EvalRow) -> float:
    """Returns the extent that a strip needs for the row's difference; 0 if it was not measured."""
    values = (row.difference.value, row.difference.low, row.difference.high)
    return max((abs(value) for value in values if math.isfinite(value)), default=0.0)


def round_up(value: float) -> float:
    """Returns the next round number, for the ends of a strip; 1 for 0.

    >>> round_up(0.0), round_up(0.043), round_up(7.2)
    (1.0, 0.05, 8.0)
    """
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    factors = (1, 1.5, 2, 3, 4, 5, 6, 8, 10)
    factor = next(factor for factor in factors if factor * power >= value * (1 - 1e-9))
    return float(f"{factor * power:.6g}")


def difference_strip(row: EvalRow, extent: float, verdict: str, text: str) -> str:
    """Returns a dot with its interval on an axis from `-extent` to `extent`, as SVG.

    Args:
        row: the row with the difference; the side of its `better` is tinted.
        extent: ends of the axis.
        verdict: CSS class of the dot and the interval.
        text: the same in words, for hovering and screen readers.
    """
    tint = {"higher": 110, "lower": 0}.get(row.better)
    parts = [f"<title>{esc(text)}</title>"]
    if tint is not None:
        parts.append(f'<rect class="tint" x="{tint}" y="0" width="110" height="26" rx="3"/>')
    parts.append('<path class="zero" d="M110 0V26"/>')
    difference = row.difference
    if difference.measured:
        low, high = _on_strip(difference.low, extent), _on_strip(difference.high, extent)
        middle = _on_strip(difference.value, extent)
        parts.append(
            f'<path class="range {verdict}" d="M{low:.1f} 8V18M{low:.1f} 13H{high:.1f}'
            f'M{high:.1f} 8V18"/><circle class="dot {verdict}" cx="{middle:.1f}" cy="13" r="4.5"/>'
        )
    return (
        '<svg class="strip" viewBox="0 0 220 26" role="img" '
        f'aria-label="{esc(text)}">{"".join(parts)}</svg>'
    )


def strip_ends(extent: float, style: str = "") -> str:
    """Returns the scale of a strip, from `-extent` to `extent`, as HTML to put below it.

    The charts say the same in words, so screen readers skip it.
    """
    return (
        f'<span class="ends {style}" aria-hidden="true"><span>{end_label(-extent)}</span>'
        f"<span>0</span><span>{end_label(extent)}</span></span>"
    )


def margin_strip(before: float, after: float, extent: float) -> str:
    """Returns an arrow from one margin to the other on an axis with 0 in the middle and a scale.

    It only repeats the two numbers printed next to it, so screen readers skip it.
    """
    drawn = '<path class="axis" d="M8 9H212M8 5V13M212 5V13"/><path class="zero" d="M110 1V17"/>'
    if math.isfinite(before) and math.isfinite(after):
        side = "better" if after > before else "worse" if after < before else "unclear"
        start, end = _on_strip(before, extent), _on_strip(after, extent)
        drawn += (
            f'<path class="move {side}" d="M{start:.1f} 9H{end:.1f}"/>'
            f'<circle class="from" cx="{start:.1f}" cy="9" r="4"/>'
            f'<circle class="dot {side}" cx="{end:.1f}" cy="9" r="4.5"/>'
        )
    return (
        f'<svg class="margin" viewBox="0 0 220 18" aria-hidden="true">{drawn}</svg>'
        + strip_ends(extent, "own")
    )


def stacked_bar(parts: Sequence[tuple[str, float]], title: str) -> str:
    """Returns a bar of coloured parts with a legend, as an HTML `<figure>`.

    Args:
        parts: names and shares, which add up to 1; at most `NUM_STYLES` of them.
        title: what the bar shows, for screen readers.
    """
    drawn, legend, left = "", "", 0.0
    for index, (name, share) in enumerate(parts):
        words = esc(f"{name} {100 * share:.1f} %")
        drawn += (
            f'<rect class="part p{index}" x="{left * WIDTH:.2f}" y="0" '
            f'width="{share * WIDTH:.2f}" height="24"><title>{words}</title></rect>'
        )
        legend += (
            f'<li><svg viewBox="0 0 30 8" aria-hidden="true"><rect class="part p{index}" '
            f'width="30" height="8"/></svg>{words}</li>'
        )
        left += share
    return (
        f'<figure class="chart"><svg viewBox="0 0 {WIDTH} 24" role="img" '
        f'aria-label="{esc(title)}">{drawn}</svg><ul class="legend">{legend}</ul></figure>'
    )


def end_label(value: float) -> str:
    """Returns the end of a strip as text, `0.05` and not `0.050`."""
    return f"{MINUS if value < 0 else '+' if value > 0 else ''}{abs(value):g}"


def _on_strip(value: float, extent: float) -> float:
    """Returns the x of a value on a strip 220 wide, with 0 in the middle and a margin of 8."""
    return 110 + max(-1.0, min(1.0, value / extent)) * 102


def _finite(series: Series) -> list[Point]:
    points = zip(series.xs, series.ys, strict=True)
    # Beyond 1e300 the width of the axis would overflow.
    return [(float(x), float(y)) for x, y in points if abs(x) < 1e300 and abs(y) < 1e300]


def _widen(low: float, high: float) -> tuple[float, float]:
    """Returns the range, or a wider one around it if it is a single value."""
    if high - low > max(1e-12 * max(abs(low), abs(high)), 1e-290):
        return low, high
    pad = abs(low) / 2 or 1.0
    return low - pad, high + pad


def _value(value: float) -> str:
    """Formats a value with three significant digits."""
    text = f"{value:,.0f}" if 1000 <= abs(value) < 1e9 else f"{value:.3g}"
    return text.replace("-", MINUS).replace(f"e{MINUS}0", f"e{MINUS}").replace("e+0", "e")


def _tick_labels(values: Sequence[float]) -> list[str]:
    """Formats the labels of neighbouring ticks with the decimals that their step needs."""
    step = values[1] - values[0] if len(values) > 1 else abs(values[0]) or 1.0
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    if decimals > 4 or max(abs(value) for value in values) >= 1e7:
        return [_value(value) for value in values]
    return [number(value, decimals) for value in values]


def _axes(curve: Curve, x_ticks: list[float], y_ticks: list[float], place: Place) -> str:
    """Draws grid, tick labels and axis names."""
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    parts = []
    for tick, text in zip(y_ticks, _tick_labels(y_ticks), strict=True):
        y = place((0.0, tick))[1]
        style = "grid zero" if tick == 0 else "grid"
        parts.append(
            f'<path class="{style}" d="M{LEFT} {y:.1f}H{right}"/>'
            f'<text class="end" x="{LEFT - 8}" y="{y + 4:.1f}">{text}</text>'
        )
    for tick, text in zip(x_ticks, _tick_labels(x_ticks), strict=True):
        x = place((tick, 0.0))[0]
        parts.append(
            f'<path class="grid" d="M{x:.1f} {bottom}v5"/>'
            f'<text class="mid" x="{x:.1f}" y="{bottom + 19}">{text}</text>'
        )
    middle_y = (TOP + bottom) / 2
    parts.append(
        f'<path class="axis" d="M{LEFT} {bottom}H{right}"/>'
        f'<text class="mid name" x="{(LEFT + right) / 2:g}" y="{HEIGHT - 8}">'
        f"{esc(curve.x_label)}</text>"
        f'<text class="mid name" transform="translate(13 {middle_y:g}) rotate(-90)">'
        f"{esc(curve.y_label)}</text>"
    )
    return "".join(parts)


def _thin(points: Sequence[Point], most: int) -> list[Point]:
    """Thins a line to about `most` points, keeping the lowest and highest of each stretch."""
    if len(points) <= most:
        return list(points)
    stretches = most // 2
    kept: set[int] = {0, len(points) - 1}
    for stretch in range(stretches):
        first, end = (s * len(points) // stretches for s in (stretch, stretch + 1))
        for extreme in (min, max):
            kept.add(extreme(range(first, end), key=lambda index: points[index][1]))
    return [points[index] for index in sorted(kept)]


def _roughness(points: Sequence[Point], smooth: Sequence[Point]) -> float:
    """Returns the mean distance of a line from its running mean."""
    distances = (abs(y - mean) for (_, y), (_, mean) in zip(points, smooth, strict=True))
    return sum(distances) / len(points)


def _line(points: Sequence[Point], place: Place, style: str) -> str:
    placed = [place(point) for point in _thin(points, MAX_DRAWN)]
    path = "L".join(f"{x:.1f} {y:.1f}" for x, y in placed)
    # A single point has no length; a round cap draws it as a dot.
    return f'<path class="{style}" d="M{path}{"h0" if len(placed) == 1 else ""}"/>'


def _hover(label: str, points: Sequence[Point], place: Place, style: str) -> str:
    """Draws circles that appear under the pointer, each with its value as title."""
    count = min(len(points), MAX_HOVER)
    chosen = sorted({round(i * (len(points) - 1) / max(count - 1, 1)) for i in range(count)})
    parts = []
    for x_value, y_value in (points[index] for index in chosen):
        x, y = place((x_value, y_value))
        parts.append(
            f'<circle class="point {style}" cx="{x:.1f}" cy="{y:.1f}" r="6">'
            f"<title>{esc(f'{label} {_value(y_value)} at {_value(x_value)}'.strip())}</title>"
            "</circle>"
        )
    return "".join(parts)


def _legend(series: Sequence[Series]) -> str:
    items = [
        f'<li><svg viewBox="0 0 30 8" aria-hidden="true">'
        f'<path class="line s{index % NUM_STYLES}" d="M2 4H28"/></svg>{esc(one.label)}</li>'
        for index, one in enumerate(series)
        if one.label
    ]
    return f'<ul class="legend">{"".join(items)}</ul>' if items else ""
