"""Comparisons as batches: what is in a row, what is in an epoch, and where a run resumes."""

import dataclasses
import itertools
import operator

import jax
import numpy as np
import pytest
from helpers_pipeline import (
    IMAGE,
    ONE,
    PATCHES,
    SIZE,
    TOKENIZER,
    assert_equal,
    comparison,
    encoder,
    indices,
    iterate,
    load_image,
    rows,
    run,
    single_row,
)
from helpers_tokenizer import asked

from seva_jax.batches.encoded import encode_comparisons
from seva_jax.batches.pipeline import (
    Batches,
    RowShapes,
    in_order,
    num_steps,
)
from seva_jax.batches.trees import RowShape, TreeExample, pack_row, stack_rows
from seva_jax.images.preprocess import ImageProcessing
from seva_jax.types import Comparison, DataError, ExampleError, Prompt, View

# --- epochs and order -----------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 2, 3, 4, 7, 8, 20])
@pytest.mark.parametrize("epochs", [1, 3])
def test_every_comparison_counts_once_an_epoch(batch_size, epochs):
    """It holds for any batch size; rows of weight 0 fill the last batch."""
    num = 7
    data = rows([comparison(i, weight=1.0 + i) for i in range(num)])
    found = run(data, batch_size, epochs)
    assert len(found) == -(-num * epochs // batch_size)
    order = list(itertools.chain(*map(indices, found)))
    assert len(order) == len(found) * batch_size
    real, filler = order[: num * epochs], order[num * epochs :]
    for epoch in range(epochs):
        assert sorted(real[epoch * num : (epoch + 1) * num]) == list(range(num))
    assert set(filler) <= {-1}
    weights = np.concatenate([b.weight_BC[:, 0] for b in found])
    np.testing.assert_array_equal(weights, [1.0 + i if i >= 0 else 0.0 for i in order])


def test_epochs_and_seeds_have_orders_of_their_own():
    """The same seed gives the same order again."""
    data = rows([comparison(i) for i in range(12)])

    def order(seed):
        return list(itertools.chain(*map(indices, run(data, 4, epochs=3, seed=seed))))

    orders = {seed: order(seed) for seed in (0, 1, 2)}
    epochs = [found[i : i + 12] for found in orders.values() for i in (0, 12, 24)]
    for one, other in itertools.combinations([*epochs, list(range(12))], 2):
        assert one != other
    assert order(0) == orders[0]


def test_the_order_does_not_depend_on_the_batch_size():
    """The seed alone determines example i of epoch e."""
    data = rows([comparison(i) for i in range(10)])
    orders = [list(itertools.chain(*map(indices, run(data, size, 2)))) for size in (1, 4, 5)]
    assert orders[0] == orders[1] == orders[2]


def test_repeating_the_list_is_not_an_epoch():
    """Two copies are shuffled together: some comparison occurs twice before another one occurs."""
    num = 8
    data = rows([comparison(i) for i in range(num)])
    order = list(itertools.chain(*map(indices, run(data, 4, epochs=1, repeat=2))))
    assert sorted(order) == sorted(2 * list(range(num)))
    assert len(set(order[:num])) < num
    # Both: two passes over two copies, each complete.
    order = list(itertools.chain(*map(indices, run(data, 4, epochs=2, repeat=2))))
    for half in (order[: 2 * num], order[2 * num :]):
        assert sorted(half) == sorted(2 * list(range(num)))
    assert order[: 2 * num] != order[2 * num :]


def test_max_steps_stops_early():
    """The steps are the first ones of the full run."""
    data = rows([comparison(i) for i in range(10)])
    whole, part = run(data, 4, 2), run(data, 4, 2, max_steps=2)
    assert [indices(b) for b in part] == [indices(b) for b in whole[:2]]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((10, 5, 1, 1, 0), 2),
        ((11, 5, 1, 1, 0), 3),
        ((4, 5, 1, 1, 0), 1),
        ((10, 5, 3, 2, 0), 12),
        ((3, 5, 2, 1, 0), 2),  # epochs share batches
        ((10, 5, 3, 2, 7), 7),
        ((10, 5, 1, 1, 7), 2),
        ((21_600 // 2, 128, 1, 2, 0), 169),  # the published run
    ],
)
def test_number_of_steps(arguments, expected):
    """It is rounded up, and a maximum can only lower it."""
    assert num_steps(*arguments) == expected


# --- resuming -------------------------------------------------------------------------------------


@pytest.mark.parametrize("stop", [0, 1, 3, 5])
def test_resuming_continues_as_if_uninterrupted(stop):
    """From any step, within an epoch or between two, every array is equal."""
    data = rows([comparison(i, images=i % 3) for i in range(7)])
    whole = run(data, 3, epochs=2, seed=5)
    assert len(whole) == 5
    first = iterate(data, ONE, 3, 5, 2, 1, 5)
    for batch in whole[:stop]:
        assert_equal(next(first), batch)
    state = first.get_state()
    first.close()
    second = iterate(data, ONE, 3, 5, 2, 1, 5)
    second.set_state(state)
    rest = list(second)
    second.close()
    assert len(rest) == len(whole[stop:])
    for found, expected in zip(rest, whole[stop:], strict=True):
        assert_equal(found, expected)


def test_processes_share_a_batch():
    """Each of two processes gives half, and their states are the same."""
    data = rows([comparison(i) for i in range(7)])
    whole = run(data, 4, epochs=2)
    parts, states = [], []
    for share in range(2):
        iterator = iterate(data, (share, 2), 4, len(whole), 2)
        parts.append([next(iterator) for _ in whole])
        states.append(iterator.get_state())
        iterator.close()
    assert states[0] == states[1]
    for batch, *shares in zip(whole, *parts, strict=True):
        assert [len(x.weight_BC) for x in shares] == [2, 2]
        assert sorted(itertools.chain(*map(indices, shares))) == sorted(indices(batch))


# --- rows -----------------------------------------------------------------------------------------


def test_a_row_holds_its_comparison():
    """A row has its tokens, pixels, weight, index and reference."""
    reference = [(np.full(2, -i - 1.0, np.float32), np.full(3, -i - 2.0, np.float32))
                 for i in range(3)]  # fmt: skip
    data = rows([comparison(i, weight=0.5 * i) for i in range(3)], reference=reference)
    row = single_row(data, 2)
    tree = encoder().encode(View(asked("what is it"), ("a", "b c")))
    used = len(tree.trunk) + sum(map(len, tree.branches))
    np.testing.assert_array_equal(
        row.tokens_BS[:used], np.concatenate([tree.trunk, *tree.branches])
    )
    assert (row.tokens_BS[used:] == TOKENIZER.pad_token_id).all()
    assert row.index_BC.tolist() == [2]
    assert row.weight_BC.tolist() == [1.0]
    np.testing.assert_array_equal(row.mask_BCKT.sum(-1), [[2, 3]])
    np.testing.assert_array_equal(row.ref_BCKT[0, 0, :2], [-3, -3])
    np.testing.assert_array_equal(row.ref_BCKT[0, 1, :3], [-4, -4, -4])
    expected = ImageProcessing(size=SIZE)(load_image("2/0"))
    np.testing.assert_array_equal(row.images_BIX, expected[None])
    dtypes = {name: leaf.dtype for name, leaf in row._asdict().items() if leaf is not None}
    for name in ("images_BIX", "mask_BCKT", "weight_BC", "ref_BCKT", "scores_BCK", "spans_BCKT"):
        assert dtypes.pop(name) == np.float32
    assert set(dtypes.values()) == {np.dtype(np.int32)}


def test_an_image_that_stops_decoding_gives_an_empty_row():
    """It has weight 0 and no index, like a filler; its neighbours are unchanged."""
    data = [comparison(i) for i in range(4)]

    def broken(name):
        if name == "2/0":
            raise ExampleError("truncated file", "unreadable image")
        return load_image(name)

    good, bad = rows(data), rows(data, broken)
    row = single_row(bad, 2)
    assert_equal(row, bad.row([], bad.shape))
    assert not row.weight_BC.any()
    assert row.index_BC.tolist() == [-1]
    assert not row.tree_BS.any()
    assert not row.mask_BCKT.any()
    for index in (0, 1, 3):
        assert_equal(single_row(bad, index), single_row(good, index))
    wide = dataclasses.replace(
        good.shape, length=200, comparisons=4, tiles=4, targets=2 * good.shape.targets
    )
    assert_equal(bad.row([1, 2, 3], wide), good.row([1, 3], wide))
    (batch,) = run(bad, 4)
    assert sorted(indices(batch)) == [-1, 0, 1, 3]


def test_what_has_no_reference_log_probs_gives_an_empty_row():
    """Its image did not decode in the reference pass, and may decode now."""
    data = [comparison(i) for i in range(2)]
    logps = tuple(np.full(len(x), -1, np.float32) for x in (range(2), range(3)))
    found = dataclasses.replace(rows(data), reference=[(), logps])
    assert single_row(found, 0).index_BC.tolist() == [-1]
    assert not single_row(found, 0).weight_BC.any()


def test_other_failures_are_not_hidden():
    """Only an `ExampleError` is the problem of one example."""

    def broken(name):
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        single_row(rows([comparison(0)], broken), 0)


def ordered(data, share, batch_size):
    """Returns all rows in order, with one comparison each."""
    shapes = RowShapes(1, lambda shape: shape.length)
    members = in_order(data, batch_size)
    return list(Batches.chosen(data, members, batch_size, share, 1, shapes).iterate())


def test_in_order_gives_every_row_once():
    """For the reference pass rows are not shuffled, batches are filled up, and arrays are equal."""
    data = rows([comparison(i) for i in range(5)])
    for batch_size, expected in (
        (2, [[0, 1], [2, 3], [4, -1]]),
        (5, [[0, 1, 2, 3, 4]]),
        (8, [[0, 1, 2, 3, 4, -1, -1, -1]]),
    ):
        found = ordered(data, ONE, batch_size)
        assert [indices(b) for b in found] == expected
        rows_of = [
            single_row(data, i) if i >= 0 else data.row([], data.shape)
            for i in itertools.chain(*expected)
        ]
        for k, batch in enumerate(found):
            assert_equal(batch, stack_rows(rows_of[k * batch_size : (k + 1) * batch_size]))


def test_shares_of_rows_in_order():
    """Each process reads its block of every batch and nothing else."""
    data = rows([comparison(i) for i in range(5)])
    shares = [[indices(b) for b in ordered(data, (share, 2), 4)] for share in range(2)]
    assert shares == [[[0, 1], [4, -1]], [[2, 3], [-1, -1]]]


# --- what can be encoded --------------------------------------------------------------------------


def test_every_reason_for_leaving_a_comparison_out():
    """Each is counted, and the others stay in order."""
    bad = {
        "empty answer": comparison(1, answers=("a", "  ")),
        "special token in answer": comparison(2, answers=("a </s> b", "c")),
        "special token in question": Comparison(Prompt("q", "what </s> is", ()), ("a", "b")),
        "empty question": Comparison(Prompt("q", " ", ()), ("a", "b")),
        "image markers": Comparison(Prompt("q", "<image> what", ()), ("a", "b")),
        "too long": comparison(3, images=30),
    }
    good = [comparison(0), comparison(4, images=0), comparison(5, answers=("a", "b", "c d"))]
    mixed = [good[0], *bad.values(), good[1], bad["too long"], good[2]]
    found = encode_comparisons(mixed, encoder())
    assert found.comparisons == good
    assert found.drops == dict.fromkeys(bad, 1) | {"too long": 2}
    assert found.num_cut == 0
    nothing = encode_comparisons(list(bad.values()), encoder())
    assert nothing.comparisons == []
    assert nothing.shape is None
    assert nothing.drops.total() == len(bad)


def test_cut_answers_are_counted_and_kept():
    """The trunk is never cut, and every answer has room of its own."""
    trunk = len(encoder().trunk(asked("what is it")))
    data = [comparison(0, answers=("a b c d", "e")), comparison(1, answers=("a b", "c d e f"))]
    found = encode_comparisons(data, encoder(max_length=trunk + 4))
    assert found.comparisons == data
    assert found.num_cut == 2  # five tokens with the closing one
    assert encode_comparisons(data, encoder(max_length=trunk + 5)).num_cut == 0
    assert found.drops.total() == 0


def test_the_shape_holds_every_comparison():
    """Longest row, most branches, longest answer and most images come from different ones."""
    data = [
        comparison(0, answers=("a", "b", "c", "d")),
        comparison(1, answers=("a b c d e f g h a b", "c")),
        comparison(2, images=5),
        comparison(3, images=0),
    ]
    found = encode_comparisons(data, encoder())
    trees = [encoder().encode(c.views[0]) for c in data]
    lengths = [len(t.trunk) + sum(map(len, t.branches)) for t in trees]
    assert found.shape is not None
    assert found.shape.comparisons == 1
    assert found.shape.branches == 4
    assert found.shape.tiles == 5
    assert 11 <= found.shape.answer < 11 + 8
    assert max(lengths) <= found.shape.length < max(lengths) + 8
    data = rows(data)
    for index in range(4):
        assert single_row(data, index).index_BC.tolist() == [index]


# --- packing --------------------------------------------------------------------------------------

PACKING = {
    "image_shape": (SIZE, SIZE, 3),
    "tile_features": PATCHES,
    "image_token_id": IMAGE,
    "pad_id": 99,
}


def example(rng, images=1, branches=2, **options):
    """Draws a tokenised comparison with images at random places."""
    parts = [rng.integers(10, 50, rng.integers(1, 4))]
    for _ in range(images):
        parts += [np.full(PATCHES, IMAGE), rng.integers(10, 50, rng.integers(1, 4))]
    answers = tuple(
        rng.integers(10, 50, rng.integers(1, 6)).astype(np.int32) for _ in range(branches)
    )
    pixels = rng.normal(size=(images, SIZE, SIZE, 3)).astype(np.float32)
    return TreeExample(np.concatenate(parts).astype(np.int32), answers, pixels, **options)


def shape_for(examples):
    """Returns the smallest row shape that holds all of them."""
    return RowShape(
        length=sum(e.length for e in examples),
        comparisons=len(examples),
        branches=max(len(e.branches) for e in examples),
        answer=max(len(b) for e in examples for b in e.branches),
        tiles=sum(len(e.images_IX) for e in examples),
        targets=sum(e.num_targets for e in examples),
    )


@pytest.mark.parametrize("seed", range(8))
def test_invariants_of_a_packed_row(seed):
    """Rows hold several comparisons with mixed images and branches, with or without room left."""
    rng = np.random.default_rng(seed)
    examples = [
        example(
            rng,
            images=int(rng.integers(0, 3)),
            branches=int(rng.integers(1, 5)),
            weight=float(c),
            index=10 * c,
        )
        for c in range(int(rng.integers(1, 5)))
    ]
    shape = shape_for(examples)
    if seed % 2:  # room for one more comparison
        shape = dataclasses.replace(
            shape,
            length=shape.length + 9,
            comparisons=shape.comparisons + 1,
            tiles=9,
            targets=shape.targets + 5,
        )
    row = pack_row(examples, shape, **PACKING)
    start = first_image = num_branches = 0
    for c, e in enumerate(examples):
        end, trunk = start + e.length, len(e.trunk)
        here = np.s_[start:end]
        assert (row.tree_BS[here] == c + 1).all()
        np.testing.assert_array_equal(row.tokens_BS[here], np.concatenate([e.trunk, *e.branches]))
        np.testing.assert_array_equal(row.positions_BS[start : start + trunk], np.arange(trunk))
        assert not row.branch_BS[start : start + trunk].any()
        at = start + trunk
        for k, answer in enumerate(e.branches):
            num_branches += 1
            size = len(answer)
            branch = np.s_[at : at + size]
            # Positions restart after the trunk, and no two branches of a row share a number.
            np.testing.assert_array_equal(row.positions_BS[branch], trunk + np.arange(size))
            assert (row.branch_BS[branch] == num_branches).all()
            # An answer token is predicted by the token that comes before it on its path.
            mask = row.mask_BCKT[c, k]
            np.testing.assert_array_equal(mask, np.arange(len(mask)) < size)
            slots = row.slot_BCKT[c, k, :size]
            np.testing.assert_array_equal(row.target_BA[slots], answer)
            sources = row.source_BA[slots]
            path = [*range(start, start + trunk), *range(at, at + size)]
            assert [path.index(s) for s in sources] == list(range(trunk - 1, trunk + size - 1))
            np.testing.assert_array_equal(row.positions_BS[sources] + 1, row.positions_BS[branch])
            at += size
        assert at == end
        # Patches count on through the row, in the order of the images.
        patches = row.patch_BS[here]
        images = len(e.images_IX)
        np.testing.assert_array_equal(patches >= 0, row.tokens_BS[here] == IMAGE)
        np.testing.assert_array_equal(
            patches[patches >= 0], first_image * PATCHES + np.arange(images * PATCHES)
        )
        np.testing.assert_array_equal(
            row.images_BIX[first_image : first_image + images], e.images_IX
        )
        assert row.weight_BC[c] == e.weight
        assert row.index_BC[c] == e.index
        assert not row.mask_BCKT[c, len(e.branches) :].any()
        start, first_image = end, first_image + images
    assert not row.tree_BS[start:].any()
    assert not row.branch_BS[start:].any()
    assert (row.tokens_BS[start:] == PACKING["pad_id"]).all()
    assert (row.patch_BS[start:] == -1).all()
    assert not row.images_BIX[first_image:].any()
    assert not row.weight_BC[len(examples) :].any()
    assert (row.index_BC[len(examples) :] == -1).all()
    assert not row.mask_BCKT[len(examples) :].any()
    # Whatever the gathers of the step read, it is inside the row.
    assert row.source_BA.min() >= 0
    assert row.source_BA.max() < shape.length
    assert row.slot_BCKT.max() < shape.targets
    real = row.slot_BCKT[row.mask_BCKT > 0]
    np.testing.assert_array_equal(np.sort(real), np.arange(len(real)))
    assert row.patch_BS.max() < shape.tiles * PATCHES


def test_reference_log_probs_lie_where_their_tokens_lie():
    """They are zero everywhere else."""
    rng = np.random.default_rng(0)
    plain = [example(rng, branches=b) for b in (3, 1, 2)]
    cached = [
        dataclasses.replace(
            e, reference=tuple(-rng.exponential(1, len(b)).astype(np.float32) for b in e.branches)
        )
        for e in plain[:2]
    ]
    row = pack_row([*cached, plain[2]], shape_for(plain), **PACKING)
    for c, e in enumerate(cached):
        for k, logps in enumerate(e.reference or ()):
            np.testing.assert_array_equal(row.ref_BCKT[c, k, : len(logps)], logps)
    assert not row.ref_BCKT[row.mask_BCKT == 0].any()
    assert not row.ref_BCKT[2].any()


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ("length", "positions"),
        ("comparisons", "comparisons"),
        ("branches", "branches"),
        ("answer", "answer tokens"),
        ("tiles", "image tiles"),
        ("targets", "answer tokens in all"),
    ],
)
def test_what_does_not_fit_is_named(field, message):
    """With one less of anything the error has the example, what it needs and what there is."""
    rng = np.random.default_rng(3)
    examples = [example(rng, images=2, branches=3, index=i) for i in (40, 41)]
    shape = shape_for(examples)
    pack_row(examples, shape, **PACKING)
    value = getattr(shape, field)
    with pytest.raises(
        DataError, match=rf"example 4\d needs {value} {message}, the row has {value - 1}"
    ):
        pack_row(examples, dataclasses.replace(shape, **{field: value - 1}), **PACKING)


