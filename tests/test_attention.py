"""Every implementation of attention against the plain one, and which one is chosen where."""

import importlib
import importlib.util

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


def gradient_of(attend, dtype):
    """Returns values and masks of two rows of odd length, and their attention's gradient."""
    values, mask, real = inputs(2, 201, 4, 2)
    upstream = np.random.default_rng(9).normal(size=values[0].shape) * real[..., None, None]

    def loss(q, k, v, mask):
        return (attend(q, k, v, mask).astype(jnp.float32) * upstream).sum()

    return jax.jit(jax.grad(loss, (0, 1, 2))), [x.astype(dtype) for x in values], mask


def test_cudnn_lowers_for_a_gpu(monkeypatch):
    """Forward and backward become cuDNN's kernels, whatever this machine has."""
    stablehlo = importlib.import_module("jax._src.cudnn.fused_attention_stablehlo")
    monkeypatch.setattr(stablehlo, "check_cudnn_version", lambda: 91000)
    monkeypatch.setattr(stablehlo, "check_compute_capability", lambda capability: True)
    monkeypatch.setattr(stablehlo, "is_cuda_compute_capability_equal", lambda capability: False)
    gradient, values, mask = gradient_of(lambda *x: attention.attend(*x, "cudnn"), jnp.bfloat16)
    text = gradient.trace(*values, mask).lower(lowering_platforms=("cuda",)).as_text()
    assert "__cudnn$fmhaScaleBiasSoftmax(" in text
    assert "__cudnn$fmhaScaleBiasSoftmaxBackward(" in text


@pytest.mark.skipif(jax.default_backend() != "gpu", reason="runs on an NVIDIA GPU")
def test_cudnn_equals_plain():
    """Gradients agree in bfloat16. On a GPU: `SEVA_JAX_TEST_PLATFORM=cuda pytest ... -k cudnn`."""
    gradient, values, mask = gradient_of(attention.cudnn, jnp.bfloat16)
    plain, exact, _ = gradient_of(attention.plain, jnp.float32)
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
