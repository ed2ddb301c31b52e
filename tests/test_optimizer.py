"""The optimiser: what decays, and the learning rate of the projector."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers_fit import fit, tiny_run
from tiny_models import TINY

from seva_jax.models import Llava, LoraConfig, abstract_variables
from seva_jax.models.init import _unbox
from seva_jax.training.optimizer import Optim, decays


def test_biases_and_norms_do_not_decay():
    """The names are those that transformers' `Trainer.get_decay_parameter_names` leaves out."""
    tree = decays(_unbox(abstract_variables(Llava(TINY, lora=LoraConfig(rank=2)))))
    flat = {
        "/".join(key.key for key in path): decay for path, decay in jax.tree.leaves_with_path(tree)
    }
    assert len(flat) > 20
    for name, decay in flat.items():
        assert decay == (not name.endswith(("/bias", "/scale"))), name
    assert {"params/language/embedding", "params/vision/class_embedding"} <= flat.keys()
    assert {f"lora/language/layers/q_proj/{x}" for x in "ab"} <= flat.keys()


TRAINABLE = {
    "lora": {"language": {"q_proj": {"a": jnp.full((2, 2), 2.0)}}},
    "params": {"projector": {"linear_1": {"kernel": jnp.full((2, 2), 2.0), "bias": jnp.ones(2)}}},
}


@pytest.mark.parametrize("clip_norm", [0.0, 1.0])
def test_one_step(clip_norm):
    """The first update of AdamW is -lr * (sign of the gradient + decay * parameter)."""
    optim = Optim(
        lr=1e-2, projector_lr=1e-3, weight_decay=0.1, schedule="constant", warmup_ratio=0.0,
        clip_norm=clip_norm,
    )  # fmt: skip
    update = _update(optim)
    np.testing.assert_allclose(update["lora"]["language"]["q_proj"]["a"], -1.2e-2, rtol=1e-5)
    projector = update["params"]["projector"]["linear_1"]
    np.testing.assert_allclose(projector["kernel"], -1.2e-3, rtol=1e-5)
    np.testing.assert_allclose(projector["bias"], -1e-3, rtol=1e-5)


def test_the_projector_shares_the_schedule_and_the_learning_rate_unless_told():
    """Both rates rise together; 0 means one rate for all."""
    same = _update(Optim(lr=1e-2, warmup_ratio=0.0, schedule="constant"))
    np.testing.assert_allclose(same["params"]["projector"]["linear_1"]["bias"], -1e-2, rtol=1e-5)
    warm = Optim(lr=1e-2, projector_lr=1e-1, warmup_ratio=0.5, schedule="constant")
    update = _update(warm, steps=3)  # half of the peak after 2 of 4 steps of warm-up
    np.testing.assert_allclose(update["lora"]["language"]["q_proj"]["a"], -5e-3, rtol=1e-5)
    np.testing.assert_allclose(update["params"]["projector"]["linear_1"]["bias"], -5e-2, rtol=1e-5)


def _update(optim: Optim, steps: int = 1):
    """Returns the last of some updates with gradients of 1."""
    transformation = optim.make(8)
    state, update = transformation.init(TRAINABLE), None
    for _ in range(steps):
        gradient = jax.tree.map(jnp.ones_like, TRAINABLE)
        update, state = transformation.update(gradient, state, TRAINABLE)
    assert optax.tree.norm(update) > 0
    return update


@pytest.mark.parametrize(
    ("steps", "warmup", "learns"), [(1, 0.03, False), (1, 0, True), (2, 0.9, True)]
)
def test_a_run_that_cannot_learn_says_so(tmp_path, capsys, steps, warmup, learns):
    """With one step, warm-up means a learning rate of 0, as in transformers' schedules."""
    ctx = tiny_run(tmp_path / "run", "--optim.warmup-ratio", str(warmup))
    trained = fit(ctx, steps)["lora"]["language"]["layers"]["q_proj"]["b"]
    assert ("NOTHING WILL BE LEARNT" in capsys.readouterr().out) is not learns
    assert bool((trained != 0).any()) is learns  # B starts at 0