@pytest.mark.parametrize("images", [0, 2])
def test_image_tokens_and_images_must_agree(images):
    """A trunk with too few expanded or loaded images is refused."""
    rng = np.random.default_rng(4)
    one = example(rng, images=1, index=7)
    wrong = dataclasses.replace(one, images_IX=np.zeros((images, SIZE, SIZE, 3), np.float32))
    with pytest.raises(
        DataError,
        match=f"example 7 has 3 image tokens and {images} tiles, .* need {3 * images} and {images}",
    ):
        pack_row([wrong], dataclasses.replace(shape_for([one]), tiles=2), **PACKING)


def test_the_covering_shape_covers():
    """It holds each example alone, with lengths rounded up by less than one step."""
    rng = np.random.default_rng(5)
    examples = [example(rng, images=i % 3, branches=1 + i % 4) for i in range(20)]
    shape = RowShape.covering(examples)
    for e in examples:
        pack_row([e], shape, **PACKING)
    longest = max(e.length for e in examples)
    assert longest <= shape.length < longest + 64
    assert shape.length % 8 == shape.answer % 8 == 0
    assert shape.tiles == 2
    assert shape.branches == 4
    assert shape.comparisons == 1


def test_stacking_rows_adds_the_batch_dim():
    """Rows stay in order, in every field."""
    rng = np.random.default_rng(6)
    examples = [example(rng, index=i) for i in range(3)]
    shape = RowShape.covering(examples)
    packed = [pack_row([e], shape, **PACKING) for e in examples]
    batch = stack_rows(packed)
    for b, row in enumerate(packed):
        mine = jax.tree.map(operator.itemgetter(b), batch)
        jax.tree.map(np.testing.assert_array_equal, mine, row)
