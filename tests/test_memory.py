"""The warning about a step that cannot fit into memory."""

import jax
import jax.numpy as jnp
import pytest
from helpers_devices import mesh_of
from helpers_plan import SHAPE, experiment
from tiny_models import PLANNED

from seva_jax.models import Llava
from seva_jax.plan.program import lower_step
from seva_jax.sharding import batch_sharding
from seva_jax.training import memory
from seva_jax.training.step import TrainState


@pytest.mark.parametrize("remat", ["none", "layers"])
def test_the_bound_is_below_what_xla_needs(remat):
    """It is not far below even here, where the backward pass keeps little."""
    e = experiment(remat=remat)
    lowered = lower_step(e, PLANNED, mesh_of(2, 2, 1), SHAPE)
    state, frozen, _ = lowered.args_info[0]
    analysis = lowered.compile().memory_analysis()
    assert analysis is not None
    real = analysis.argument_size_in_bytes + analysis.temp_size_in_bytes

    # Only the compiled program has the shardings of arguments; a gradient has its parameter's.
    def placed(tree, shardings):
        return jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings,
            is_leaf=lambda x: hasattr(x, "donated"),
        )  # fmt: skip

    state, frozen = placed((state, frozen), lowered.compile().input_shardings[0][:2])
    bound = memory.least_bytes(
        Llava(PLANNED, remat=remat), (state, frozen), state.trainable, 1, 192
    )
    assert 0.25 * real < bound < real


def test_the_warning(monkeypatch, capsys):
    """It appears only if the device is too small, and names micro-batches that may fit."""
    devices = mesh_of(2, 1, 1)
    tokens = jax.device_put(jnp.zeros((1, 16, 64), jnp.int32), batch_sharding(devices, 1))

    class Batch:
        tokens_BS = tokens

    kernel = jax.device_put(jnp.zeros((100, 100)), batch_sharding(devices))
    state = TrainState(jnp.int32(0), {"kernel": kernel}, ())
    model = Llava(PLANNED, remat="layers")
    row = 64 * PLANNED.text.hidden_size * 4
    fixed = 2 * 100 * 100 * 4 // 2 + 4

    def shown(limit):
        monkeypatch.setattr(memory, "device_limit", lambda: limit)
        memory.warn_if_too_large(model, state, {}, Batch())
        return capsys.readouterr().out

    assert shown(None) == ""
    assert shown(fixed + 8 * row) == ""
    assert "--train.micro-batches 2 may fit" in shown(fixed + 8 * row - 1)
    assert "--train.micro-batches 8 may fit" in shown(fixed + row)
    assert "more devices along --mesh.fsdp" in shown(fixed + row - 1)
