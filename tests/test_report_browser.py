"""The pages in a real browser: console, filters, pictures, themes and sizes."""

from __future__ import annotations

import dataclasses

import pytest
from browser import CHROMIUM, browser
from helpers_report import photo_pairs, write_run

from seva_jax.report import ExampleCard, ReportData, write_report
from seva_jax.report.compare import compare
from seva_jax.report.figures import write_figures

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs chromium"),
]
NUM = 1000


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """Writes a page with 1,000 pairs and a few examples."""
    pairs = photo_pairs(NUM)
    odd = dataclasses.replace(pairs[7], question="Where is the <b>Zebra</b>?")
    examples = tuple(
        ExampleCard(str(i), pairs[i].clean, "q", "", "a", "b", verdict, evaluation)
        for i, (verdict, evaluation) in enumerate(
            [("better", "pope"), ("better", "gqa"), ("worse", "pope")]
        )
    )
    data = ReportData(
        "A run", "seed 0", pairs=(*pairs[:7], odd, *pairs[8:]), pairs_total=NUM, examples=examples,
        facts=(("objective", "DPO(" + "beta=0.1,very_long_name=1.0" * 4 + ")"),),
    )  # fmt: skip
    return write_report(data, tmp_path_factory.mktemp("report") / "report.html")


@pytest.fixture(scope="module")
def stages(tmp_path_factory):
    """Writes the page of a run of several stages, with settings wider than a phone."""
    folder = tmp_path_factory.mktemp("stages")
    runs = [write_run(folder, "objective.setting_" * 9, number) for number in range(3)]
    return write_figures(compare(runs, "stage"), folder / "stages.html")


@pytest.fixture(scope="module")
def tab(tmp_path_factory):
    """Opens a browser."""
    with browser(tmp_path_factory.mktemp("profile")) as tab:
        yield tab


def shown(tab, section="pairs"):
    """Returns how many cards are visible, and checks that the page says so."""
    text = tab.run(f"document.querySelector('#{section} output').textContent")
    cards = f"[...document.querySelectorAll('#{section} .card')]"
    number = tab.run(f"{cards}.filter(card => card.checkVisibility()).length")
    total = tab.run(f"{cards}.length")
    assert text == f"{number:,} of {total:,} shown"
    return number


def choose(tab, control, value):
    """Sets one of the controls above the pairs, as a person would."""
    tab.run(
        f"(control => {{ control.{'checked' if value is True else 'value'} = "
        f"{'true' if value is True else repr(value)}; "
        "control.dispatchEvent(new Event('input', {bubbles: true})); })"
        f"(document.querySelector('#pairs {control}'))"
    )


def check_fit(tab, page, width, dark):
    """Opens a page and checks that nothing is wider, the theme is right and nothing is loaded."""
    tab.open(page, width, 844, dark)
    assert tab.run("document.documentElement.scrollWidth") <= width
    # What a box clips does not widen the page; a box with a scroll bar may.
    boxes = "[...document.querySelectorAll('dt, dd, p, h1, h2, h3, td, input, select, img, .wide')]"
    ends = f"{boxes}.filter(e => !e.closest('.wide td')).map(e => e.getBoundingClientRect().right)"
    assert tab.run(f"Math.max(...{ends})") <= width
    background = tab.run("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, background[4:-1].split(","))) < 3 * 128) == dark
    loaded = "performance.getEntriesByType('resource').map(entry => entry.name.slice(0, 5))"
    assert set(tab.run(loaded)) <= {"data:"}


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1400, 390])
def test_stages_load_clean_and_fit(tab, stages, width, dark):
    check_fit(tab, stages, width, dark)
    assert tab.run("document.querySelector('h1').textContent") == "3 stages compared"
    assert tab.run("document.querySelectorAll('svg .line').length") >= 3 * 4
    if width == 390:  # what is cut off is reached from the keyboard
        wide = "document.querySelector('#settings .wide')"
        assert tab.run(f"{wide}.scrollWidth > {wide}.clientWidth")
        tab.run(f"{wide}.focus()")
        tab.press("ArrowRight", 39)
        moved = f"new Promise(done => setTimeout(() => done({wide}.scrollLeft), 500))"
        assert tab.run(moved) > 0
    assert not tab.errors


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1400, 390])
def test_page_loads_clean_and_fits(tab, page, width, dark):
    assert page.stat().st_size < 15_000_000
    check_fit(tab, page, width, dark)
    # Pictures in sight are decoded, those far below wait.
    tab.run("document.querySelector('#pairs .cards').scrollIntoView()")
    images = "[...document.querySelectorAll('#pairs img')]"
    tab.run(f"{images}[0].decode().then(() => true)")
    assert not tab.run(f"{images}.at(-1).complete")
    assert not tab.errors


