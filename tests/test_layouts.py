"""One program on any mesh gives the same loss, gradients and answers."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers_devices import MODEL, placed
from helpers_trees import OPTIONS, example, pack, shape_of
from tiny_models import random_variables

from seva_jax.inference.sampler import PromptBatch, generate
from seva_jax.models import unstack
from seva_jax.objectives import DPO
from seva_jax.sharding import process_row_share, put_batch
from seva_jax.text.sampling import Sampling
from seva_jax.training.step import TrainState, TrainStep
from seva_jax.types import DataError

MESHES = [(2, 1, 1), (1, 2, 1), (1, 1, 2), (2, 2, 1), (8, 1, 1), (1, 8, 1), (2, 2, 2), (1, 1, 8)]


@pytest.fixture(scope="module")
def variables():
    """Returns random weights of `MODEL`, as NumPy arrays that can be put on any mesh."""
    return jax.tree.map(np.asarray, random_variables(MODEL))


def step(shape, variables, num=8, micro_batches=1):
    """Returns metrics, and the gradients of adapters and projector, of a step on a mesh."""
    rng = np.random.default_rng(0)
    examples = [example(rng, num_images=i % 3, index=i, weight=1 + i % 2) for i in range(num)]
    batch = pack([[e] for e in examples], shape_of(examples))
    batch = batch._replace(ref_BCKT=-2.0 * batch.mask_BCKT)
    mesh, variables = placed(shape, variables)
    trainable = {
        "lora": variables["lora"],
        "params": {"projector": variables["params"]["projector"]},
    }
    frozen = {"params": variables["params"]}
    optimizer = optax.sgd(1.0)
    state = TrainState(jnp.int32(0), trainable, optimizer.init(trainable))
    run = jax.jit(TrainStep(MODEL, DPO(beta=0.5), optimizer, OPTIONS, False))
    batch = jax.tree.map(lambda x: x.reshape(micro_batches, -1, *x.shape[1:]), batch)
    with jax.set_mesh(mesh):
        new, metrics = run(state, frozen, put_batch(mesh, batch, leading=1))
    gradient = jax.tree.map(
        lambda old, new: np.asarray(old) - np.asarray(new), trainable, new.trainable
    )
    return jax.device_get(metrics), gradient


@pytest.fixture(scope="module")
def alone(variables):
    """Returns the result of that step on one device."""
    return step((1, 1, 1), variables)


def assert_same(found, expected):
    """Asserts that metrics and gradients agree within 1e-6."""
    for name, value in expected[0].items():
        np.testing.assert_allclose(found[0][name], value, rtol=1e-6, atol=1e-6, err_msg=name)
    # In float32 a sum in another order is off by a few ulps of its largest term.
    largest = max(np.abs(x).max() for x in jax.tree.leaves(expected[1]))
    assert largest > 1e-2
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-6 * max(largest, 1)),
        found[1],
        expected[1],
    )


@pytest.mark.slow
@pytest.mark.parametrize("shape", MESHES, ids=str)
def test_loss_and_gradient(shape, variables, alone):
    assert_same(step(shape, variables), alone)


@pytest.mark.slow
def test_accumulation_and_devices_change_nothing(variables):
    """64 pairs may be one batch, 2 x 32 or 8 x 8 accumulated, or 8 on each of 8 devices."""
    whole = step((1, 1, 1), variables, num=64)
    for shape, micro_batches in (((1, 1, 1), 2), ((1, 1, 1), 8), ((8, 1, 1), 1), ((2, 2, 1), 2)):
        assert_same(step(shape, variables, 64, micro_batches), whole)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(8, 1, 1), (1, 8, 1), (2, 2, 2), (1, 1, 8)], ids=str)
def test_answers(shape, variables):
    """Greedy and sampled answers agree token for token."""
    rng = np.random.default_rng(3)
    tokens = rng.integers(5, 40, (8, 9)).astype(np.int32)
    mask = np.arange(9) < rng.integers(2, 10, 8)[:, None]
    patch = np.full_like(tokens, -1)
    batch = PromptBatch(tokens, mask, patch, np.zeros((8, 0, 8, 8, 3), np.float32))
    key_data = np.asarray(jax.random.key_data(jax.random.split(jax.random.key(5), 8)))
    for sampling in (Sampling(6), Sampling(6, temperature=1.0, top_p=0.9)):
        found = []
        for size in ((1, 1, 1), shape):
            mesh, on_mesh = placed(size, variables)
            placed_batch, keys = put_batch(mesh, (batch, key_data))
            keys = jax.random.wrap_key_data(keys)
            with jax.set_mesh(mesh):
                model, separate = unstack(MODEL, on_mesh)
                out = generate(model, separate, placed_batch, keys, sampling, (2,), 0)
            found.append(np.asarray(out))
        np.testing.assert_array_equal(*found)


class Device:
    """The part of a device that `process_row_share` reads."""

    def __init__(self, process_index):
        self.process_index = process_index


class Mesh:
    """The devices of 4 processes, 2 each, in a given order."""

    def __init__(self, shape, order=range(8)):
        self.shape = dict(zip(("data", "fsdp", "tensor"), shape, strict=True))
        self.devices = np.array([Device(i // 2) for i in order], object).reshape(shape)


@pytest.mark.parametrize(
    ("mesh", "expected"),
    [
        (Mesh((8, 1, 1)), [(0, 4), (1, 4), (2, 4), (3, 4)]),
        (Mesh((2, 4, 1)), [(0, 4), (1, 4), (2, 4), (3, 4)]),
        (Mesh((2, 2, 2)), [(0, 4), (1, 4), (2, 4), (3, 4)]),
        (Mesh((2, 1, 4)), [(0, 2), (0, 2), (1, 2), (1, 2)]),  # a tensor group of two processes
        (Mesh((1, 1, 8)), [(0, 1)] * 4),
        (Mesh((8, 1, 1), [0, 7, 1, 6, 2, 5, 3, 4]), [(0, 4), (2, 4), (3, 4), (1, 4)]),
    ],
)
def test_which_rows_a_process_prepares(mesh, expected, monkeypatch):
    for process, share in enumerate(expected):
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        assert process_row_share(mesh) == share


def test_rows_that_overlap_are_refused():
    mesh = Mesh((2, 1, 4), [0, 2, 4, 6, 1, 3, 5, 7])  # every process is in both groups: fine
    assert process_row_share(mesh) == (0, 1)
    with pytest.raises(DataError, match="unequal or overlapping rows"):
        process_row_share(Mesh((4, 1, 2), [0, 2, 1, 3, 4, 5, 6, 7]))
