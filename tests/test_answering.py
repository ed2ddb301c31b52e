"""A model answers on a mesh of its own: which, what it takes, and that the move is exact."""

import dataclasses
import gc
import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import helpers_rollout
import helpers_run
import jax
import numpy as np
import pytest
from helpers_devices import MODEL, mesh_of, placed
from helpers_rollout import PROMPTS, SAMPLING, prompt_set
from helpers_run import environment
from tiny_models import EIGHT_HEADS, TINY, noisy_variables, random_variables

from seva_jax.config import (
    Experiment,
    fingerprint,
    flatten,
    is_within,
    with_defaults,
    without_effect,
)
from seva_jax.config.options import RolloutOptions
from seva_jax.inference import answering, answering_layout
from seva_jax.inference.answering import answering_form, answering_variables
from seva_jax.inference.answering_layout import (
    AnsweringNeeds,
    answering_needs,
    choose_tensor,
    dividing_tensors,
    fitting_tensor,
    possible_tensors,
    require_tensor,
    tensor_sizes,
)
from seva_jax.models import (
    LLAVA_15,
    Llava,
    abstract_params,
    abstract_stored,
    abstract_variables,
    quantise_all,
    unstack,
)
from seva_jax.plan.chips import Topology
from seva_jax.plan.published import PUBLISHED
from seva_jax.sharding import (
    LOGICAL_AXES,
    MeshShape,
    answering_mesh,
    process_row_share,
    variable_shardings,
)
from seva_jax.training.memory import bytes_on_a_device, tower_scores
from seva_jax.types import DataError

SEVEN_B = LLAVA_15["7b"]
GIB = 2**30
ROOT = Path(__file__).parent.parent


