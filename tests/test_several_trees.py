"""Comparisons of several trees: sides that see different images, steps of trajectories."""

import collections
import dataclasses

import numpy as np
import pytest
from helpers_pipeline import IMAGE, PATCHES, comparison, load_image, rows, single_row
from helpers_trees import MODEL, example, logps, pack, plain_logps, shape_of
from tiny_models import random_variables

from seva_jax.batches.trees import RowShape
from seva_jax.corrupt import DiffusionNoise, PixelNoise
from seva_jax.data.changed import ChangedImages
from seva_jax.data.mixed import Concatenated
from seva_jax.data.records import ArrayRecordPairs, build
from seva_jax.data.sources import PreferenceSet, PreferenceSource
from seva_jax.objectives import Inherent
from seva_jax.types import DataError, Prompt, View
from seva_jax.worlds import WorldPrompts


@pytest.fixture(scope="module")
def variables():
    """Returns random weights of `helpers_trees.MODEL`."""
    return random_variables(MODEL)


def several(rng, index=0, trees=3, **options):
    """Draws a comparison with random numbers of images and answers in each tree."""
    first, *more = (
        example(rng, num_images=int(rng.integers(0, 3)), num_branches=int(rng.integers(1, 3)))
        for _ in range(trees)
    )
    return dataclasses.replace(first, more=tuple(more), index=index, **options)


def test_log_probs_equal_separate_rows(variables):
    """In a packed row every branch has the log-probs it has alone with its own images."""
    rng = np.random.default_rng(0)
    examples = [several(rng, i, trees=1 + i) for i in range(3)]
    batch = pack([examples, []], shape_of(examples, comparisons=3))
    found = logps(variables, batch)
    for c, whole in enumerate(examples):
        k = 0
        for tree in whole.trees:
            for expected in plain_logps(variables, tree):
                np.testing.assert_allclose(found[0, c, k, : len(expected)], expected, atol=2e-5)
                k += 1
        assert not batch.mask_BCKT[0, c, k:].any()
    assert RowShape.covering(examples).tiles >= max(e.num_tiles for e in examples)


def test_rows_hold_the_trees_with_their_images():
    """Texts and names become a row; scores are with their branches."""
    plain = comparison(1, images=1, answers=("a", "b c"))
    other = View(Prompt("p2", "what is it", ("2/0", "2/1")), ("a",))
    data = rows([dataclasses.replace(plain, scores=(3.0, 2.0, 1.0), more=(other,)), plain])
    batch = single_row(data, 0)
    assert set(batch.tree_BS.tolist()) - {0} == {1, 2}
    assert batch.scores_BCK.tolist() == [[3.0, 2.0, 1.0]]
    first, second = batch.mask_BCKT[0].sum(-1)[[0, 2]]
    assert first == second == 2  # "a" and the closing token, in both trees
    in_second = batch.tree_BS == 2
    assert (batch.tokens_BS[in_second] == IMAGE).sum() == 2 * PATCHES
    assert set(batch.patch_BS[in_second]) == {-1, *range(PATCHES, 3 * PATCHES)}
    greys = batch.images_BIX[:, 0, 0, 0]
    assert len(set(greys.tolist())) == 3
    assert greys[1] < greys[2]
    assert batch.positions_BS[in_second][0] == 0
    assert not single_row(data, 1).mask_BCKT[0, 2].any()


@dataclasses.dataclass(frozen=True)
class Two(PreferenceSource):
    """Two pairs about images that `load_image` draws."""

    def open(self):
        pairs = [comparison(i, images=1 + i) for i in range(2)]
        prompts = [pair.prompt for pair in pairs]
        return PreferenceSet(prompts, load_image, comparisons=pairs)


def test_pairs_with_changed_images():
    """POVID's and MMedPO's visual pairs have the same answer to an image, always changed alike."""
    data = ChangedImages(Two(), PixelNoise(step=500), seed=1).open()
    pair = data.comparisons[1]
    assert pair.answers == ("a", "b c")
    assert pair.all_answers == ("a", "b c", "a")
    (view,) = pair.more
    for name, original in zip(view.prompt.images, pair.prompt.images, strict=True):
        image = data.load_image(name)
        np.testing.assert_array_equal(image, data.load_image(name))
        assert image.dtype == np.uint8
        assert image.std() > 40  # the original has one grey level
        np.testing.assert_array_equal(data.load_image(original), load_image(original))
    Inherent().check(data.comparisons)
    visual = ChangedImages(Two(), keep_rejected=False).open().comparisons[0]
    assert visual.all_answers == ("a", "a")
    with pytest.raises(DataError, match="give a change of pixels"):
        ChangedImages(Two(), DiffusionNoise()).open()


@dataclasses.dataclass(frozen=True)
class Partly(PreferenceSource):
    """Two pairs, one without an image, and one more that was left out."""

    def open(self):
        data = Two().open()
        first, second = data.comparisons
        blind = dataclasses.replace(first, prompt=dataclasses.replace(first.prompt, images=()))
        return dataclasses.replace(
            data,
            prompts=[blind.prompt, second.prompt],
            comparisons=[blind, second],
            drops=collections.Counter({"equal answers": 1}),
            left_out=["line 3: equal answers"],
        )


def test_a_pair_without_images_is_left_out_and_named():
    """Other pairs are kept, and so is what the source had left out."""
    data = ChangedImages(Partly()).open()
    assert [c.prompt.id for c in data.comparisons] == [p.id for p in data.prompts] == ["p1"]
    assert data.drops == {"equal answers": 1, "no image": 1}
    before, mine = data.left_out
    assert before == "line 3: equal answers"
    assert mine.startswith("pair 'p0': no image: ")


def test_images_are_changed_once_only():
    """A mixture can be changed; a source of no answers or of several views cannot."""
    data = ChangedImages(Concatenated((Two(), Two()))).open()
    assert [c.prompt.id for c in data.comparisons] == ["0/p0", "0/p1", "1/p0", "1/p1"]
    assert data.load_image(data.comparisons[0].more[0].prompt.images[0]).std() > 40
    with pytest.raises(DataError, match="4 several views"):
        ChangedImages(ChangedImages(Concatenated((Two(), Two())))).open()
    with pytest.raises(DataError, match="WorldPrompts, which has no answers"):
        ChangedImages(WorldPrompts()).open()


def test_a_copy_has_all_trees(tmp_path):
    """`build` stores the images of every view."""
    data = ChangedImages(Two(), PixelNoise(step=500)).open()
    build(data, tmp_path / "copy", "two pairs", lambda num: None)
    copy = ArrayRecordPairs(str(tmp_path / "copy")).open()
    assert list(copy.comparisons) == list(data.comparisons)
    for name in data.comparisons[1].images:
        np.testing.assert_array_equal(copy.load_image(name), data.load_image(name))