def test_only_what_is_near_the_screen_is_drawn(tab, page):
    """The browser lays out only cards near the screen, so a thousand pairs scroll well."""
    tab.open(page)
    drawn = (
        "[...document.querySelectorAll('#pairs .card .pictures')]"
        ".map(inside => inside.checkVisibility({contentVisibilityAuto: true}))"
    )
    assert not tab.run(f"{drawn}.at(-1)")
    tab.run("document.querySelector('#pairs .card:last-of-type').scrollIntoView()")
    assert tab.run(f"new Promise(done => setTimeout(() => done({drawn}.at(-1)), 500))")
    assert 0 < tab.run(f"{drawn}.filter(x => x).length") < NUM / 10


def test_filters_narrow_and_clear(tab, page):
    tab.open(page)
    assert shown(tab) == NUM
    assert shown(tab, "examples") == 3
    choose(tab, "[data-facet=move][value=down]", True)
    assert shown(tab) == sum(i % 3 == 0 for i in range(NUM))
    corruption = tab.run("document.querySelector('#pairs option[data-facet=corruption]').value")
    choose(tab, "select:has([data-facet=corruption])", corruption)  # noise: the first one seen
    both = sum(i % 3 == 0 and i % 4 != 3 for i in range(NUM))
    assert shown(tab) == both
    choose(tab, "select:has([data-facet=length])", "3")  # long answers: the noised ones
    assert shown(tab) == both
    choose(tab, "select:has([data-facet=length])", "0")
    assert shown(tab) == 0
    tab.run("document.querySelector('#pairs form').reset(); new Promise(r => setTimeout(r, 50))")
    assert shown(tab) == NUM
    choose(tab, "select:has([data-facet=difference])", "1")  # one of three words
    assert shown(tab) == NUM // 4
    choose(tab, "[type=search]", "zebra WHERE")
    assert shown(tab) == 1
    assert shown(tab, "examples") == 3  # a gallery has its own filters
    choose(tab, "[type=search]", "<b>zebra </b> .* nothing")
    assert shown(tab) == 0
    assert not tab.errors


def test_pictures_enlarge_by_keyboard(tab, page):
    tab.open(page, 1400, 900)
    opened = "document.querySelector('#zoom').open"
    source = "document.querySelector('#zoom img').src"
    tab.run("document.querySelector('#pairs .zoom').focus({focusVisible: true})")
    tab.press("Enter", 13)
    assert tab.run(opened)
    caption = "document.querySelector('#zoom p').textContent"
    assert tab.run(caption) == "Clean, for: Describe this image in detail."
    first = tab.run(source)
    tab.press("ArrowRight", 39)
    assert tab.run(caption).startswith("Corrupted: DiffusionNoise(step=500), for: Describe")
    assert tab.run(source) != first
    tab.press("ArrowLeft", 37)
    assert tab.run(source) == first
    large, small = (
        tab.run(f"document.querySelector('{one} img').getBoundingClientRect().height")
        for one in ("#zoom", "#pairs .zoom")
    )
    assert large > 2 * small
    tab.press("ArrowRight", 39)
    tab.press("Escape", 27)
    assert not tab.run(opened)
    tab.run("new Promise(done => setTimeout(done, 100))")  # its close event comes a little later
    assert tab.run("document.activeElement === document.querySelectorAll('#pairs .zoom')[1]")
    assert not tab.errors


def test_without_scripts_everything_is_there(tab, page):
    tab.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        tab.open(page)
        assert tab.run("document.querySelectorAll('.card').length") == NUM + 3
        assert not tab.run("[...document.querySelectorAll('form')].some(f => f.checkVisibility())")
        assert tab.run("[...document.querySelectorAll('.zoom')].every(b => b.disabled)")
    finally:
        tab.call("Emulation.setScriptExecutionDisabled", value=False)
