"""From rollouts to comparisons: what is kept, and what is dropped for which reason."""

import collections
import types

import numpy as np
import pytest

from seva_jax.data.sources import PromptSet
from seva_jax.pairs import CorruptionPairs, PairBuilder
from seva_jax.types import DataError, Prompt, Rollout


def rollout(clean, *corrupted, id_="p"):
    """Makes a rollout with raw answers."""
    return Rollout(Prompt(id_, "What is it?", ("a.png",)), clean, corrupted)


def build(*rollouts, **options):
    """Returns comparisons as (answers, corruptions), and the drops."""
    comparisons, drops = CorruptionPairs(**options)(rollouts)
    return [(c.answers, c.corruptions) for c in comparisons], dict(drops)


def test_answers_that_differ_make_a_comparison():
    """The chosen one comes first, the whole prompt is kept, and the weight is 1."""
    source = rollout("A cat.", "A dog.")
    (comparison,), drops = CorruptionPairs()(iter([source]))
    assert comparison.prompt is source.prompt
    assert comparison.answers == ("A cat.", "A dog.")
    assert comparison.corruptions == (0,)
    assert comparison.weight == 1.0
    assert drops == collections.Counter()


@pytest.mark.parametrize(
    ("clean", "corrupted", "reason"),
    [
        ("A cat.", ["A cat."], "equal answers"),
        ("A cat.", ["A cat.", "A cat."], "equal answers"),
        ("A cat.", [" A cat.\n"], "equal answers"),  # after cleaning
        ("A cat.", ["A cat.</s>"], "equal answers"),
        ("A cat.", ["A\ncat."], "equal answers"),
        ("", ["A dog."], "empty chosen answer"),
        (" \n", ["A dog."], "empty chosen answer"),
        ("</s>", ["A dog."], "empty chosen answer"),
        ("", [""], "empty chosen answer"),
        ("", ["", "A dog."], "empty chosen answer"),
        ("A cat.", [""], "empty rejected answer"),
        ("A cat.", ["\n</s>\n"], "empty rejected answer"),
        ("A cat.", ["A cat.", ""], "empty rejected answer"),
        ("A cat.", [], "equal answers"),
    ],
)
def test_every_reason_for_a_drop(clean, corrupted, reason):
    """Each rollout has one reason; if both sides are empty, the chosen one counts."""
    assert build(rollout(clean, *corrupted)) == ([], {reason: 1})


@pytest.mark.parametrize("compare", ["clean", "raw"])
@pytest.mark.parametrize("newline", ["space", "delete"])
def test_an_empty_answer_never_makes_a_comparison(newline, compare):
    """A comparison with one side has no label on the other."""
    cases = [rollout(c, r) for c in ("", "\n", "x") for r in ("", "</s>", " \n ")]
    kept, drops = build(*cases, newline=newline, compare=compare)
    assert kept == []
    assert drops == {"empty chosen answer": 6, "empty rejected answer": 3}


def test_order_is_kept_and_drops_add_up():
    """Every rollout is a comparison or counted."""
    rollouts = [
        rollout("a", "b", id_="1"),
        rollout("a", "a", id_="2"),
        rollout("", "b", id_="3"),
        rollout("c", "d", id_="4"),
        rollout("a", "", id_="5"),
        rollout("a", "a", id_="6"),
    ]
    comparisons, drops = CorruptionPairs()(rollouts)
    assert [c.prompt.id for c in comparisons] == ["1", "4"]
    assert drops == {"equal answers": 2, "empty chosen answer": 1, "empty rejected answer": 1}
    assert len(comparisons) + drops.total() == len(rollouts)


def test_several_corruptions_give_several_rejected_answers():
    """`corruptions[i]` is the source of rejected answer i, whatever was left out between."""
    kept, drops = build(
        rollout("a", "b", "c", "d"),
        rollout("a", "a", "c", "", "d"),
        rollout("a", "", "a", "a", "d"),
    )
    assert kept == [
        (("a", "b", "c", "d"), (0, 1, 2)),
        (("a", "c", "d"), (1, 3)),
        (("a", "d"), (3,)),
    ]
    assert drops == {}


def test_the_same_rejected_answer_counts_once():
    """It counts for the first corruption that gave it, and is compared after cleaning."""
    kept, _ = build(
        rollout("a", "b", "b", "c", "b"),
        rollout("a", "b\n", " b", "b</s>", "c"),
        rollout("a", "b", "b"),
    )
    assert kept == [(("a", "b", "c"), (0, 2)), (("a", "b", "c"), (0, 3)), (("a", "b"), (0,))]


def test_indices_and_answers_are_aligned():
    """In every comparison of a random set, rejected answer i is what corruption i gave."""
    rng = np.random.default_rng(0)
    texts = ["", "a", "b", "b\n", " c", "d</s>", "e\nf"]
    rollouts = [rollout(*rng.choice(texts, 1 + rng.integers(1, 6)), id_=str(i)) for i in range(300)]
    by_id = {r.prompt.id: r for r in rollouts}
    comparisons, drops = CorruptionPairs()(rollouts)
    assert len(comparisons) + drops.total() == 300
    assert len(comparisons) > 100
    for comparison in comparisons:
        raw = by_id[comparison.prompt.id].corrupted
        chosen, *rejected = comparison.answers
        assert len(rejected) == len(comparison.corruptions)
        assert list(comparison.corruptions) == sorted(set(comparison.corruptions))
        for answer, index in zip(rejected, comparison.corruptions, strict=True):
            assert answer.split() == raw[index].replace("</s>", "").split()
        # Nothing that differs from the chosen answer is left out.
        cleaned = {" ".join(x.replace("</s>", "").split()) for x in raw} - {"", chosen}
        assert set(rejected) == cleaned


