"""A model answers on a mesh of its own: which, what it takes, and that the move is exact."""

import jax
import pytest
from helpers_devices import mesh_of
from tiny_models import EIGHT_HEADS, TINY

from seva_jax.inference.answering import (
    AnsweringNeeds,
    answering_needs,
    choose_tensor,
    dividing_tensors,
    possible_tensors,
    tensor_sizes,
)
from seva_jax.models import LLAVA_15, Llava, abstract_params, abstract_stored, abstract_variables
from seva_jax.sharding import LOGICAL_AXES, answering_mesh

SEVEN_B = LLAVA_15["7b"]
GIB = 2**30


def test_the_mesh_keeps_the_order_of_devices():
    """Groups are neighbours of the training mesh, so that one program can move arrays."""
    training = mesh_of(2, 2, 2)
    for tensor in (1, 2, 4, 8):
        found = answering_mesh(training, tensor)
        assert dict(found.shape) == {"data": 8 // tensor, "fsdp": 1, "tensor": tensor}
        assert list(found.devices.flat) == list(training.devices.flat)
    assert answering_mesh(mesh_of(4, 1, 2), 2) == mesh_of(4, 1, 2)


def test_what_tensor_splits_is_in_the_one_table():
    names = {name for name, axis in LOGICAL_AXES.items() if axis == "tensor"}
    assert set(tensor_sizes(SEVEN_B)) == names
    assert dividing_tensors(SEVEN_B, 64) == [1, 2, 4, 8, 16]  # the tower has 16 heads
    assert dividing_tensors(LLAVA_15["13b"], 64) == [1, 2, 4, 8]  # 40 heads
    assert dividing_tensors(SEVEN_B, 12) == [1, 2, 4]
    assert dividing_tensors(TINY, 8) == [1, 2]


def test_bytes_of_each_layout():
    """Kernels are split, norms are not; what is in its place already takes nothing."""
    model = Llava(EIGHT_HEADS)
    params = abstract_params(model)
    size = {
        name: sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))
        for name, tree in (
            ("all", params),
            ("layers", params["language"]["layers"]),
            ("norm", params["language"]["norm"]),
        )
    }
    one = possible_tensors(model, {"params": params}, mesh_of(1, 1, 1))
    assert one == {1: size["layers"]}
    # Of the mesh (1, 8, 1) the norm and the tower are whole everywhere, as one copy each needs it.
    eight = possible_tensors(model, {"params": params}, mesh_of(1, 8, 1))
    assert list(eight) == [1, 2, 4, 8]
    tower = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(params["vision"]))
    assert eight[1] == size["all"] - tower - size["norm"]
    assert eight[8] < eight[4] < eight[2]
    assert eight[8] < eight[1] / 3


def test_quantised_scales_must_divide_too():
    """Of nf4 64 inputs share a scale: 11,008 / 64 = 172 divides by 4, not by 8."""
    pytest.importorskip("qwix")
    model = Llava(SEVEN_B)
    stored = abstract_stored(abstract_variables(model)["params"], "nf4", "bfloat16")
    stored = jax.tree.map(lambda x: x.value, stored, is_leaf=lambda x: hasattr(x, "names"))
    mesh = mesh_of(1, 8, 1)
    assert list(possible_tensors(model, {"params": stored}, mesh)) == [1, 2, 4]


def test_needs_of_seven_billion():
    """A row's cache has two vectors of 4,096 bfloat16 numbers a layer and token: half a MiB."""
    model = Llava(SEVEN_B, dtype=jax.numpy.bfloat16)
    needs = answering_needs(model, 16, rows=64, fresh=16, prompt=640, new=128)
    assert needs.row == 768 * 2**19
    int8 = answering_needs(model, 16, rows=64, fresh=16, prompt=640, new=128, cache="int8")
    assert int8.row == needs.row * (128 + 4) / 256
    # 64 rows on 16 devices take as much of each whoever shares them, but for what is not split.
    assert needs.on_a_device(1) == pytest.approx(4 * needs.row + needs.fresh_row + 640 * 66e3, 0.1)
    assert needs.on_a_device(16) > needs.on_a_device(1)
    # 5 rows on groups of 4: two in the fullest group.
    few = AnsweringNeeds(16, 5, 1, row=100.0, fresh_row=0.0, fresh_row_whole=7.0)
    assert few.on_a_device(4) == 2 * 100 / 4 + 7


def test_the_smallest_number_that_fits():
    weights = {1: 14 * GIB, 2: 7 * GIB, 4: 4 * GIB, 8: 2 * GIB}
    needs = AnsweringNeeds(8, 64, 16, row=0.2 * GIB, fresh_row=0.0, fresh_row_whole=0.0)
    cache = 64 / 8 * 0.2 * GIB
    assert choose_tensor(weights, needs, 0, None) == 1
    assert choose_tensor(weights, needs, 0, 80 * GIB) == 1
    assert choose_tensor(weights, needs, 2 * GIB, 16 * GIB) == 2
    assert choose_tensor(weights, needs, 7 * GIB, 16 * GIB) == 4
    assert choose_tensor(weights, needs, 0, (7 * GIB + cache) / 0.94 + 1) == 2
    assert choose_tensor(weights, needs, 0, (7 * GIB + cache) / 0.94 - GIB) == 4
    assert choose_tensor(weights, needs, 99 * GIB, 16 * GIB) == 8  # none fits: what needs least
