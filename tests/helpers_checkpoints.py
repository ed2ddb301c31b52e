"""Saves and restores checkpoints of a small made-up state."""

import jax
import jax.numpy as jnp
import numpy as np

from seva_jax.training.checkpoint import Checkpoints, read_trained
from seva_jax.training.step import TrainState

FACTS = {
    "model.text.hidden_size": 32,
    "model.text.vocab_size": 99,
    "lora.rank": 4,
    "tokenizer": "a",
}


def state(step, width=24):
    """Makes the parts of a training state that are saved, different in every step."""
    kernel = jax.random.normal(jax.random.key(step), (width, 40))
    return TrainState(jnp.int32(step), {"lora": {"a": kernel}}, ({"mu": kernel * 2}, jnp.int32(5)))


def save(directory, *steps, facts=FACTS):
    checkpoints = Checkpoints(directory, facts)
    for step in steps:
        checkpoints.save(state(step), {"next": step})
    checkpoints.close()


def restored(directory, like=None, facts=FACTS):
    """Returns the step that is restored; checks its values and its position in the data."""
    checkpoints = Checkpoints(directory, facts)
    found = checkpoints.restore(like or state(0))
    checkpoints.close()
    if found is None:
        return None
    step = int(found[0].step)
    jax.tree.map(np.testing.assert_array_equal, found[0], state(step))
    trained = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state(0).trainable
    )
    jax.tree.map(
        np.testing.assert_array_equal, read_trained(directory, trained), state(step).trainable
    )
    assert found[1] == {"next": step}
    return step
