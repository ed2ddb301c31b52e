"""Decoder layers with separate variables against the same layers stacked."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers_devices import mesh_of
from helpers_trees import IMAGE, PATCHES
from tiny_models import DISTINCT_SIZES, EIGHT_HEADS, random_variables

from seva_jax.models import (
    Llava,
    LoraConfig,
    abstract_stored,
    abstract_variables,
    is_quantised,
    quantise_all,
    restack,
    unstack,
)
from seva_jax.sharding import is_boxed, placed, variable_shardings

THREE = DISTINCT_SIZES.text.num_layers
LORA = LoraConfig(rank=2)


def inputs(model):
    """Returns two rows with an image each, of which one ends in padding."""
    rng = np.random.default_rng(0)
    size = 12
    tokens = rng.integers(5, 40, (2, size))
    tokens[:, 2 : 2 + PATCHES] = IMAGE
    is_image = tokens == IMAGE
    features = rng.normal(size=(2, PATCHES, model.config.vision.hidden_size))
    mask = np.tril(np.ones((size, size), bool))[None].repeat(2, 0)
    mask[1, :, 9:] = np.eye(size, dtype=bool)[:, 9:]
    positions = np.arange(size)[None].repeat(2, 0)
    patch = np.where(is_image, is_image.cumsum(1) - 1, -1)
    return tuple(map(jnp.asarray, (tokens, positions, mask, patch, features.astype(np.float32))))


def hidden(model, variables, method="hidden", *more):
    """Returns hidden states, computed operation by operation: no fusion changes a rounding."""
    with jax.disable_jit():
        return model.apply(variables, *inputs(model), *more, method=method)


@pytest.mark.parametrize("kind", ["float", "int8", "nf4"])
@pytest.mark.parametrize("adapters", [False, True])
def test_hidden_states_are_equal(kind, adapters):
    """They are the same bits, with and without adapters, quantised or not."""
    stacked = Llava(DISTINCT_SIZES, lora=LORA)
    variables = random_variables(stacked)
    boxed = abstract_stored(abstract_variables(stacked)["params"], kind, "float32")
    params = quantise_all(variables["params"], kind, variable_shardings(mesh_of(), boxed))
    variables = {"params": params} | ({"lora": variables["lora"]} if adapters else {})
    model, separate = unstack(stacked, variables)
    assert not model.stacked
    layers = separate["params"]["language"]
    assert sorted(layers) == ["embedding", "head", "layers_0", "layers_1", "layers_2", "norm"]
    assert ("lora" in separate) == adapters
    assert sum(is_quantised(x) for x in jax.tree.leaves(layers, is_leaf=is_quantised)) == (
        0 if kind == "float" else 7 * THREE
    )
    expected, _ = hidden(stacked, variables)
    np.testing.assert_array_equal(hidden(model, separate)[0], expected)
    without = hidden(model, separate | {"lora": {}})[0]
    assert (np.asarray(without) == expected).all() != adapters


def test_the_input_of_a_layer_is_the_same():
    """Separate layers also keep the input of any layer."""
    stacked = Llava(DISTINCT_SIZES)
    variables = random_variables(stacked)
    for layer in range(THREE):
        expected = hidden(stacked, variables, "hidden_and_input", layer)
        found = hidden(*unstack(stacked, variables), "hidden_and_input", layer)
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_array_equal(one, other)


def test_boxed_shapes_are_those_of_the_module():
    """Names, shapes and dtypes of abstract variables are what the other module declares."""
    stacked = Llava(DISTINCT_SIZES, lora=LORA)
    model, boxed = unstack(stacked, abstract_variables(stacked))
    expected = abstract_variables(model)
    assert model == Llava(DISTINCT_SIZES, lora=LORA, stacked=False)
    assert jax.tree.structure(boxed) == jax.tree.structure(expected)
    assert boxed == expected
    assert unstack(model, boxed) == (model, boxed)


@pytest.mark.parametrize("kind", ["float", "int8", "nf4"])
def test_shapes_agree_with_arrays_on_a_mesh(kind):
    """Shapes with shardings, boxed shapes and arrays become the same, and nothing is gathered."""
    mesh = mesh_of(1, 2, 4)
    stacked = Llava(EIGHT_HEADS, lora=LORA)
    boxed = abstract_variables(stacked)
    boxed["params"] = abstract_stored(boxed["params"], kind, "float32")
    shardings = variable_shardings(mesh, boxed)
    shapes = placed(boxed, shardings)
    _, from_boxes = unstack(stacked, boxed)
    expected = placed(from_boxes, variable_shardings(mesh, from_boxes))
    _, found = unstack(stacked, shapes)
    check = jax.tree.map(
        lambda a, b: (
            (a.shape, a.dtype) == (b.shape, b.dtype)
            and a.sharding.is_equivalent_to(b.sharding, a.ndim)
        ),
        found,
        expected,
    )
    assert all(jax.tree.leaves(check))
    variables = jax.device_put(random_variables(stacked), variable_shardings(
        mesh, abstract_variables(stacked)
    ))  # fmt: skip
    variables["params"] = quantise_all(variables["params"], kind, shardings["params"])
    _, arrays = unstack(stacked, variables)
    for array, shape in zip(jax.tree.leaves(arrays), jax.tree.leaves(found), strict=True):
        assert array.shape == shape.shape
        assert array.sharding == shape.sharding


def test_freed_stacks():
    """`free` deletes the stacks and nothing else; without it they stay."""
    stacked = Llava(DISTINCT_SIZES)
    variables = random_variables(stacked)
    kept, _ = hidden(*unstack(stacked, variables))
    separate = unstack(stacked, variables, free=True)
    leaves = jax.tree_util.tree_leaves_with_path(variables)
    deleted = {jax.tree_util.keystr(path): leaf.is_deleted() for path, leaf in leaves}
    assert any(deleted.values())
    assert all(gone == ("['layers']" in path and "vision" not in path)
               for path, gone in deleted.items())  # fmt: skip
    np.testing.assert_array_equal(hidden(*separate)[0], kept)


@pytest.mark.parametrize("kind", ["float", "int8"])
def test_stacks_are_put_back(kind):
    """`restack` undoes `unstack`, for everything that shares the dicts; nothing stays twice."""
    stacked, mesh = Llava(DISTINCT_SIZES), mesh_of(1, 1, 1)
    boxed = abstract_variables(stacked)
    shardings = variable_shardings(mesh, boxed)
    variables = jax.device_put(random_variables(stacked), shardings)
    if kind == "int8":
        pytest.importorskip("qwix")
        stored = variable_shardings(mesh, abstract_stored(boxed["params"], kind, "float32"))
        variables["params"] = quantise_all(variables["params"], kind, stored)
    expected = jax.tree.map(np.asarray, variables)
    layout = jax.tree.map(lambda x: x.sharding, variables)
    other = {"params": dict(variables["params"])}  # as `merge` shares frozen weights
    separate = unstack(stacked, variables, free=True)[1]
    restack(variables, separate)
    jax.tree.map(np.testing.assert_array_equal, variables, expected)
    assert jax.tree.map(lambda x: x.sharding, variables) == layout
    jax.tree.map(np.testing.assert_array_equal, other["params"], expected["params"])
    paths = jax.tree_util.tree_leaves_with_path(separate)
    assert all(
        leaf.is_deleted() == ("layers_" in jax.tree_util.keystr(path)) for path, leaf in paths
    )


def test_arrays_of_the_host():
    """NumPy arrays and leaves inside a program are split, too."""
    stacked = Llava(DISTINCT_SIZES)
    variables = random_variables(stacked)
    _model, separate = unstack(stacked, jax.tree.map(np.asarray, variables))
    assert all(isinstance(x, np.ndarray) for x in jax.tree.leaves(separate))
    inside = jax.jit(lambda v: unstack(stacked, v)[1])(variables)
    jax.tree.map(np.testing.assert_array_equal, inside, separate)
    assert not any(map(is_boxed, jax.tree.leaves(separate)))
