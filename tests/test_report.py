"""The report page is safe, accessible, right and small. Other files test its data."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import io
import itertools
import math
import re

import numpy as np
import pytest
from helpers_report import PAYLOADS, Page, full, image_HWC, photo_HWC, photo_pairs, row
from PIL import Image

from seva_jax.report import (
    Drop,
    ExampleCard,
    PairCard,
    ReportData,
    Series,
    charts,
    document,
    pictures,
    render,
    results_table,
    write_report,
)
from seva_jax.types import DataError

# All the page is made of. Nothing here can load anything; the only script is the page's own.
TAGS = re.compile(
    "html|head|meta|title|link|style|body|header|main|footer|section|nav|article|figure|figcaption"
    "|h1|h2|h3|p|ul|li|dl|dt|dd|div|span|b|small|a|mark|del|img|svg|path|circle|rect|text|table"
    "|caption|thead|tbody|tr|th|td|fieldset|legend|label|input|details|summary|form|select|option"
    "|output|button|script|wbr|code"
)


def text_fields(value: object) -> int:
    """Returns the number of texts in a value that a run could have written."""
    if isinstance(value, str):
        return 1
    if dataclasses.is_dataclass(value):
        fixed = ("better", "verdict")
        names = [field.name for field in dataclasses.fields(value) if field.name not in fixed]
        return sum(text_fields(getattr(value, name)) for name in names)
    return sum(map(text_fields, value)) if isinstance(value, tuple) else 0


# Safety


@pytest.mark.parametrize("payload", PAYLOADS)
def test_text_is_never_markup(payload):
    parsed = Page(render(full(payload)))
    assert not parsed.open
    assert not [tag for tag, _ in parsed.tags if not TAGS.fullmatch(tag)]
    assert parsed.shape() == Page(render(full())).shape()
    for tag, attrs in parsed.tags:
        assert not [name for name in attrs if name.startswith("on")]
        assert set(attrs).isdisjoint({"srcdoc", "action", "formaction", "srcset", "xlink:href"})
        assert re.fullmatch(r"width:[\d.]+%", attrs.get("style", "width:0%"))
        if tag == "a":
            assert re.fullmatch(r"#[a-z]+", attrs["href"])
    assert [attrs["href"] for attrs in parsed.all("link")] == ["data:,"]
    sources = [attrs["src"] for attrs in parsed.all("img")]
    assert len(sources) == 8
    assert all(re.match(r"data:image/(png|jpeg);base64,[\w+/=]+$", source) for source in sources)
    # Escaping must not lose or double anything: people read exactly what the run wrote. Texts
    # of chart axes and curves repeat in labels, which are attributes.
    assert parsed.text.count(payload) >= text_fields(full()) - 4


def test_control_characters_and_lone_surrogates_are_replaced():
    # A picture's place is marked with NUL while the page is put together.
    data = full("\x000\x00\x1b[31m\ud800")
    text = render(data)
    assert text.count("data:image") == len(Page(text).all("img")) == 8
    assert "\ufffd0\ufffd\ufffd[31m\ufffd" in text
    assert not re.search(r"[\x00-\x08\x0b-\x1f]", text)
    text.encode("utf-8")


def test_policy_forbids_other_scripts_and_network():
    text = render(full())
    policy = Page(text).all("meta")[1]
    assert policy["http-equiv"] == "Content-Security-Policy"
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy["content"] == (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'"
    )
    assert text.index("Content-Security-Policy") < text.index("<style>")
    markup = re.sub(r"base64,[^\"]+", "", text).replace(script, "")
    assert not re.search(r"https?:|//|url\(|@import", markup)
    assert not re.search(r"https?:|url\(|import|fetch|XMLHttp|innerHTML|eval", script)


# Content


def test_what_is_empty_has_no_section():
    """Nor a link to one; each section appears as soon as it has content."""
    parsed = Page(render(ReportData("Nothing yet", "")))
    assert not parsed.open
    assert not [*parsed.all("section"), *parsed.all("a"), *parsed.all("img"), *parsed.all("table")]
    everything = Page(render(full()))
    sections = [attrs["id"] for attrs in everything.all("section")]
    assert sections == [
        "verdict", "results", "own", "examples", "glance", "training", "profiles", "funnel",
        "pairs", "config", "stages",
    ]  # fmt: skip
    assert [attrs["href"] for attrs in everything.all("a")] == [f"#{x}" for x in sections[1:]]
    without = dataclasses.replace(full(), table=(), single=(), examples=(), curves=())
    left = [attrs["id"] for attrs in Page(render(without)).all("section")]
    assert left == [x for x in sections if x not in ("results", "examples", "training")]


def test_the_verdict_and_answers_come_first():
    """Without evaluations, the first thing below the verdict is what the answers became."""
    data = dataclasses.replace(full(), table=(), single=(), examples=())
    text = Page(render(data)).text
    order = ["Did it help?", "the sentence words", "the caveat words", "Your prompts, before and"]
    places = [text.index(words, text.index(order[0])) for words in order]
    assert places == sorted(places)
    assert text.rindex("The run at a glance") > places[-1]


def test_repeated_numbers_are_one_row_and_categories_are_folded():
    table = (
        row("higher", 0.01, 0.03, metric="accuracy"),
        dataclasses.replace(row("higher", 0.01, 0.04, metric="f1"), repeats=("words: f1",)),
        row("higher", 0.01, 0.03, metric="random/accuracy"),
        row("lower", 0.01, 0.03, metric="dogs/errors", evaluation="only by category"),
    )
    text = render(ReportData("t", "", table=table))
    open_, _, folded = text.partition("<details>")
    folded, _, after = folded.partition("</details>")
    assert "also: words: f1" in open_.replace("<wbr>", "")
    assert "dogs/errors" in open_
    assert "<summary>1 metric of single categories</summary>" in folded
    assert "random/accuracy" in folded
    assert "random/accuracy" not in open_ + after


def test_settings_at_their_defaults_are_folded():
    data = ReportData("t", "", changed=(("optim.lr", "3e-4"),), config=(("seed", "42"),))
    open_, _, folded = render(data).partition("<details>")
    assert "optim.lr" in open_
    assert "seed" not in open_.partition('id="config"')[2]
    assert "seed" in folded
    assert "<summary>Show 1 setting at the default</summary>" in folded


def test_pictures_that_are_missing_are_said_to_be():
    pair = dataclasses.replace(full().pairs[0], clean=None, corrupted=(), margin_after=math.nan)
    example = dataclasses.replace(full().examples[0], image=None)
    parsed = Page(render(ReportData("t", "", pairs=(pair,), examples=(example,), pairs_total=1)))
    assert parsed.text.count("picture missing") == 2
    assert not parsed.all("img")
    assert "Reward margin 0.00 before, – after" in parsed.text
    assert "The margin was measured for 0 of them and rose in 0." in parsed.text


def test_margins_have_a_scale():
    """Its ends are the next round number above the largest margin of the page."""
    parsed = render(full())
    ends = re.findall(
        r'class="ends own"[^>]*>(.*?)</span></span>', parsed.partition('id="pairs"')[2]
    )
    assert len(ends) == 2
    assert all(re.findall(r">([^<>]+)", end) == ["−1.5", "0", "+1.5"] for end in ends)


def test_what_was_rejected_is_not_struck_through():
    assert "line-through" not in document.CSS
    assert re.search(r"\bdel \{[^}]*underline dashed", document.CSS)


def test_same_data_gives_same_page():
    assert render(full()) == render(full())


@pytest.mark.parametrize(
    ("better", "low", "high", "expected"),
    [
        ("higher", 0.01, 0.03, ("better", "better")),
        ("higher", -0.03, -0.01, ("worse", "worse")),
        ("lower", -0.03, -0.01, ("better", "better")),
        ("lower", 0.01, 0.03, ("worse", "worse")),
        ("higher", -0.01, 0.03, ("unclear", "no clear change")),
        ("higher", 0.0, 0.03, ("unclear", "no clear change")),
        ("neither", 0.01, 0.03, ("moved", "higher")),
        ("neither", -0.03, -0.01, ("moved", "lower")),
        ("higher", math.nan, 0.03, ("unclear", "not measured")),
    ],
)
def test_verdict_needs_an_interval_without_zero(better, low, high, expected):
    one = row(better, low, high)
    assert results_table.verdict_of(one) == expected
    text = render(ReportData("t", "", table=(one,)))
    assert expected[1] in Page(text).text
    colours = re.findall(r'class="(?:dot|range) (\w+)"', text)
    assert set(colours) <= {expected[0]}
    assert bool(colours) == math.isfinite(low)


def test_near_end_of_an_interval_is_not_rounded_to_zero():
    text = Page(render(ReportData("t", "", table=(row("higher", 0.0001, 0.0259),)))).text
    assert "[+0.0001, +0.0259]" in text


def test_rates_share_an_axis_and_other_units_have_their_own():
    table = (
        row("higher", 0.01, 0.04, metric="first"),
        row("higher", 0.01, 0.02, metric="second"),
        row("neither", 0.2, 0.7, base=12.0, metric="words"),
    )
    labels = [
        attrs["aria-label"]
        for attrs in Page(render(ReportData("t", "", table=table))).all("svg")
        if attrs["class"] == "strip"
    ]
    assert [label.split("; ")[-1] for label in labels] == [
        "axis from −0.04 to +0.04", "axis from −0.04 to +0.04", "axis from −0.8 to +0.8",
    ]  # fmt: skip


def test_examples_that_changed_come_first():
    verdicts = ("same", "changed", "worse", "better", "same", "better")
    cards = tuple(
        ExampleCard(str(i), image_HWC(), "q", "", "a", "b", verdict)
        for i, verdict in enumerate(verdicts)
    )
    text = render(ReportData("t", "", examples=cards))
    order = re.findall(r'<article class="card (\w+)" ', text)
    assert order == ["better", "better", "worse", "changed", "same", "same"]
    assert re.findall(r'<p class="id">(\d)</p>', text) == ["3", "5", "2", "1", "0", "4"]


def test_filters_know_every_value_their_cards_have():
    pair = dataclasses.replace(full().pairs[0], corruptions=("noise",))
    other = dataclasses.replace(
        full().pairs[1], corruptions=("blur", "noise"), chosen="word " * 70, rejected=("x", "y")
    )
    data = dataclasses.replace(full(), pairs=(pair, other, other))
    parsed = Page(render(data))
    cards = [attrs for attrs in parsed.all("article") if "data-move" in attrs]
    assert [attrs["data-corruption"] for attrs in cards] == ["0", "1 0", "1 0"]
    assert [attrs["data-length"] for attrs in cards] == ["0", "3", "3"]
    assert [attrs["data-difference"] for attrs in cards] == ["0", "2", "2"]
    offered = {
        (attrs["data-facet"], attrs["value"])
        for attrs in (*parsed.all("option"), *parsed.all("input"))
        if attrs.get("value")
    }
    held = {
        (name.removeprefix("data-"), value)
        for attrs in parsed.all("article")
        for name, values in attrs.items()
        if name.startswith("data-")
        for value in values.split()
    }
    # A menu of one entry filters nothing.
    assert offered == held - {("evaluation", "0"), ("seen", "0")}
    for text in ("noise (3)", "blur (2)", "over 60 words (2)", "Margin rose 1"):
        assert text in parsed.text


def test_funnel_adds_up_and_bars_have_right_lengths():
    data = ReportData("t", "", funnel=(Drop("equal", 600), Drop("empty", 0)), pairs_total=200)
    parsed = Page(render(data))
    assert "800 in all" in parsed.text
    assert "25.0 %" in parsed.text
    assert "75.0 %" in parsed.text
    widths = [attrs["style"] for attrs in parsed.all("span") if "style" in attrs]
    assert widths == ["width:33.33%", "width:100.00%", "width:0.00%"]


def test_margins_are_counted_and_explained():
    text = Page(render(full())).text
    assert "Showing all 2 pairs trained on. The margin rose in 1 of them." in text
    assert "it starts at 0" in text
    assert "Reward margin 0.00 before, +1.50 after" in text
    moved = dataclasses.replace(full().pairs[0], margin_before=0.2)
    text = Page(render(ReportData("t", "", pairs=(moved,), pairs_total=9))).text
    assert "Showing 1 of the 9 pairs trained on." in text
    assert "it starts at 0" not in text


# Pictures and size


def test_a_thousand_photo_pairs_stay_under_15_mb(monkeypatch):
    # 200 pairs in a fifth of the size; test_report_browser.py has all thousand.
    monkeypatch.setattr(pictures, "PAGE_BYTES", pictures.PAGE_BYTES // 5)
    text = render(ReportData("t", "", pairs=photo_pairs(200), pairs_total=200))
    assert len(text.encode()) < 15_000_000 / 5
    urls = [attrs["src"] for attrs in Page(text).all("img")]
    assert len(urls) == 400
    assert {decoded(url).size for url in urls} == {(144, 144)}


def decoded(url: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))


def test_small_images_are_exact_and_larger_ones_are_thumbnails():
    thumbnails = pictures.Thumbnails(1_000_000)
    assert thumbnails.data_url(image_HWC(0, 64)).startswith("data:image/png")
    np.testing.assert_array_equal(
        np.asarray(decoded(thumbnails.data_url(image_HWC(0, 64)))), image_HWC(0, 64)
    )
    wide_HWC = photo_HWC(np.random.default_rng(0))[:168]
    url = thumbnails.data_url(wide_HWC)
    assert url.startswith("data:image/jpeg")
    assert decoded(url).size == (336, 168)
    assert len(url) <= pictures.MAX_IMAGE_CHARS
    # Without room even for the smallest thumbnail there still is a picture.
    assert decoded(pictures.Thumbnails(-5).data_url(wide_HWC)).size == (64, 32)


def test_only_small_images_show_their_pixels():
    classes = [attrs.get("class") for attrs in Page(render(full())).all("img")]
    assert sorted(classes, key=str) == [None, *["tiny"] * 7]
    assert re.search(r"\.tiny \{[^}]*image-rendering: pixelated", document.CSS)


# Accessibility


def test_images_charts_tables_and_headings_are_described():
    parsed = Page(render(full()))
    assert all(attrs["alt"].strip() for attrs in parsed.all("img"))
    assert len({attrs["alt"] for attrs in parsed.all("img")}) > 3
    for attrs in parsed.all("svg"):
        assert attrs.get("aria-label") or attrs.get("aria-hidden") == "true"
    assert all(attrs.get("scope") in ("col", "row", "rowgroup") for attrs in parsed.all("th"))
    assert len(parsed.all("caption")) == len(parsed.all("table")) == 8
    levels = [int(tag[1]) for tag, _ in parsed.tags if re.fullmatch(r"h\d", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    assert parsed.all("html")[0]["lang"] == "en"
    ids = [attrs["id"] for _, attrs in parsed.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert {attrs["href"][1:] for attrs in parsed.all("a")} <= set(ids)


def test_landmarks_and_stillness():
    tags = [tag for tag, _ in Page(render(full())).tags]
    assert [tags.count(one) for one in ("header", "nav", "main", "footer")] == [1] * 4
    searches = Page(render(full())).all("form")
    assert [(a["role"], a["aria-label"]) for a in searches] == [
        ("search", "Filter own"), ("search", "Filter examples"), ("search", "Filter pairs"),
    ]  # fmt: skip
    # Nothing moves, so there is nothing to stop for those who ask for reduced motion.
    assert not re.search(r"transition|animation|scroll-behavior", document.CSS)


def test_long_answers_scroll_and_take_focus():
    card = dataclasses.replace(full().pairs[0], chosen="word " * 200)
    parsed = Page(render(ReportData("t", "", pairs=(card,), pairs_total=1)))
    assert [attrs["aria-label"] for attrs in parsed.all("dd") if "tabindex" in attrs] == ["Chosen"]


def contrast(one: str, two: str) -> float:
    """Returns the contrast ratio of two #rrggbb colours (WCAG 2.2)."""

    def luminance(colour: str) -> float:
        parts = [int(colour[index : index + 2], 16) / 255 for index in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(one), luminance(two)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_contrast(theme):
    blocks = re.findall(r":root \{([^}]*)\}", document.CSS)
    assert len(blocks) == 2
    colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", blocks[theme]))
    for ground in ("page", "card", "sunken"):
        for ink in ("ink", "muted", "good", "bad", "moved"):
            assert contrast(colours[ink], colours[ground]) >= 4.5, (ink, ground)
    for ground in ("good-soft", "bad-soft"):
        for ink in ("ink", "muted"):
            assert contrast(colours[ink], colours[ground]) >= 4.5, (ink, ground)
    # Lines and dots need 3 : 1.
    for index in range(charts.NUM_STYLES):
        assert contrast(colours[f"s{index}"], colours["card"]) >= 3
    for line in ("axis", "good", "bad", "moved"):
        for ground in ("page", "card", "tint"):
            assert contrast(colours[line], colours[ground]) >= 3, (line, ground)


# Files and bad input


def test_write_report_replaces_in_one_step(tmp_path, monkeypatch):
    path = tmp_path / "run" / "report.html"
    assert write_report(ReportData("first", ""), path) == path
    assert "first" in path.read_text(encoding="utf-8")
    write_report(ReportData("second ✓ \ud800", ""), str(path))
    assert "second ✓ \ufffd" in path.read_text(encoding="utf-8")

    def fail(self, target):
        raise OSError("disk full")

    monkeypatch.setattr(type(path), "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_report(ReportData("third", ""), path)
    assert "second" in path.read_text(encoding="utf-8")
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((4, 4, 3), np.float32),
        np.zeros((4, 4), np.uint8),
        np.zeros((3, 4, 4), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
        "a.png",
    ],
)
def test_bad_images_are_named(image):
    with pytest.raises(DataError, match=r"pair 'p7', corrupted\[0\]: an image must be uint8"):
        PairCard("p7", "q", image_HWC(), (image,), "a", ("b",), 0.0, 0.0)
    with pytest.raises(DataError, match="example 'e7', image"):
        ExampleCard("e7", image, "q", "", "a", "b", "same")


def test_bad_choices_and_series_are_named():
    with pytest.raises(DataError, match=r"'loss': 2 xs but 1 ys"):
        Series("loss", (1, 2), (1,))
    with pytest.raises(DataError, match="row 'metric', better: 'up' is not one of higher, lower"):
        row("up", 0, 1)
    with pytest.raises(DataError, match="verdict: 'best' is not one of better, worse"):
        ExampleCard("e", image_HWC(), "q", "", "a", "b", "best")  # pyright: ignore


def test_given_answers_are_not_called_the_models_own():
    """Pairs made by others have no clean and corrupted images."""
    own, given = (render(dataclasses.replace(full(), given=x)) for x in (False, True))
    for words in ("corrupted pictures", "own answer on the clean image"):
        assert words in own
        assert words not in given
