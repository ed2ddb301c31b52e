"""Line charts: points in the right places, any numbers, noisy and long lines."""

from __future__ import annotations

import math
import re

import pytest
from helpers_report import Page

from seva_jax.report import Curve, Series, charts, document


def chart(*series: Series) -> str:
    return charts.line_chart(Curve("title", "step", "loss", series))


@pytest.mark.parametrize(
    ("xs", "ys"),
    [
        ((), ()),
        ((1.0,), (2.0,)),
        ((1.0, 2.0), (3.0, 3.0)),
        ((0.0, 1.0), (0.0, 0.0)),
        ((0.0, 1.0, 2.0), (1.0, math.nan, 2.0)),
        ((0.0, 1.0), (math.inf, -math.inf)),
        ((0.0, 1.0), (-1e299, 1e299)),
        ((0.0, 1.0), (0.0, 1e-300)),
        ((1e9, 1e9 + 1), (1e-5, 2e-5)),
    ],
)
def test_charts_take_any_numbers(xs, ys):
    text = chart(Series("one", xs, ys))
    assert not Page(text).open
    # "nan" and "inf" would be swallowed by browsers without a word.
    for attrs in (attrs for _, attrs in Page(text).tags):
        for name in ("d", "cx", "cy", "x", "y", "transform"):
            assert not re.search(r"nan|inf", attrs.get(name, "")), attrs
    if not any(map(math.isfinite, ys)):
        assert "No values were recorded." in text


def test_chart_puts_values_where_the_axes_say():
    text = chart(Series("one", (0.0, 10.0), (0.0, 1.0)))
    bottom, right = charts.HEIGHT - charts.BOTTOM, charts.WIDTH - charts.RIGHT
    assert f'd="M{charts.LEFT}.0 {bottom}.0L{right}.0 {charts.TOP}.0"' in text
    assert "<title>one 1 at 10</title>" in text
    labels = re.findall(r'<text class="end"[^>]*>([^<]*)</text>', text)
    assert labels == ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]


def test_values_that_are_not_finite_are_counted():
    text = chart(Series("one", (0, 1, 2, 3), (1.0, math.nan, math.inf, 2.0)))
    assert "one: 2 values were not finite and are not drawn." in text


def test_only_noisy_lines_are_smoothed_and_the_caption_says_so():
    steps = tuple(range(200))
    noisy = Series("noisy", steps, tuple(math.sin(step * 12.9) for step in steps))
    smooth = Series("smooth", steps, tuple(step / 200 for step in steps))
    assert "mean over 10 neighbouring" in chart(noisy)
    assert "faint" in chart(noisy)
    assert "faint" not in chart(smooth)
    assert "<figcaption>" not in chart(smooth)


def test_long_lines_keep_their_extremes():
    ys = [0.0] * 10_000
    ys[5_003] = 7.0
    text = chart(Series("one", tuple(range(10_000)), tuple(ys)))
    assert len(text) < 20_000
    drawn = [float(y) for y in re.findall(r"L[\d.]+ ([\d.]+)", text)]
    assert min(drawn) < charts.HEIGHT / 2


def test_lines_differ_in_more_than_colour():
    rules = [re.search(rf"\.s{i} \{{([^}}]*)\}}", document.CSS) for i in range(charts.NUM_STYLES)]
    dashes = [re.search(r"stroke-dasharray: ([^;]*)", rule[1]) for rule in rules if rule]
    assert len({dash and dash[1] for dash in dashes}) == charts.NUM_STYLES
