"""Memory of devices and machines, and bounds of what a step needs."""

import math

import jax
import jax.numpy as jnp
import pytest
from helpers_devices import mesh_of
from helpers_plan import SHAPE, experiment
from tiny_models import PLANNED

from seva_jax.models import Llava
from seva_jax.plan.program import lower_step
from seva_jax.run.abstract_state import abstract_training
from seva_jax.sharding import batch_sharding
from seva_jax.training import memory
from seva_jax.training.step import TrainState


@pytest.mark.parametrize(
    ("remat", "shape"),
    [("none", (2, 2, 1)), ("matmuls", (2, 2, 1)), ("layers", (2, 2, 1)), ("none", (2, 1, 2))],
)
def test_the_bound_is_below_what_xla_needs(remat, shape):
    """It is not far below even here, where the backward pass keeps little."""
    e, mesh = experiment(remat=remat), mesh_of(*shape)
    kept = abstract_training(e, PLANNED, mesh)
    program, needed = memory.compile_if_it_fits(lower_step(e, PLANNED, mesh, SHAPE))
    assert program is not None
    rows = 4 // (shape[0] * shape[1])
    bound = memory.least_bytes(
        kept.model, (kept.state, kept.frozen), kept.state.trainable, rows, 192, shape[2]
    )
    assert 0.25 * needed < bound < needed


def test_what_may_make_a_step_fit():
    """It names the fewest micro-batches that may fit: memory beyond the state grows with rows."""
    devices = mesh_of(2, 1, 1)
    tokens = jax.ShapeDtypeStruct((1, 16, 64), jnp.int32, sharding=batch_sharding(devices, 1))

    class Batch:
        tokens_BS = tokens

    kernel = jax.device_put(jnp.zeros((100, 100)), batch_sharding(devices))
    state = TrainState(jnp.int32(0), {"kernel": kernel}, ())
    model = Llava(PLANNED, remat="layers")
    row = 64 * PLANNED.text.hidden_size * 4
    fixed = 2 * 100 * 100 * 4 // 2 + 4
    assert memory.least_of_step(model, state, {}, Batch()) == fixed + 8 * row

    def said(limit, needed=fixed + 8 * row):
        return memory.advice(state, {}, Batch(), needed, limit)

    assert said(fixed + 8 * row - 1) == "--train.micro-batches 2 may fit"
    assert said(fixed + row) == "--train.micro-batches 8 may fit"
    assert said(fixed + row - 1).startswith("more devices along --mesh.fsdp")
    assert said(fixed, math.inf) == "--train.micro-batches 2 may fit"


def test_a_machine_is_shared_by_its_cpu_devices(monkeypatch):
    """A container that may use less counts as a smaller machine."""
    monkeypatch.setattr(memory.os, "sysconf", {"SC_PHYS_PAGES": 3000, "SC_PAGE_SIZE": 4096}.get)
    monkeypatch.setattr(memory, "_container_limit", lambda: math.inf)
    assert memory.machine_limit() == 3000 * 4096 / len(jax.local_devices())
    monkeypatch.setattr(memory, "_container_limit", lambda: 4096.0)
    assert memory.machine_limit() == 4096 / len(jax.local_devices())
    monkeypatch.setattr(memory.os, "sysconf", lambda name: -1)
    assert memory.machine_limit() is None


def test_a_program_too_large_for_xla():
    """The bytes are those of XLA's message; other errors stay errors."""

    class Lowered:
        def __init__(self, message):
            self.message = message

        def compile(self):
            raise jax.errors.JaxRuntimeError(self.message)

    tpu = "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space "
    tpu += "hbm. Used 17.50G of 15.75G hbm. Total hbm usage >= 18.03G: (18.03G) exceeds "
    tpu += "available HBM (15.75G)"
    assert memory.compile_if_it_fits(Lowered(tpu)) == (None, 18.03 * 2**30)
    assert memory.compile_if_it_fits(Lowered("RESOURCE_EXHAUSTED: 5 bytes")) == (None, math.inf)
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        memory.compile_if_it_fits(Lowered("INTERNAL: no"))
