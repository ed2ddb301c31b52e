"""The strict resolver, mesh sizes, and how parameters and optimiser state are sharded."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from tiny_models import DISTINCT_SIZES

from seva_jax import sharding
from seva_jax.models import (
    Llava,
    LoraConfig,
    abstract_variables,
    init_variables,
)
from seva_jax.sharding import (
    LOGICAL_AXES,
    MeshShape,
    batch_sharding,
    put_batch,
    replicated,
    resolve,
    state_shardings,
    variable_shardings,
)
from seva_jax.training.loop import init_state
from seva_jax.training.optimizer import Optim
from seva_jax.types import DataError

MODEL = Llava(DISTINCT_SIZES, LoraConfig(rank=5, alpha=5.0))


@pytest.fixture(scope="module")
def mesh():
    """Returns a mesh with two devices along every axis."""
    assert len(jax.devices()) == 8
    return MeshShape(2, 2, 2).make()


@pytest.fixture(scope="module")
def adapters(mesh):
    """Returns fresh adapters on that mesh."""
    shardings = variable_shardings(mesh, abstract_variables(MODEL)["lora"])
    return init_variables(MODEL, "lora", shardings, seed=3)


# --- mesh sizes -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        (MeshShape(), (8, 1, 1)),
        (MeshShape(-1, 2, 2), (2, 2, 2)),
        (MeshShape(1, -1, 2), (1, 4, 2)),
        (MeshShape(1, 1, -1), (1, 1, 8)),
        (MeshShape(2, 4, 1), (2, 4, 1)),
        (MeshShape(2, 4, -1), (2, 4, 1)),
    ],
)
def test_sizes_of_a_mesh(shape, expected):
    """An axis of -1 takes the remaining devices; every device is used once."""
    mesh = shape.make()
    assert mesh.axis_names == sharding.AXES
    assert tuple(mesh.shape.values()) == expected
    assert len(set(mesh.devices.flat)) == 8


def test_a_mesh_over_some_devices():
    """It has the caller's devices, in the caller's order."""
    devices = jax.devices()[::-1][:4]
    mesh = MeshShape(fsdp=2).make(devices)
    assert mesh.shape == {"data": 2, "fsdp": 2, "tensor": 1}
    assert list(mesh.devices.flat) == devices


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (MeshShape(-1, -1, 1), "at most one -1"),
        (MeshShape(0, 1, 1), "must be positive"),
        (MeshShape(-1, -2, 1), "must be positive"),
        (MeshShape(-1, 3, 1), "needs a multiple of 3 devices but there are 8"),
        (MeshShape(-1, 16, 1), "needs a multiple of 16 devices but there are 8"),
        (MeshShape(2, 2, 1), "needs 4 devices but there are 8"),
        (MeshShape(4, 4, 1), "needs 16 devices but there are 8"),
    ],
)
def test_sizes_that_do_not_fit(shape, message):
    """The message says what there is and names the options."""
    with pytest.raises(DataError, match=message) as caught:
        shape.make()
    assert str(shape) in str(caught.value)
    if "devices" in message:
        assert "--mesh.fsdp" in str(caught.value)


# --- the resolver ---------------------------------------------------------------------------------


def test_names_become_axes(mesh):
    """One table maps them."""
    found = resolve(mesh, ("layers", "embed", "mlp"), (3, 12, 20), "w")
    assert found.spec == PartitionSpec(None, "fsdp", "tensor")
    assert found.mesh is mesh
    assert resolve(mesh, (), (), "scalar").spec == PartitionSpec()


@pytest.mark.parametrize(
    ("names", "shape", "message"),
    [
        (("embed", "mpl"), (4, 4), "dim 1 has the unknown logical name 'mpl'; known: .*mlp"),
        (("embed", None), (4, 4), "dim 1 has the unknown logical name None"),
        (("mlp", "heads"), (4, 4), r"\('mlp', 'heads'\) use mesh axis 'tensor' twice"),
        (("embed", "norm", "embed"), (4, 4, 4), "use mesh axis 'fsdp' twice"),
        (("embed", "mlp"), (4, 7), r"dim 1 \('mlp', size 7\) .* 'tensor' of size 2"),
        (("embed",), (4, 4), r"1 dim names \('embed',\) for shape \(4, 4\)"),
        (("embed", "mlp"), (4,), "2 dim names .* for shape"),
    ],
)
def test_mistakes_name_the_parameter(mesh, names, shape, message):
    """The error also has the dim and the sizes."""
    with pytest.raises(DataError, match=message) as caught:
        resolve(mesh, names, shape, "params/language/gate_proj/kernel")
    assert str(caught.value).startswith("params/language/gate_proj/kernel: ")


def test_an_axis_of_size_one_divides_everything():
    """Odd sizes are fine where nothing is split."""
    mesh = MeshShape().make()
    assert resolve(mesh, ("embed", "mlp"), (7, 11), "w").spec == PartitionSpec("fsdp", "tensor")


def test_the_table_names_mesh_axes_only():
    """Every logical name maps to an axis that exists; `data` never splits parameters."""
    axes = {axis for axis in LOGICAL_AXES.values() if axis is not None}
    assert axes == {"fsdp", "tensor"}
    assert set(sharding.BATCH) | axes == set(sharding.AXES)


# --- a model --------------------------------------------------------------------------------------


def by_path(tree, is_leaf=None):
    """Returns leaves by "a/b/c"."""
    flat, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_leaf)
    return {"/".join(str(getattr(k, "key", k)) for k in path): leaf for path, leaf in flat}


F, T = "fsdp", "tensor"
EXPECTED = {
    # What every kernel of the language model shares is split over fsdp, the rest over tensor.
    "language/embedding": (T, F),
    "language/head": (F, T),
    "language/norm/scale": (None,),
    "language/layers/input_layernorm/scale": (None, None),
    "language/layers/post_attention_layernorm/scale": (None, None),
    **{f"language/layers/{x}_proj/kernel": (None, F, T) for x in ("q", "k", "v", "gate", "up")},
    **{f"language/layers/{x}_proj/kernel": (None, T, F) for x in ("o", "down")},
    "projector/linear_1/kernel": (None, F),
    "projector/linear_1/bias": (F,),
    "projector/linear_2/kernel": (None, F),
    "projector/linear_2/bias": (F,),
    # The tower is small: its width is not split.
    **{f"vision/layers/{x}/kernel": (None, None, T) for x in ("q_proj", "k_proj", "v_proj", "fc1")},
    **{f"vision/layers/{x}/bias": (None, T) for x in ("q_proj", "k_proj", "v_proj", "fc1")},
    **{f"vision/layers/{x}/kernel": (None, T, None) for x in ("out_proj", "fc2")},
    **{f"vision/layers/{x}/bias": (None, None) for x in ("out_proj", "fc2")},
}


def test_shardings_of_a_small_llava(mesh):
    """Every parameter is split as in the table above; what it does not name is whole."""
    shardings = variable_shardings(mesh, abstract_variables(MODEL))
    found = {name: tuple(x.spec) for name, x in by_path(shardings["params"]).items()}
    assert set(EXPECTED) <= set(found)
    for name, spec in found.items():
        assert spec == EXPECTED.get(name, (None,) * len(spec)), name
        assert name in EXPECTED or name.startswith("vision/"), name


def test_adapters_are_split_as_what_they_adapt(mesh):
    """A is split like the kernel's input, B like its output; the rank is whole."""
    shardings = variable_shardings(mesh, abstract_variables(MODEL))
    found = {name: tuple(x.spec) for name, x in by_path(shardings["lora"]).items()}
    assert len(found) == 2 * 7
    for name, spec in found.items():
        layer, _, part = name.rpartition("/")
        _, split_in, split_out = EXPECTED[f"{layer}/kernel"]
        assert spec == ((None, split_in, None) if part == "a" else (None, None, split_out)), name


