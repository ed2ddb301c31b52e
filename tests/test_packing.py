"""Which comparisons share a row: nothing lost, little wasted, few shapes, same gradients."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest
from helpers_pipeline import assert_equal, comparison, iterate, rows, run

from seva_jax.batches.packing import Layout, Packer, Sizes, choose, fill
from seva_jax.batches.trees import RowShape

WIDEST = RowShape(length=256, comparisons=1, branches=2, answer=64, tiles=2, targets=128)


def sizes_of(rng, num, longest=256):
    """Draws sizes of comparisons; the first one is as large as any."""
    targets = np.concatenate([[128], rng.integers(2, 129, num - 1)])
    images = np.concatenate([[2], rng.integers(0, 3, num - 1)])
    length = np.minimum(targets + rng.integers(20, longest - 127, num), longest)
    return Sizes(np.concatenate([[longest], length[1:]]), targets, images)


def tokens(shape):
    return float(shape.length)


@pytest.mark.parametrize("seed", range(6))
def test_rows_hold_every_member_once(seed):
    """Rows keep every limit of the shape, and no two of them would fit into one."""
    rng = np.random.default_rng(seed)
    sizes = sizes_of(rng, 40)
    shape = dataclasses.replace(WIDEST, length=512, comparisons=3, tiles=4, targets=200)
    members = rng.permutation(40)[:25].tolist()
    found = fill(sizes, members, shape)
    assert sorted(itertools.chain(*found)) == sorted(members)
    limits = shape.length, shape.targets, shape.tiles

    def fits(row):
        used = [x[row].sum() for x in sizes]
        return len(row) <= 3 and all(u <= limit for u, limit in zip(used, limits, strict=True))

    assert all(map(fits, found))
    assert not any(fits([*a, *b]) for a, b in itertools.combinations(found, 2))
    places = [[members.index(m) for m in row] for row in found]
    assert all(row == sorted(row) for row in places)
    assert [row[0] for row in places] == sorted(row[0] for row in places)


def test_one_comparison_a_row_keeps_the_order():
    sizes = sizes_of(np.random.default_rng(0), 8)
    assert fill(sizes, [5, 2, 7], WIDEST) == [[5], [2], [7]]


@pytest.mark.parametrize("most", [1, 2, 3, 4])
@pytest.mark.parametrize("unit", [1, 4, 16])
def test_every_batch_has_a_layout(most, unit):
    """There are few layouts, rows in multiples of the unit, no lost comparison, and less work."""
    rng = np.random.default_rng(most)
    sizes = sizes_of(rng, 400)
    batches = [rng.permutation(400)[:16].tolist() for _ in range(50)] + [[3, 1]]
    packer = choose(sizes, WIDEST, 16, batches, unit, most, tokens)
    assert 1 <= len(packer.layouts) <= most
    assert packer.layouts[-1] == Layout(WIDEST, 16)
    total = 0
    for members in batches:
        layout, packed = packer(members)
        assert sorted(itertools.chain(*packed)) == sorted(members)
        assert len(packed) <= layout.rows
        assert layout.rows % unit == 0
        total += layout.rows * layout.shape.length
    whole = len(batches) * 16 * WIDEST.length
    needed = sum(sizes.length_N[members].sum() for members in batches)
    if most == 1 or unit == 16:
        assert total <= whole
    else:
        assert needed < total < 0.8 * whole
    if most > 1 and unit == 1:
        assert total < 1.45 * needed


def test_equal_lengths_are_left_alone():
    """No compilation is spent where it saves nothing."""
    sizes = Sizes(np.full(50, 250), np.full(50, 100), np.ones(50, np.int64))
    batches = [list(range(i, i + 10)) for i in range(0, 50, 10)]
    packer = choose(sizes, WIDEST, 10, batches, 1, 4, tokens)
    assert packer.layouts == (Layout(WIDEST, 10),)
    assert packer.describe() == "at most 1 compilation: 10 rows of 256"


def test_a_batch_outside_the_sample_falls_back():
    """Its comparisons are larger than those the shapes were chosen for."""
    sizes = Sizes(np.array([256] * 4 + [64] * 8), np.full(12, 32), np.ones(12, np.int64))
    small = RowShape(256, 4, 2, 64, 4, 128)
    packer = Packer(sizes, (Layout(small, 1), Layout(WIDEST, 4)))
    assert packer([4, 5, 6, 7]) == (Layout(small, 1), [[4, 5, 6, 7]])
    assert packer([0, 4, 5, 6])[0] == Layout(WIDEST, 4)
    assert packer.describe() == (
        "at most 2 compilations: 1 rows of 256, up to 4 comparisons each; 4 rows of 256"
    )


ANSWERS = ("a", "a b c d e f", "b c", "a b c d e f g h a b c d e f g h", "c", "d e")


def test_batches_of_mixed_lengths():
    """Every step has the comparisons of the unpacked batch, and shares add up to the whole."""
    data = rows([comparison(i, images=i % 2, answers=(ANSWERS[i % 6], "g h")) for i in range(24)])
    apart = run(data, 8, epochs=2)
    packed = run(data, 8, epochs=2, most=3, unit=2)
    shares = [list(iterate(data, (s, 2), 8, len(apart), 2, most=3, unit=2)) for s in range(2)]
    saved = 0
    for plain, batch, *halves in zip(apart, packed, *shares, strict=True):
        index = batch.index_BC[batch.index_BC >= 0]
        assert sorted(index) == sorted(plain.index_BC[plain.index_BC >= 0])
        assert batch.weight_BC.sum() == plain.weight_BC.sum()
        assert (batch.tree_BS > 0).sum() == (plain.tree_BS > 0).sum()
        assert batch.mask_BCKT.sum() == plain.mask_BCKT.sum()
        assert_equal(batch, jax.tree.map(lambda *leaves: np.concatenate(leaves), *halves))
        saved += plain.tokens_BS.size - batch.tokens_BS.size
    assert saved > 0.2 * sum(b.tokens_BS.size for b in apart)
    assert len({b.tokens_BS.shape for b in packed}) <= 3