def test_the_mesh_of_answers():
    """All devices in groups that follow each other; on a TPU, compact parts of the slice."""
    training = mesh_of(2, 2, 2)
    for tensor in (1, 2, 4, 8):
        found = answering_mesh(training, tensor)
        assert dict(found.shape) == {"data": 8 // tensor, "fsdp": 1, "tensor": tensor}
        assert list(found.devices.flat) == list(training.devices.flat)
    assert answering_mesh(mesh_of(4, 1, 2), 2) == mesh_of(4, 1, 2)


@pytest.mark.parametrize("mesh", [(1, 16, 1), (4, 4, 1), (2, 2, 4)], ids=str)
def test_groups_are_compact_parts_of_a_slice(mesh):
    """All hops between devices of a group are links, also where training follows a ring."""
    pytest.importorskip("libtpu")
    training = MeshShape(*mesh).make(Topology.parse("v5e:4x4").devices())
    for tensor, sides, shares in ((2, [1, 2], 4), (4, [1, 4], 2), (8, [2, 4], 2), (16, [4, 4], 1)):
        found = answering_mesh(training, tensor)
        assert set(found.devices.flat) == set(training.devices.flat)
        for group in found.devices.reshape(-1, tensor):
            coords = np.array([device.coords for device in group])
            assert sorted(np.ptp(coords, axis=0) + 1)[1:] == sides
        assert process_row_share(found)[1] == shares  # four hosts of 2 x 2 chips


def test_what_tensor_splits_is_in_the_one_table():
    names = {name for name, axis in LOGICAL_AXES.items() if axis == "tensor"}
    assert set(tensor_sizes(SEVEN_B)) == names - {"vocab"}  # which may be any number
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


@pytest.mark.parametrize("tiles", [1, 13])
def test_scores_of_the_tower_are_counted(tiles):
    """InternVL3-8B: 16 heads x 1,025^2 scores in float32, and their softmax in bfloat16."""
    model = Llava(PUBLISHED["internvl3-8b"].config, dtype=jax.numpy.bfloat16)
    scores = 16 * 1025**2 * (4 + 2)
    assert tower_scores(model.config, model.dtype) == scores
    few, more = (
        answering_needs(model, 4, rows=8, fresh=4, prompt=64, new=8, tiles=n) for n in (0, tiles)
    )
    assert more.fresh_row - few.fresh_row == tiles * scores  # tensor splits heads
    assert (
        few.on_a_device(1) + tiles * scores
        < more.on_a_device(1)
        < few.on_a_device(1) + 2 * (tiles * scores)
    )


def test_scores_are_those_of_the_compiled_tower():
    """The program of the tower takes them, and little else where patches are many."""
    vision = dataclasses.replace(TINY.vision, image_size=64, patch_size=2)  # 1,025 places
    model = Llava(dataclasses.replace(TINY, vision=vision))
    params = {"vision": abstract_params(model)["vision"]}
    tiles = jax.ShapeDtypeStruct((1, 3, 64, 64, 3), np.float32)
    run = jax.jit(lambda params, x: model.apply({"params": params}, x, method="features"))
    stats = run.lower(params, tiles).compile().memory_analysis()
    assert stats is not None
    counted = 3 * tower_scores(model.config, model.dtype)
    assert 0.4 * counted < stats.temp_size_in_bytes < 1.6 * counted


def test_as_much_cache_as_weights():
    """The smallest number whose part of the weights is no more than its caches, if it fits."""
    weights = {1: 14 * GIB, 2: 7 * GIB, 4: 4 * GIB, 8: 2 * GIB}
    needs = AnsweringNeeds(8, 64, 16, row=0.5 * GIB, fresh_row=0.0, fresh_row_whole=0.0)
    assert [needs.cache(t) for t in weights] == [4 * GIB] * 4
    assert choose_tensor(weights, needs, 0, 80 * GIB) == 4
    many, few = needs._replace(rows=256), needs._replace(rows=8)
    assert choose_tensor(weights, many, 0, 80 * GIB) == 1
    assert choose_tensor(weights, many, 0, 30 * GIB / 0.94 - 1) == 2
    assert choose_tensor(weights, many, 4 * GIB, 26 * GIB) == 4
    assert choose_tensor(weights, few, 0, 80 * GIB) == 8
    # Where starting rows takes more in larger groups, the larger ones may not fit.
    wide = few._replace(fresh_row_whole=GIB)
    assert [wide.on_a_device(t) / GIB for t in weights] == [2.5, 4.5, 8.5, 16.5]
    assert choose_tensor(weights, wide, 0, 13 * GIB) == 2  # 7 + 4.5, and 4 + 8.5 > 12.2
    assert choose_tensor(weights, needs, 99 * GIB, 16 * GIB) == 8  # none fits


@pytest.mark.parametrize("rows", [1, 16, 64, 256, 1024])
@pytest.mark.parametrize("num", [1, 4, 16, 64])
@pytest.mark.parametrize("limit", [16, 24, 80])
def test_no_other_number_reads_half_as_much(num, rows, limit):
    """A token costs at most twice the bytes of any other layout that fits."""
    model = Llava(SEVEN_B, dtype=jax.numpy.bfloat16)
    needs = answering_needs(model, num, rows=rows, fresh=max(rows // 4, 1), prompt=672, new=512)
    weights = {t: 13.5 * GIB / t for t in dividing_tensors(SEVEN_B, num)}
    chosen = choose_tensor(weights, needs, 0, limit * GIB)
    fitting = [t for t in weights if weights[t] + needs.on_a_device(t) <= 0.94 * limit * GIB]
    read = {t: weights[t] + needs.cache(t) for t in fitting}
    assert not fitting or read[chosen] <= 2 * min(read.values())
    assert all(weights[t] > needs.cache(t) for t in fitting if t < chosen)


def test_the_option_changes_no_fingerprint():
    """Answers are the same on any layout, so finished stages and work directories stay valid."""
    assert fingerprint(RolloutOptions(tensor=4)) == fingerprint(RolloutOptions())
    config = Experiment(rollout=RolloutOptions(tensor=4))
    recorded, wanted = flatten(Experiment()), flatten(config)
    del recorded["rollout.tensor"]  # as version 0.4 wrote it
    assert is_within("rollout.tensor", without_effect(config))
    assert with_defaults(recorded, wanted, config)["rollout.tensor"] == 0


# --- the move -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def variables():
    """Returns random weights of `MODEL`, as NumPy arrays that can be put on any mesh."""
    return jax.tree.map(np.asarray, random_variables(MODEL))


def assert_equal(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def in_another_order(mesh, tensor):
    """Returns a mesh for answers as a TPU slice may have it."""
    order = mesh.devices.flatten()[[0, 1, 4, 5, 7, 6, 3, 2]]
    return jax.sharding.Mesh(order.reshape(-1, 1, tensor), mesh.axis_names)


def never(self):
    raise AssertionError("an array was copied to the host")


@pytest.mark.parametrize(
    ("shape", "tensor"),
    [
        ((1, 8, 1), 1),
        ((1, 8, 1), 4),
        ((1, 8, 1), 8),
        ((2, 2, 2), 4),
        ((1, 1, 8), 2),
        ((1, 1, 1), 1),
    ],
    ids=str,
)
def test_the_move_is_exact(shape, tensor, variables):
    """Every value arrives, split as the one table says; nothing goes through the host."""
    mesh, there = placed(shape, variables)
    with mock.patch("jax._src.array.ArrayImpl._value", property(never)):
        form = answering_form(MODEL, there, mesh, tensor)
        jax.block_until_ready(form.variables)
    assert dict(form.mesh.shape) == {"data": mesh.size // tensor, "fsdp": 1, "tensor": tensor}
    assert not form.model.stacked
    assert_equal(form.variables, unstack(MODEL, variables)[1])
    assert_equal(there, variables)  # what training goes on with
    expected = variable_shardings(form.mesh, unstack(MODEL, abstract_variables(MODEL))[1])
    for leaf, sharding in zip(*map(jax.tree.leaves, (form.variables, expected)), strict=True):
        assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim)
    kernel = form.variables["params"]["language"]["layers_1"]["up_proj"]["kernel"]
    assert kernel.addressable_shards[0].data.shape == (16, 32 // tensor)


@pytest.mark.parametrize("tensor", [1, 2, 8])
def test_another_order_of_devices(tensor, variables, monkeypatch):
    """As on a TPU slice; nothing goes through the host then either."""
    mesh, there = placed((1, 8, 1), variables)
    monkeypatch.setattr(answering, "answering_mesh", in_another_order)
    with mock.patch("jax._src.array.ArrayImpl._value", property(never)):
        form = answering_form(MODEL, there, mesh, tensor)
        jax.block_until_ready(form.variables)
    assert_equal(form.variables, unstack(MODEL, variables)[1])
    assert_equal(there, variables)
    for leaf in jax.tree.leaves(form.variables):
        assert list(leaf.sharding.mesh.devices.flat) == list(form.mesh.devices.flat)


def test_what_is_in_its_place_is_not_copied(variables):
    mesh, there = placed((1, 1, 1), variables)
    form = answering_form(MODEL, there, mesh, 1)
    for name in ("embedding", "norm", "head"):
        there["params"][name] = there["params"]["language"][name]
        form.variables["params"][name] = form.variables["params"]["language"][name]
    for name in ("embedding", "norm", "head", "vision", "projector"):
        both = (form.variables["params"][name], there["params"][name])
        for found, leaf in zip(*map(jax.tree.leaves, both), strict=True):
            assert found is leaf


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_quantised_kernels_move(kind):
    """The 4 or 8 bits and their scales arrive as they are."""
    pytest.importorskip("qwix")
    model, mesh = Llava(EIGHT_HEADS), mesh_of(1, 4, 1)
    boxed = abstract_variables(model)["params"]
    stored = variable_shardings(mesh, abstract_stored(boxed, kind, "float32"))
    there = {"params": quantise_all(random_variables(model)["params"], kind, stored)}
    form = answering_form(model, there, mesh, 2 if kind == "int8" else 1)
    assert_equal(form.variables, unstack(model, there)[1])


def test_adapters_move_alone_and_without_compiling(variables, caplog):
    """As they do between updates of a policy that answers while it is trained."""
    mesh, there = placed((1, 8, 1), variables)
    form = answering_form(MODEL, there, mesh, 4)
    newer = jax.tree.map(lambda x: 2 * x, there["lora"])
    jax.block_until_ready(newer)
    with jax.log_compiles():
        moved = answering_variables(MODEL, {"lora": newer}, form.mesh)
    assert not [r for r in caplog.records if "Compiling" in r.message]
    assert_equal(moved, jax.tree.map(lambda x: 2 * x, {"lora": form.variables["lora"]}))
    kernel = form.variables["params"]["language"]["layers_0"]["q_proj"]["kernel"]
    adapter = moved["lora"]["language"]["layers_0"]["q_proj"]["b"]
    assert adapter.sharding.mesh == kernel.sharding.mesh == form.mesh


@pytest.mark.parametrize("tensor", [2, 4, 8])
def test_a_layer_moves_in_little_memory(tensor, variables):
    """Besides both layouts the program takes at most one layer in full."""
    mesh, there = placed((1, 8, 1), variables)
    stacks = there["params"]["language"]["layers"]
    form = answering_form(MODEL, there, mesh, tensor)
    layer = form.variables["params"]["language"]["layers_0"]
    shardings = jax.tree.map(lambda x: x.sharding, layer)
    program = jax.jit(answering._layer, out_shardings=shardings).lower(stacks, np.int32(0))
    whole = sum(x.nbytes for x in jax.tree.leaves(layer))
    stats = program.compile().memory_analysis()
    assert stats is not None
    assert stats.temp_size_in_bytes < 1.1 * whole


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (3, "must divide the 8 device.s. and what it splits of the model: heads 4, kv_heads 2"),
        (4, "kv_heads 2, mlp 32, .*; set --rollout.tensor to one of 1, 2, 0"),
        (16, "must divide the 8 device.s."),
    ],
)
def test_sizes_that_do_not_divide(tensor, message):
    model = Llava(TINY)
    shapes = {"params": abstract_params(model)}
    require_tensor(model, shapes, mesh_of(1, 8, 1), 2)
    with pytest.raises(DataError, match=message):
        require_tensor(model, shapes, mesh_of(1, 8, 1), tensor)


# --- an engine ------------------------------------------------------------------------------------

EIGHT = Llava(
    dataclasses.replace(
        EIGHT_HEADS,
        image_token_id=helpers_rollout.IMAGE,
        text=dataclasses.replace(EIGHT_HEADS.text, vocab_size=32),
    )
)


def engine(values, mesh, **options):
    """Makes an engine whose model is laid out as for training."""
    made = helpers_rollout.engine(None, mesh=mesh, **options)
    if not isinstance(jax.tree.leaves(values)[0], jax.Array):
        values = jax.device_put(values, variable_shardings(made.mesh, abstract_variables(EIGHT)))
    return dataclasses.replace(made, model=EIGHT, variables=values)


def answers(one, num=9):
    asked = one.answer(prompt_set(PROMPTS[:num]), SAMPLING)
    return [a.answers for a in itertools.chain(*asked)]


def eight_variables():
    """Returns weights with which answers differ in content and in length."""
    return jax.tree.map(np.asarray, noisy_variables(EIGHT))


@pytest.fixture(scope="module")
def eight():
    """Returns these weights."""
    return eight_variables()


@pytest.fixture(scope="module")
def expected(eight):
    """Returns the answers of one device."""
    found = answers(engine(eight, (1, 1, 1)))
    assert len(set(found)) > 5
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mesh", "tensor"),
    [((1, 8, 1), 8), ((1, 8, 1), 4), ((1, 8, 1), 0), ((2, 2, 2), 2), ((8, 1, 1), 8)],
    ids=str,
)
def test_answers_on_any_layout(mesh, tensor, eight, expected):
    """Sampled answers agree whatever the layouts of training and answering are."""
    assert answers(engine(eight, mesh, tensor=tensor)) == expected


def test_a_layout_for_the_memory_there_is(eight, monkeypatch, capsys):
    """The choice counts weights of both layouts; too little of it is said."""
    one = engine(eight, (1, 8, 1))
    weights = possible_tensors(EIGHT, one.variables, one.mesh)
    assert fitting_tensor(EIGHT, one.variables, one.mesh, NOTHING, 0) == 1
    # With as much cache as weights, it is the smallest number that fits.
    kept, needs = bytes_on_a_device(one.variables), NOTHING._replace(row=weights[1])
    for tensor, size in weights.items():
        total = kept + size + weights[1]
        monkeypatch.setattr(answering_layout, "device_limit", lambda total=total: total / 0.94 + 9)
        assert fitting_tensor(EIGHT, one.variables, one.mesh, needs, 0) == tensor
    assert not capsys.readouterr().out
    monkeypatch.setattr(answering_layout, "device_limit", lambda: kept)
    assert fitting_tensor(EIGHT, one.variables, one.mesh, needs, 0) == 8
    assert "warning: answering takes about" in capsys.readouterr().out


NOTHING = AnsweringNeeds(8, 8, 8, 0.0, 0.0, 0.0)


def test_an_engine_moves_once_and_frees_its_copy(eight):
    one = engine(eight, (1, 2, 1), tensor=2)
    gc.collect()
    before = sum(x.nbytes for x in jax.live_arrays())
    with mock.patch.object(answering, "answering_variables", wraps=answering_variables) as moves:
        first = answers(one, 4)
        assert answers(one, 4) == first
    assert moves.call_count == 1
    gc.collect()
    layers = sum(x.nbytes for x in jax.tree.leaves(one.variables["params"]["language"]["layers"]))
    assert sum(x.nbytes for x in jax.live_arrays()) > before + layers
    one = dataclasses.replace(one, batch_size=4)  # the old one is gone
    gc.collect()
    assert sum(x.nbytes for x in jax.live_arrays()) <= before + 1000


def test_one_device_too_small_for_both_forms(eight, expected, monkeypatch):
    """The layers are there once, whenever the engine has them and afterwards; answers agree."""
    one = engine(eight, (1, 1, 1))
    other = {"params": dict(one.variables["params"])}  # the base, beside adapters
    layers = one.variables["params"]["language"]["layers"]
    size = bytes_on_a_device(jax.tree.map(lambda x: x["language"]["layers"], one.variables,
                                          is_leaf=lambda x: "language" in x))  # fmt: skip
    before = bytes_alive()

    def ask():
        found, most = [], []
        for batch in one.answer(prompt_set(PROMPTS[:9]), SAMPLING):
            found += [answered.answers for answered in batch]
            most.append(bytes_alive())
            assert all(leaf.is_deleted() for leaf in jax.tree.leaves(layers)) == crowded
        return found, max(most)

    crowded = False
    found, most = ask()
    assert found == expected
    assert most >= before + size  # the layers twice, and caches
    one._moved.clear()
    crowded = True
    kept = bytes_on_a_device(one.variables)
    monkeypatch.setattr(answering_layout, "device_limit", lambda: kept / 0.94)
    found, least = ask()
    assert found == expected
    assert least <= most - size
    assert bytes_alive() <= before + 1000
    for tree in (one.variables, other):
        language = tree["params"]["language"]
        assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(language))
    jax.tree.map(np.testing.assert_array_equal, one.variables, eight)
    # Again, and a consumer that stops in between.
    layers = one.variables["params"]["language"]["layers"]
    assert ask()[0] == expected
    started: Any = one.answer(prompt_set(PROMPTS[:9]), SAMPLING)
    next(started)
    started.close()
    jax.tree.map(np.testing.assert_array_equal, one.variables, eight)


@pytest.mark.slow
def test_a_run_on_a_device_too_small_for_both_forms(whole_run, tmp_path):
    """Every stage that asks the model gives the layers back, and the run is the same."""
    crowded = {"CROWDED": "1"}
    with helpers_run.train(whole_run / "cache", tmp_path / "run", env=crowded) as run:
        assert run.status() == 0, run.output[-3000:]
    helpers_run.assert_same_run(tmp_path / "run", whole_run / "run")


def bytes_alive():
    gc.collect()
    return sum(x.nbytes for x in jax.live_arrays())


@pytest.mark.slow
def test_two_processes(tmp_path, expected):
    """Arrays move between them, in any order of devices, and all groups answer the same."""
    command = [
        *(sys.executable, ROOT / "launch" / "local.py", "--processes", 2, "--devices", 4, "--"),
        *(sys.executable, ROOT / "tests" / "lean.py", "answering_worker", tmp_path / "answers"),
    ]
    done = subprocess.run(
        list(map(str, command)), env=environment(), capture_output=True, text=True, timeout=300,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    given = json.loads((tmp_path / "answers").read_text())
    assert given == [[list(texts) for texts in expected]] * 3
