"""Quantised frozen bases: what is stored, computed, trained and refused."""

import dataclasses
import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import qwix
from helpers_devices import mesh_of
from helpers_llava import random_params, write_llava
from helpers_train import small, table
from tiny_models import TINY_HF

from seva_jax import train
from seva_jax.bench.quant import measure
from seva_jax.config.experiment import Experiment, check
from seva_jax.config.options import ComputeOptions
from seva_jax.convert import load_params
from seva_jax.models import (
    Llava,
    LoraConfig,
    abstract_params,
    abstract_stored,
    abstract_variables,
    is_quantised,
    quantise,
    quantise_all,
)
from seva_jax.run.rollouts import RECORDS, read_rollouts
from seva_jax.runtime import files
from seva_jax.sharding import variable_shardings
from seva_jax.training.options import TrainOptions
from seva_jax.types import DataError

KERNELS = {f"{n}_proj" for n in ("q", "k", "v", "o", "gate", "up", "down")}
INPUTS = {
    "tokens_BS": np.arange(12)[None].repeat(2, 0) % 30 + 3,
    "positions_BS": np.arange(12)[None].repeat(2, 0),
    "mask_BSU": np.tril(np.ones((12, 12), bool))[None].repeat(2, 0),
    "patch_BS": np.full((2, 12), -1),
    "pixels_BIHWC": np.zeros((2, 0, 28, 28, 3), np.float32),
}


def scaled(config=TINY_HF):
    """Returns random parameters of the size that trained ones have."""
    return jax.tree.map(lambda x: jnp.asarray(x) * 0.2, random_params(config))


def stored(kind, params):
    boxed = abstract_stored(abstract_variables(Llava(TINY_HF))["params"], kind, "float32")
    return quantise_all(params, kind, variable_shardings(mesh_of(), boxed))


def dequantised(params):
    return jax.tree.map(
        lambda x: qwix.dequantize(x) if is_quantised(x) else x, params, is_leaf=is_quantised
    )


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_which_parameters_and_how_close(kind):
    params = scaled()
    found = stored(kind, params)
    layers = found["language"]["layers"]
    assert {n for n, x in layers.items() if is_quantised(x.get("kernel"))} == KERNELS
    assert sum(is_quantised(x) for x in jax.tree.leaves(found, is_leaf=is_quantised)) == 7
    for name in KERNELS:
        kernel, old = (
            layers[name]["kernel"],
            np.asarray(params["language"]["layers"][name]["kernel"]),
        )
        assert kernel.qvalue.shape == old.shape
        assert kernel.scale.dtype == jnp.float32
        assert kernel.qvalue.dtype == (jnp.int8 if kind == "int8" else jnp.uint4)
        new = np.asarray(qwix.dequantize(kernel))
        tile = old.shape[1] if kind == "int8" else min(64, old.shape[1])
        size = np.abs(old).reshape(len(old), -1, tile, old.shape[2]).max(2)
        assert kernel.scale.shape == size.shape
        # Half of the widest gap between neighbouring levels, of the largest weight of the block.
        gap = {"int8": 1 / 127, "nf4": 1 - 0.6961928}[kind]
        bound = (size * gap / 2).repeat(tile, 1) * 1.001
        assert (np.abs(new - old) <= bound).all()
        assert np.abs(new - old).max() > bound.max() / 4  # it is no coarser than it says, nor finer


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_it_computes_what_the_dequantised_model_does(kind):
    found = stored(kind, scaled())
    model = Llava(TINY_HF)
    ours = model.apply({"params": found}, **INPUTS)
    expected = model.apply({"params": dequantised(found)}, **INPUTS)
    np.testing.assert_allclose(ours, expected, atol=1e-5, rtol=1e-5)
    exact = model.apply({"params": scaled()}, **INPUTS)
    error = float(jnp.linalg.norm(ours - exact) / jnp.linalg.norm(exact))
    assert error < {"int8": 0.02, "nf4": 0.2}[kind]  # measured .004 and .06


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_loading_onto_a_mesh(tmp_path, kind):
    """Loading equals quantising afterwards, sharded or not; scales are split like their kernels."""
    directory = write_llava(tmp_path)
    expected = stored(kind, jax.tree.map(jnp.asarray, random_params(TINY_HF)))
    equal = lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b))  # noqa: E731
    jax.tree.map(equal, load_params(directory, TINY_HF, base_weights=kind), expected)
    boxed = abstract_stored(abstract_variables(Llava(TINY_HF))["params"], kind, "float32")
    shardings = variable_shardings(mesh_of(fsdp=2, tensor=2), boxed)
    loaded = load_params(directory, TINY_HF, "float32", shardings, base_weights=kind)
    jax.tree.map(equal, loaded, expected)
    kernel = loaded["language"]["layers"]["q_proj"]["kernel"]
    assert kernel.qvalue.sharding.spec[-1] == kernel.scale.sharding.spec[-1] == "tensor"


