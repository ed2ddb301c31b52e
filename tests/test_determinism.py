"""The same seed gives the same batches, whoever reads them and in however many shares.

test_readers.py compares reading in processes with reading in threads; test_train.py compares losses
and weights of killed runs with those of whole ones, and test_layouts.py those of several meshes.
"""

import numpy as np
import pytest
from helpers_formats import all_batches

from seva_jax.batches.pipeline import Batches, RowShapes, shuffled


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Returns batches over pairs of every format."""
    return all_batches(tmp_path_factory.mktemp("pairs"))


def of_share(found, share, seed=5):
    """Returns all batches of a share, one dict of arrays a step."""
    schedule = shuffled(found.rows, 4, 8, 2, 1, seed)
    # Rows in multiples of 4, so that 1, 2 and 4 shares all divide them.
    shapes = RowShapes(2, lambda shape: shape.length)
    mine = Batches.chosen(found.rows, schedule, 4, share, 4, shapes)
    return [
        {name: array for name, array in batch._asdict().items() if array is not None}
        for batch in mine.iterate()
    ]


@pytest.mark.parametrize("count", [2, 4])
def test_shares_make_up_the_batches(found, count):
    whole = of_share(found, (0, 1))
    shares = [of_share(found, (i, count)) for i in range(count)]
    assert len(whole) == 8
    for step, batch in enumerate(whole):
        for name, array in batch.items():
            together = np.concatenate([share[step][name] for share in shares])
            np.testing.assert_array_equal(together, array, err_msg=name)


def test_the_seed_and_nothing_else_decides(found, tmp_path):
    """Data opened again elsewhere gives the same bytes; another seed gives another order."""
    again = all_batches(tmp_path)
    first, second = (of_share(data, (0, 1)) for data in (found, again))
    other = of_share(again, (0, 1), seed=6)
    for a, b in zip(first, second, strict=True):
        assert all(a[name].tobytes() == b[name].tobytes() for name in a)
    assert any((a["index_BC"] != b["index_BC"]).any() for a, b in zip(first, other, strict=True))
