"""Marking the words in which two answers differ."""

from __future__ import annotations

import numpy as np
import pytest
from helpers_report import Page

from seva_jax.report.diff import mark_differences


@pytest.mark.parametrize(
    ("chosen", "rejected", "expected"),
    [
        ("red", ("blue",), ("<mark>red</mark>", ("<del>blue</del>",))),
        ("Red", ("red",), ("Red", ("red",))),
        ("a  b", ("a b",), ("a  b", ("a b",))),
        ("a b c d", ("a d",), ("a <mark>b c</mark> d", ("a d",))),
        ("red.", ("red!",), ("red<mark>.</mark>", ("red<del>!</del>",))),
        ("", ("blue",), ("", ("<del>blue</del>",))),
        ("a b", ("a c", "x b"), ("<mark>a b</mark>", ("a <del>c</del>", "<del>x</del> b"))),
        ("a <b>", ("a",), ("a <mark>&lt;b&gt;</mark>", ("a",))),
        ("红色圆", ("蓝色圆",), ("<mark>红</mark>色圆", ("<del>蓝</del>色圆",))),
        ("don't stop ", ("don't go ",), ("don't <mark>stop</mark> ", ("don't <del>go</del> ",))),
    ],
)
def test_differences_are_marked_by_word(chosen, rejected, expected):
    expected = (expected[0].replace("'", "&#x27;"), tuple(expected[1]))
    expected = (expected[0], tuple(answer.replace("'", "&#x27;") for answer in expected[1]))
    assert mark_differences(chosen, rejected) == expected


def test_frequent_words_of_long_answers_are_compared_too():
    # difflib's default ignores words that make up more than 1 % of 200 or more.
    answer = "the cat and the dog " * 60
    assert mark_differences(answer, (answer + "sleep",)) == (answer, (answer + "<del>sleep</del>",))
    chosen, _ = mark_differences("one " + answer, ("two " + answer,))
    assert chosen == f"<mark>one</mark> {answer}"


def test_marking_keeps_every_character():
    rng = np.random.default_rng(0)
    words = ["a", "red", " ", "  ", "\n", ",", "circle", "&", "<", "it's", "_"]
    for _ in range(100):
        one, two = ("".join(rng.choice(words, rng.integers(0, 12))) for _ in range(2))
        chosen, (rejected,) = mark_differences(one, (two,))
        assert (Page(chosen).text, Page(rejected).text) == (one, two)