def test_tiles_that_a_mesh_cannot_split():
    text = dataclasses.replace(TINY_HF.text, hidden_size=192)
    model = Llava(dataclasses.replace(TINY_HF, text=text))
    boxed = abstract_stored(abstract_variables(model)["params"], "nf4", "float32")
    with pytest.raises(
        DataError, match=r"kernel/scale: dim 1 \('embed', size 3\).*'fsdp' of size 2"
    ):
        variable_shardings(mesh_of(fsdp=2), boxed)


def test_float_is_left_alone():
    boxed = abstract_variables(Llava(TINY_HF))["params"]
    assert abstract_stored(boxed, "float", "float32") == boxed
    kernel = jnp.ones((2, 4, 4))
    assert quantise("language/layers/q_proj/kernel", kernel, "float") is kernel
    assert quantise("vision/layers/q_proj/kernel", kernel, "int8") is kernel
    assert quantise("language/head", kernel, "int8") is kernel


def test_gradients_reach_adapters_and_nothing_quantised():
    lora = LoraConfig(rank=2, alpha=4.0, targets=("q_proj", "down_proj"))
    model = Llava(TINY_HF, lora=lora)
    shapes = abstract_variables(model)["lora"]
    lora_params = jax.tree.map(
        lambda x: jnp.full(x.value.shape, 0.1), shapes, is_leaf=lambda x: hasattr(x, "names")
    )
    for kind in ("int8", "nf4"):
        params = stored(kind, scaled())
        grads = {}
        for name, base in (("quantised", params), ("floats", dequantised(params))):

            def loss(lora_params, base=base):
                return (model.apply({"params": base, "lora": lora_params}, **INPUTS) ** 2).sum()

            grads[name] = jax.grad(loss)(lora_params)
        largest = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(grads["floats"]))
        assert largest > 0
        equal = functools.partial(np.testing.assert_allclose, atol=1e-5 * largest, rtol=1e-4)
        jax.tree.map(equal, grads["quantised"], grads["floats"])


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_what_cannot_be(kind, monkeypatch):
    compute = ComputeOptions(base_weights=kind)
    options = TrainOptions(trained=("language",))
    experiment = Experiment(compute=compute, train=options, lora=LoraConfig(rank=0))
    with pytest.raises(DataError, match=f"base_weights {kind} freezes the language model"):
        check(experiment)
    check(Experiment(compute=compute))
    monkeypatch.setitem(sys.modules, "qwix", None)
    with pytest.raises(DataError, match=r"pip install 'seva_jax\[quant\]'"):
        check(Experiment(compute=compute))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_a_whole_run(tmp_path, four_devices, kind):
    """Rollouts with a cache, reference, training and evaluation work on four devices."""
    experiment = small(tmp_path / "run", "--compute.base-weights", kind)
    experiment = dataclasses.replace(
        experiment, corrupt=experiment.corrupt[:1], train=dataclasses.replace(
            experiment.train, trained=("lora", "projector"))
    )  # fmt: skip
    out = train.run(experiment, table=table(before={"pairs": answers}))
    rows = [r for r in out.ctx.workdir.read_metrics() if r["stage"] == "align"]
    assert abs(rows[0]["loss"] - np.log(2)) < 1e-6
    assert rows[-1]["loss"] != rows[0]["loss"]
    base, aligned = out.base, out.aligned["params"]
    assert is_quantised(base["language"]["layers"]["q_proj"]["kernel"])
    jax.tree.map(np.testing.assert_array_equal, aligned["language"], base["language"])
    jax.tree.map(np.testing.assert_array_equal, aligned["vision"], base["vision"])
    kernels = (np.asarray(x["projector"]["linear_1"]["kernel"]) for x in (base, aligned))
    assert np.abs(np.subtract(*kernels)).max() > 1e-4


def answers(ctx):
    """Writes rollouts that differ."""
    workdir = ctx.workdir.path
    records = read_rollouts(workdir)
    for record in records:
        record["clean"], record["corrupted"] = "red", ["blue"]
    files.write_records(workdir / RECORDS, records)


def test_memory_by_the_compiler():
    """The compiled program's weights take exactly the bytes that they have."""
    model = Llava(TINY_HF, dtype=jnp.dtype("bfloat16"))
    shapes = abstract_params(model)
    num = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    kernels = [shapes["language"]["layers"][name]["kernel"] for name in KERNELS]
    num_quantised = sum(kernel.size for kernel in kernels)
    scales = sum(kernel.size // kernel.shape[1] for kernel in kernels)  # one tile each
    rest = 2 * (num - num_quantised) + 4 * scales
    expected = {
        "float32": 4 * num,
        "bfloat16": 2 * num,
        "int8": num_quantised + rest,
        "nf4": num_quantised // 2 + rest,
    }
    for kind, size in expected.items():
        assert measure(model, kind, jax.devices()[0])[0] == size, kind