def test_newlines_become_spaces_or_glue_words():
    """The release deletes them, and two lines turn into "redball"."""
    source = rollout("red\nball", "blue\n\nball")
    assert build(source)[0][0][0] == ("red ball", "blue ball")
    assert build(source, newline="delete")[0][0][0] == ("redball", "blueball")


def test_deleting_newlines_makes_other_answers_equal():
    """Which answers are equal depends on the cleaning."""
    source = rollout("red ball", "red\nball")
    assert build(source) == ([], {"equal answers": 1})
    assert build(source, newline="delete")[0] == [(("red ball", "redball"), (0,))]


def test_raw_comparison_keeps_pairs_that_are_equal_after_cleaning():
    """As in the release, such a pair has the same text on both sides.

    That is faithful, and harmless with one rejected answer: loss log 2, gradient 0. It wastes a
    place in a batch, which is why "clean" is the default.
    """
    source = rollout("red ball", "red ball\n")
    assert build(source) == ([], {"equal answers": 1})
    assert build(source, compare="raw")[0] == [(("red ball", "red ball"), (0,))]
    # Raw answers that are equal are dropped either way.
    assert build(rollout("x\n", "x\n"), compare="raw") == ([], {"equal answers": 1})


@pytest.mark.parametrize(
    ("one", "other"),
    [("A", " A"), (" A", "A"), ("A", "\nA"), ("A", "A "), ("A", "A\n"), ("A", "B"), ("A", "A B")],
)
def test_raw_comparison_is_the_releases(one, other):
    """generate_with_aug.py strips what it decodes, with `</s>`; make_pair_ocrvqa.py compares."""
    equal = f"{one}</s>".strip() == f"{other}</s>".strip()
    assert equal == (one.lstrip() == other.lstrip())  # here, `</s>` is not decoded
    for suffix in ("", "</s>"):
        kept, drops = build(rollout(one + suffix, other + suffix), compare="raw")
        assert (kept, drops) == ([], {"equal answers": 1}) if equal else len(kept) == 1


SEED = types.SimpleNamespace(seed=7)
NO_DATA = PromptSet([], lambda name: np.zeros((1, 1, 3), np.uint8))


def test_most_per_source():
    """As in make_pair_*.py, equal answers are dropped first, then some of each source are drawn."""
    ids = [f"{source}/{i}" for i in range(200) for source in (0, 1)]
    rollouts = [rollout("a", "b" if i % 10 else "a", id_=id_) for i, id_ in enumerate(ids)]

    def kept(rollouts, seed=7):
        builder = CorruptionPairs(most_per_source=(30, 500))
        model = types.SimpleNamespace(seed=seed)
        comparisons, drops = builder.build(rollouts, NO_DATA, model)
        assert len(comparisons) + drops.total() == len(rollouts)
        return [c.prompt.id for c in comparisons], drops

    some, drops = kept(rollouts)
    # Every 10th of 400 is equal, all of source 0: it has 160 others, of which 30 are drawn.
    assert drops == {"equal answers": 40, "beyond the number of its source": 130}
    assert [id_ for id_ in ids if id_ in some] == some  # in order
    assert sum(id_.startswith("1/") for id_ in some) == 200
    backwards, _ = kept(rollouts[::-1])
    assert sorted(backwards) == sorted(some)
    assert kept(rollouts, seed=8)[0] != some
    # Over many seeds, every pair is kept about equally often.
    counts = collections.Counter(id_ for seed in range(200) for id_ in kept(rollouts, seed)[0])
    of_first = [counts[id_] for id_ in ids if id_.startswith("0/") and counts[id_]]
    assert len(of_first) == 160
    expected = 200 * 30 / 160
    assert max(of_first) < expected + 5 * (expected * 130 / 160) ** 0.5


@pytest.mark.parametrize("id_", ["2/x", "x", "photos/1", "-1/x", "x/1"])
def test_most_per_source_needs_numbered_sources(id_):
    builder = CorruptionPairs(most_per_source=(1, 1))
    with pytest.raises(DataError, match="has 2 numbers, but prompt"):
        builder.build([rollout("a", "b", id_=id_)], NO_DATA, SEED)


def test_the_released_method_is_both_options():
    """`newline="delete", compare="raw"` gives what the release would give."""
    kept, drops = build(
        rollout("It is\nred.", "It is\nblue."),
        rollout("It is red.", "It is red."),
        rollout("It is\nred.", "It isred."),
        newline="delete",
        compare="raw",
    )
    assert kept == [
        (("It isred.", "It isblue."), (0,)),
        (("It isred.", "It isred."), (0,)),
    ]
    assert drops == {"equal answers": 1}


def test_a_builder_must_say_what_it_does():
    """The base class is abstract."""
    with pytest.raises(NotImplementedError, match="PairBuilder must define __call__"):
        PairBuilder()([])
