"""Every implementation of attention against the plain one, and which one is chosen where."""

import importlib
import importlib.util
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seva_jax.models import attention
from seva_jax.plan.chips import Topology
from seva_jax.sharding import MeshShape, batch_sharding
from seva_jax.training.step import tree_mask


def inputs(rows, length, heads, groups, width=128, seed=0):
    """Draws queries, keys and values, and masks of random trees."""
    rng = np.random.default_rng(seed)
    shapes = [(rows, length, n, width) for n in (heads, groups, groups)]
    values = [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]
    tree, branch = np.zeros((2, rows, length), np.int32)
    for row in range(rows):
        at, number, branches = 0, 0, 0
        while at < length - 20:
            number += 1
            trunk = rng.integers(8, length // 2)
            tree[row, at : at + trunk], at = number, at + trunk
            for _ in range(rng.integers(1, 4)):
                branches += 1
                size = rng.integers(4, length // 4)
                tree[row, at : at + size], branch[row, at : at + size] = number, branches
                at += size
    return values, tree_mask(jnp.asarray(tree), jnp.asarray(branch)), tree > 0


def assert_equal_plain(attend, length, heads, groups):
    """Compares values and gradients at real tokens."""
    values, mask, real = inputs(2, length, heads, groups)
    upstream = np.random.default_rng(9).normal(size=values[0].shape)
    upstream = jnp.asarray(upstream * real[..., None, None], jnp.float32)

    def loss(attend, values):
        out = attend(*values, mask)
        return (out * upstream).sum(), out * real[..., None, None]

    def run(attend):
        return jax.value_and_grad(lambda v: loss(attend, v), has_aux=True)(values)

    (_, expected), gradient = run(attention.plain)
    (_, found), ours = run(attend)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    for a, b in zip(ours, gradient, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


LENGTHS = [(128, 2, 2), (200, 4, 2), (320, 2, 1)]  # with query heads, key heads


@pytest.mark.parametrize(("length", "heads", "groups"), LENGTHS, ids=str)
def test_blocks_equal_plain(length, heads, groups):
    """It handles lengths that blocks do not divide, grouped heads and packed trees."""
    assert_equal_plain(attention.blocks, length, heads, groups)


@pytest.mark.slow
@pytest.mark.parametrize(("length", "heads", "groups"), LENGTHS, ids=str)
def test_splash_equals_plain(length, heads, groups):
    """The TPU's kernel, interpreted in Python here, equals plain attention."""

    def splash(*arguments):
        return attention.splash(*arguments, interpret=True)

    assert_equal_plain(splash, length, heads, groups)


@pytest.mark.parametrize("width", [64, 128])
def test_on_a_cpu_it_is_blocks(width):
    values, mask, _ = inputs(1, 256, 2, 2, width)
    found = jax.jit(attention.attend)(*values, mask)
    np.testing.assert_array_equal(found, jax.jit(attention.blocks)(*values, mask))
    plain = jax.jit(lambda *x: attention.attend(*x, "plain"))(*values, mask)
    np.testing.assert_array_equal(plain, jax.jit(attention.plain)(*values, mask))
    last = [values[0][:, -1:], *values[1:], mask[:, -1:]]  # decoding
    np.testing.assert_array_equal(attention.attend(*last), attention.plain(*last))


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="compiles with libtpu")
@pytest.mark.slow
@pytest.mark.parametrize("topology", ["v5e:2x2", "v5p:2x2x1", "v6e:2x2"])
def test_on_a_tpu_it_is_splash(topology):
    """Forward and backward compile with the kernel on any mesh, unless another one is asked for."""
    mesh = MeshShape(fsdp=2, tensor=2).make(Topology.parse(topology).devices())
    shape = jax.ShapeDtypeStruct((4, 960, 4, 128), jnp.bfloat16, sharding=batch_sharding(mesh))
    mask = jax.ShapeDtypeStruct((4, 960, 960), jnp.bool_, sharding=batch_sharding(mesh))

    def loss(kind, q, k, v, mask):
        return attention.attend(q, k, v, mask, kind).astype(jnp.float32).sum()

    for kind, expected in (("auto", True), ("plain", False)):
        gradient = jax.jit(jax.grad(loss, (1, 2, 3)), static_argnums=0)
        with jax.set_mesh(mesh):
            compiled = gradient.lower(kind, shape, shape, shape, mask).compile()
        assert ("tpu_custom_call" in compiled.as_text()) == expected


def gradient_of(attend, dtype, length=201):
    """Returns values and masks of two rows, and their attention's gradient at real tokens."""
    values, mask, real = inputs(2, length, 4, 2)
    upstream = np.random.default_rng(9).normal(size=values[0].shape) * real[..., None, None]

    def loss(q, k, v, mask):
        return (attend(q, k, v, mask).astype(jnp.float32) * upstream).sum()

    return jax.jit(jax.grad(loss, (0, 1, 2))), [x.astype(dtype) for x in values], mask


@pytest.fixture
def card(monkeypatch):
    """Returns a function that makes this machine one with GPUs of a compute capability.

    Programs can then be lowered for it, without a GPU.
    """

    def choose(capability, has_tokamax=False):
        monkeypatch.setattr(attention, "compute_capability", lambda: capability)
        monkeypatch.setattr(attention, "has_tokamax", lambda: has_tokamax)
        cudnn = importlib.import_module("jax._src.cudnn.fused_attention_stablehlo")

        def at_least(wanted):
            return capability >= tuple(map(int, wanted.split(".")))

        monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91100)
        monkeypatch.setattr(cudnn, "check_compute_capability", at_least)
        monkeypatch.setattr(cudnn, "is_cuda_compute_capability_equal", lambda capability: False)

    return choose


@pytest.fixture
def library(monkeypatch):
    """Stands in for tokamax: refuses what its kernels refuse, and computes with XLA.

    Returns the lengths that it was called with.
    """
    lengths = []

    @jax.jit
    def kernel_of_tokamax(query, key, value, mask):
        return jax.nn.dot_product_attention(query, key, value, mask=mask, implementation="xla")

    def dot_product_attention(query, key, value, *, mask, implementation):
        rows, length = query.shape[:2]
        assert implementation == "mosaic", "which falls back to nothing"
        assert mask.shape == (rows, 1, length, length)
        assert length % 64 == 0, "0.0.17: dimension 3 must have size a multiple of its tiling 64"
        lengths.append(length)
        return kernel_of_tokamax(query, key, value, mask)

    module = types.SimpleNamespace(dot_product_attention=dot_product_attention)
    monkeypatch.setitem(sys.modules, "tokamax", module)
    return lengths


@pytest.mark.parametrize(("length", "heads", "groups"), LENGTHS, ids=str)
def test_tokamax_gets_lengths_that_it_takes(library, length, heads, groups):
    """Rows are padded for its kernels, and values and gradients equal those of plain."""
    assert_equal_plain(attention.tokamax, length, heads, groups)
    assert set(library) == {-(-length // 128) * 128}


def test_tokamax_needs_no_padding_to_have_keys(library):
    """No query is left without keys, whose softmax some kernels make 0 / 0."""
    mask = attention._pad_mask(jnp.tril(jnp.ones((1, 5, 5), bool)), 3)
    expected = np.zeros((8, 8), bool)
    expected[:5, :5] = np.tril(np.ones((5, 5)))
    expected[[5, 6, 7], [5, 6, 7]] = True
    np.testing.assert_array_equal(mask[0], expected)


@pytest.mark.parametrize("kind", ["tokamax", "blocks"])
def test_kernels_run_on_a_mesh(library, kind):
    """Four devices, each with its rows and heads, give what one gives."""
    (q, k, v), mask, _ = inputs(4, 200, 4, 2)
    expected = attention.plain(q, k, v, mask)
    mesh = MeshShape(fsdp=2, tensor=2).make(jax.devices()[:4])
    with jax.set_mesh(mesh):
        rows = [jax.device_put(x, batch_sharding(mesh)) for x in (q, k, v, mask)]
        out = jax.jit(lambda *x: attention.attend(*x, kind))(*rows)
    np.testing.assert_allclose(out, expected, atol=1e-5)


# Compute capability, whether there is tokamax, dtype, head width, rows of 4 heads; the kernel.
CHOICES = [
    ((9, 0), True, "bfloat16", 128, 16, "tokamax"),
    ((9, 0), False, "bfloat16", 128, 16, "cudnn"),
    ((9, 0), True, "bfloat16", 128, 1, "cudnn"),  # too small for tokamax
    ((9, 0), True, "bfloat16", 256, 16, "cudnn"),
    ((9, 0), True, "bfloat16", 80, 16, "cudnn"),
    ((9, 0), True, "bfloat16", 36, 16, "blocks"),  # not a multiple of 8
    ((9, 0), True, "float32", 128, 16, "blocks"),
    ((9, 0), True, "float16", 64, 16, "tokamax"),
    ((10, 0), True, "bfloat16", 128, 16, "tokamax"),
    ((12, 0), True, "bfloat16", 128, 16, "cudnn"),  # a GeForce: no backward pass in tokamax
    ((8, 0), True, "bfloat16", 128, 16, "cudnn"),
    ((8, 0), True, "bfloat16", 256, 16, "blocks"),
    ((7, 5), True, "bfloat16", 128, 16, "blocks"),
    (None, True, "bfloat16", 128, 16, "blocks"),  # no GPU of NVIDIA's
]


@pytest.mark.parametrize(
    ("capability", "has_tokamax", "dtype", "width", "rows", "expected"), CHOICES, ids=str
)
def test_what_auto_takes_on_a_gpu(
    card, library, capability, has_tokamax, dtype, width, rows, expected
):
    """The program for GPUs has the kernel, forward and backward, and no other one."""
    card(capability, has_tokamax)
    query = jax.ShapeDtypeStruct((rows, 250, 4, width), dtype)
    key = jax.ShapeDtypeStruct((rows, 250, 2, width), dtype)
    mask = jax.ShapeDtypeStruct((rows, 250, 250), bool)

    def loss(*arguments):
        return attention.attend(*arguments).astype(jnp.float32).sum()

    traced = jax.jit(jax.grad(loss, (0, 1, 2))).trace(query, key, key, mask)
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert ("__cudnn$fmhaScaleBiasSoftmax(" in text) == (expected == "cudnn")
    assert ("__cudnn$fmhaScaleBiasSoftmaxBackward(" in text) == (expected == "cudnn")
    assert ("kernel_of_tokamax" in text) == (expected == "tokamax")
    # Nothing of it is in the program for CPUs.
    text = traced.lower(lowering_platforms=("cpu",)).as_text()
    assert "cudnn" not in text
    assert "kernel_of_tokamax" not in text


def test_auto_on_several_gpus(card, library):
    """What fills a card is counted for one device: 32 rows would fill one GPU, not each of four."""
    card((9, 0), has_tokamax=True)
    mesh = MeshShape(fsdp=2, tensor=2).make(jax.devices()[:4])
    large = jax.ShapeDtypeStruct((64, 250, 4, 128), jnp.bfloat16, sharding=batch_sharding(mesh))
    small = jax.ShapeDtypeStruct((32, 250, 4, 128), jnp.bfloat16, sharding=batch_sharding(mesh))
    for each, expected in ((large, "kernel_of_tokamax"), (small, "__cudnn$fmhaScaleBiasSoftmax(")):
        mask = jax.ShapeDtypeStruct((each.shape[0], 250, 250), bool, sharding=each.sharding)
        with jax.set_mesh(mesh):
            traced = jax.jit(attention.attend).trace(each, each, each, mask)
            text = traced.lower(lowering_platforms=("cuda",)).as_text()
        assert expected in text


def test_the_weakest_card_decides(monkeypatch):
    """All processes must compile one program, so capabilities are those of all GPUs of the run."""

    def gpus(*capabilities, version="cuda 13000"):
        client = types.SimpleNamespace(platform_version=version)
        return [
            types.SimpleNamespace(platform="gpu", client=client, compute_capability=each)
            for each in capabilities
        ]

    capability = attention.compute_capability.__wrapped__
    assert capability() is None  # the CPU devices of tests
    for devices, expected in [
        (gpus("9.0", "8.0"), (8, 0)),
        (gpus("10.0", "9.0"), (9, 0)),
        (gpus("gfx942", version="rocm 60300"), None),
    ]:
        monkeypatch.setattr(jax, "devices", lambda devices=devices: devices)
        assert capability() == expected


def test_has_tokamax_asks_for_a_version(monkeypatch):
    for version, expected in [
        ("0.0.12", False), ("0.0.17", True), ("0.0.18.dev20261026", True), ("0.1.0", True)
    ]:  # fmt: skip
        monkeypatch.setattr(attention, "version", lambda name, version=version: version)
        assert attention.has_tokamax.__wrapped__() == expected
    monkeypatch.undo()
    installed = importlib.util.find_spec("tokamax") is not None
    assert attention.has_tokamax.__wrapped__() == installed


def test_why_a_kernel_cannot_be_had(card):
    gpu = types.SimpleNamespace(platform="gpu", device_kind="NVIDIA A100")
    cpu = types.SimpleNamespace(platform="cpu", device_kind="cpu")

    def problem(kind, device=gpu, width=128):
        return attention.attention_problem(kind, device, width)

    card((8, 0), has_tokamax=True)
    assert [problem(kind) for kind in ("auto", "plain", "blocks", "cudnn")] == [""] * 4
    assert problem("cudnn", cpu) == "cudnn is for NVIDIA GPUs; these devices are cpus"
    assert problem("tokamax", cpu) == "tokamax is for NVIDIA GPUs; these devices are cpus"
    assert problem("cudnn", width=36) == (
        "cudnn does not take heads of width 36 on NVIDIA A100 (compute capability 8.0)"
    )
    assert "this is NVIDIA A100 (compute capability 8.0)" in problem("tokamax")
    card((9, 0), has_tokamax=False)
    assert "pip install 'seva_jax[gpu]'" in problem("tokamax")
    card((9, 0), has_tokamax=True)
    assert problem("tokamax") == ""
    assert "the width is 80" in problem("tokamax", width=80)


def test_cudnn_lowers_for_a_gpu(card):
    """Forward and backward become cuDNN's kernels, whatever this machine has."""
    card((9, 0))
    gradient, values, mask = gradient_of(lambda *x: attention.attend(*x, "cudnn"), jnp.bfloat16)
    text = gradient.trace(*values, mask).lower(lowering_platforms=("cuda",)).as_text()
    assert "__cudnn$fmhaScaleBiasSoftmax(" in text
    assert "__cudnn$fmhaScaleBiasSoftmaxBackward(" in text


@pytest.mark.skipif(importlib.util.find_spec("tokamax") is None, reason="needs the extra gpu")
@pytest.mark.parametrize(
    ("capability", "rows", "length"), [("9.0", 2, 201), ("9.0", 2, 896), ("10.0", 8, 250)], ids=str
)
def test_tokamax_lowers_for_a_gpu(monkeypatch, capability, rows, length):
    """The library's Mosaic kernels, forward and backward, take the arguments that they get.

    They are made for a card that is not here; older and newer versions are made for others.
    """
    import jax.extend.backend
    from tokamax._src import gpu_utils

    class Card:
        platform, device_kind, core_count = "gpu", "NVIDIA H100 80GB HBM3", 132

    Card.compute_capability = capability
    monkeypatch.setattr(jax.extend.backend, "get_default_device", Card)
    monkeypatch.setattr(gpu_utils, "_compute_capability", lambda device=None: float(capability))
    monkeypatch.setattr(gpu_utils, "has_mosaic_gpu_support", lambda device=None: True)
    query = jax.ShapeDtypeStruct((rows, length, 16, 128), jnp.bfloat16)
    key = jax.ShapeDtypeStruct((rows, length, 8, 128), jnp.bfloat16)
    mask = jax.ShapeDtypeStruct((rows, length, length), bool)

    def loss(*arguments):
        return attention.attend(*arguments, "tokamax").astype(jnp.float32).sum()

    for program, kernels in ((loss, 1), (jax.grad(loss, (0, 1, 2)), 3)):
        traced = jax.jit(program).trace(query, key, key, mask)
        text = traced.lower(lowering_platforms=("cuda",)).as_text()
        assert text.count("stablehlo.custom_call @mosaic_gpu") == kernels


@pytest.mark.skipif(jax.default_backend() != "gpu", reason="runs on an NVIDIA GPU")
@pytest.mark.parametrize("kind", ["blocks", "cudnn", "tokamax", "auto"])
@pytest.mark.parametrize("length", [201, 896])
def test_kernels_of_a_gpu_equal_plain(kind, length):
    """Gradients agree in bfloat16: `SEVA_JAX_TEST_PLATFORM=cuda pytest tests/test_attention.py`."""
    if problem := attention.attention_problem(kind, jax.devices()[0], 128):
        pytest.skip(problem)

    def attend(*arguments):
        return attention.attend(*arguments, kind)

    gradient, values, mask = gradient_of(attend, jnp.bfloat16, length)
    plain, exact, _ = gradient_of(attention.plain, jnp.float32, length)
    for found, expected in zip(gradient(*values, mask), plain(*exact, mask), strict=True):
        np.testing.assert_allclose(found.astype(jnp.float32), expected, atol=0.05)


@pytest.mark.parametrize("groups", [4, 2, 1])
@pytest.mark.parametrize("kind", ["float", "int8"])
def test_attention_to_a_cache_equals_plain(kind, groups):
    """Each row attends to its own slots, whose keys and values may be integers with scales."""
    rng = np.random.default_rng(0)
    rows, slots, heads, width = 3, 20, 4, 8
    query = rng.normal(size=(rows, 1, heads, width)).astype(np.float32)
    mask = rng.random((rows, 1, slots)) < 0.5
    mask[:, :, 3] = True
    shape = (slots, groups, rows, width)
    if kind == "int8":
        key, value = (rng.integers(-127, 128, shape).astype(np.int8) for _ in range(2))
        scales = [rng.uniform(0.005, 0.02, shape[:3]).astype(np.float32) for _ in range(2)]
        floats = [x * scale[..., None] for x, scale in zip((key, value), scales, strict=True)]
    else:
        key, value = (rng.normal(size=shape).astype(np.float32) for _ in range(2))
        scales, floats = [None, None], [key, value]
    found = jax.jit(attention.attend_cached)(query, key, value, *scales, mask)
    by_row = [x.transpose(2, 0, 1, 3) for x in floats]
    expected = attention.plain(query, *by_row, jnp.asarray(mask))
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5)


def test_no_dim_of_size_1_for_the_heads_of_a_group():
    """With it, the program for CPUs took twenty times as long where no heads share their keys."""
    query, cache = jnp.zeros((3, 1, 4, 8)), jnp.zeros((16, 4, 3, 8))
    scales, mask = jnp.zeros((16, 4, 3)), jnp.ones((3, 1, 16), bool)
    for more in ((None, None), (scales, scales)):
        program = jax.make_jaxpr(attention.attend_cached)(query, cache, cache, *more, mask)
        shapes = [x.aval.shape for equation in program.eqns for x in equation.outvars]
        assert (16, 4, 3, 8) in shapes
        assert max(map(len, shapes)) == 4