def test_parameters_are_created_where_they_belong(mesh, adapters):
    """They have the same values on every mesh."""
    boxed = abstract_variables(MODEL)["lora"]
    for name, sharding_ in by_path(variable_shardings(mesh, boxed)).items():
        assert by_path(adapters)[name].sharding == sharding_
    single = MeshShape().make(jax.devices()[:1])
    alone = init_variables(MODEL, "lora", variable_shardings(single, boxed), seed=3)
    for name, value in by_path(alone).items():
        np.testing.assert_allclose(by_path(adapters)[name], value, rtol=1e-6, err_msg=name)
    assert any(np.asarray(x).any() for x in jax.tree.leaves(alone))


def test_a_size_that_does_not_divide_names_the_parameter(mesh):
    """Shapes alone tell, before anything is allocated."""
    odd = dataclasses.replace(
        DISTINCT_SIZES, text=dataclasses.replace(DISTINCT_SIZES.text, mlp_size=21)
    )
    with pytest.raises(DataError, match=r"(gate|up|down)_proj.*size 21"):
        variable_shardings(mesh, abstract_variables(Llava(odd))["params"])


def test_a_variable_without_names_is_refused(mesh):
    """It is not silently replicated."""
    boxed = abstract_variables(MODEL)["params"]
    boxed = dict(boxed) | {"extra": {"kernel": jax.ShapeDtypeStruct((4, 4), jnp.float32)}}
    with pytest.raises(DataError, match="extra/kernel: no logical dim names"):
        variable_shardings(mesh, boxed)


# --- optimiser state ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [{}, {"clip_norm": 1.0}, {"clip_norm": 1.0, "projector_lr": 2.0, "weight_decay": 0.1}],
    ids=["plain", "clipped", "projector"],
)
def test_optimiser_state_shards_like_its_parameter(mesh, adapters, options):
    """It holds for both moments of every parameter; counters are whole."""
    boxed = abstract_variables(MODEL)["params"]["projector"]
    projector = jax.tree.map(
        lambda leaf, sharding_: jax.device_put(np.ones(leaf.value.shape), sharding_),
        boxed,
        variable_shardings(mesh, boxed),
        is_leaf=lambda x: hasattr(x, "names"),
    )
    trainable = {"lora": adapters, "params": {"projector": projector}}
    state = init_state(Optim(lr=1.0, **options).make(10), mesh, trainable)
    parameters = by_path(trainable)
    assert len(parameters) > 10
    moments = {"mu": 0, "nu": 0}
    num_split = 0
    flat, _ = jax.tree_util.tree_flatten_with_path(state.opt_state)
    for path, leaf in flat:
        keys = [str(getattr(k, "key", getattr(k, "name", k))) for k in path]
        kind = next((k for k in keys if k in moments), None)
        if kind is None:
            assert leaf.ndim == 0, keys
            assert leaf.sharding == replicated(mesh)
            continue
        parameter = parameters["/".join(keys[keys.index(kind) + 1 :])]
        assert leaf.shape == parameter.shape
        assert leaf.sharding == parameter.sharding, keys
        num_split += not leaf.sharding.is_fully_replicated
        moments[kind] += 1
    assert moments == {"mu": len(parameters), "nu": len(parameters)}
    assert num_split > 10
    assert state.step.sharding == replicated(mesh)
    for name, leaf in by_path(state.trainable).items():
        assert leaf.sharding == parameters[name].sharding


def test_a_step_on_a_mesh_is_that_on_one_device(mesh):
    """Also with a learning rate of its own for the projector, weight decay and clipping."""
    boxed = {"lora": abstract_variables(MODEL)["lora"]}
    boxed["params"] = {"projector": abstract_variables(MODEL)["params"]["projector"]}
    rng = np.random.default_rng(0)
    values, gradient = (
        jax.tree.map(
            lambda leaf: rng.normal(size=leaf.value.shape).astype(np.float32),
            boxed,
            is_leaf=lambda x: hasattr(x, "names"),
        )
        for _ in range(2)
    )
    optim = Optim(
        lr=0.1, projector_lr=0.7, weight_decay=0.3, clip_norm=1.0, warmup_ratio=0.0,
        schedule="constant",
    )  # fmt: skip
    steps = []
    for devices in (mesh, MeshShape().make(jax.devices()[:1])):
        shardings = variable_shardings(devices, boxed)
        parameters, gradients = (jax.device_put(x, shardings) for x in (values, gradient))
        optimizer = optim.make(10)
        state = init_state(optimizer, devices, parameters)
        update, _ = jax.jit(optimizer.update)(gradients, state.opt_state, parameters)
        steps.append(by_path(update))
        num_split = sum(not x.sharding.is_fully_replicated for x in jax.tree.leaves(state))
        assert (num_split > 30) == (devices is mesh)
    split, whole = steps
    for name, leaf in whole.items():
        np.testing.assert_allclose(split[name], leaf, rtol=1e-5, atol=1e-7)
        rate = 0.7 if name.startswith("params/projector") else 0.1
        decay = 0.0 if name.endswith("bias") else 0.3
        value, slope = by_path(values)[name], by_path(gradient)[name]
        expected = -rate * (np.sign(slope) + decay * value)  # AdamW's first step
        np.testing.assert_allclose(leaf, expected, rtol=1e-3, atol=1e-3)


def test_what_mirrors_no_parameter_is_replicated(mesh):
    """A leaf whose path only looks alike is not split."""
    split = resolve(mesh, ("embed",), (4,), "w")
    found = state_shardings(
        mesh,
        {"mu": {"a": {"w": 0}, "w": 0}, "count": 0, "other": {"b": {"w": 0}}},
        {"a": {"w": split}},
    )
    assert found["mu"]["a"]["w"] == split
    for leaf in (found["mu"]["w"], found["count"], found["other"]["b"]["w"]):
        assert leaf == replicated(mesh)


# --- batches --------------------------------------------------------------------------------------


def test_rows_of_a_batch_are_split_over_data_and_fsdp(mesh):
    """The dim after the micro-batch is split; nothing is changed or reordered."""
    batch = {"x": np.arange(2 * 8 * 3).reshape(2, 8, 3), "y": np.arange(16).reshape(2, 8)}
    placed = put_batch(mesh, batch, leading=1)
    for name, leaf in placed.items():
        np.testing.assert_array_equal(leaf, batch[name])
        assert leaf.sharding == batch_sharding(mesh, 1)
        assert leaf.sharding.spec == PartitionSpec(None, ("data", "fsdp"))
        assert {s.data.shape[:2] for s in leaf.addressable_shards} == {(2, 2)}
    assert batch_sharding(mesh).spec == PartitionSpec(("data", "fsdp"))
