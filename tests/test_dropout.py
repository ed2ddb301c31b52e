"""Dropout of adapters: peft's formula, in training only, and the same on every layout."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers_trees import MODEL, OPTIONS, assert_trees_close, example, pack, parts, shape_of
from tiny_models import TINY, random_variables

from seva_jax.models import Llava, LoraConfig
from seva_jax.models.layers import Linear
from seva_jax.objectives import DPO
from seva_jax.training.dropout import token_keys, token_places
from seva_jax.training.step import TrainState, TrainStep, make_logps

RATE = 0.25
DROPPING = dataclasses.replace(MODEL, lora=dataclasses.replace(MODEL.lora, dropout=RATE))


@pytest.fixture(scope="module")
def variables():
    """Returns random weights of `MODEL`."""
    return random_variables(MODEL)


def linear(rate):
    return Linear(5, ("embed", "heads"), lora=LoraConfig(4, 8.0, dropout=rate))


def test_the_formula_is_that_of_peft():
    """Torch computes y = W x + alpha / r * B A dropout(x) from the mask that is drawn here."""
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3, 7, 6)).astype(np.float32)
    weights = linear(RATE).init(jax.random.key(0), jnp.zeros((1, 6)))
    shapes = jax.tree.map(
        lambda leaf: leaf.value, weights, is_leaf=lambda leaf: hasattr(leaf, "value")
    )
    weights = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)
    keys = jax.random.split(jax.random.key(1), (3, 7))
    ours = linear(RATE).apply(weights, x, keys)
    one = lambda key: jax.random.bernoulli(key, 1 - RATE, (6,))  # noqa: E731
    mask = np.asarray(jax.vmap(jax.vmap(one))(keys))
    assert 0 < mask.sum() < mask.size

    base = torch.nn.Sequential(torch.nn.Linear(6, 5, bias=False))
    adapted = peft.get_peft_model(
        base, peft.LoraConfig(r=4, lora_alpha=8, lora_dropout=RATE, target_modules=["0"])
    )
    layer = adapted.base_model.model[0]
    assert isinstance(layer.lora_dropout["default"], torch.nn.Dropout)
    assert layer.lora_dropout["default"].p == RATE

    class Drawn(torch.nn.Module):
        """torch's dropout with a given mask."""

        def forward(self, x):
            return x * torch.from_numpy(mask.copy()) / (1 - RATE)

    layer.lora_dropout["default"] = Drawn()
    with torch.no_grad():
        layer.base_layer.weight.copy_(torch.from_numpy(weights["params"]["kernel"].T))
        layer.lora_A["default"].weight.copy_(torch.from_numpy(weights["lora"]["a"].T))
        layer.lora_B["default"].weight.copy_(torch.from_numpy(weights["lora"]["b"].T))
        theirs = adapted(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
    assert np.abs(ours - linear(0.0).apply(weights, x)).max() > 0.1


def test_the_mean_over_draws_is_the_layer_without_dropout():
    """20,000 draws of each of 6 inputs: the mean is within 5 standard errors."""
    rng = np.random.default_rng(0)
    draws, rate = 20_000, 0.5
    x = rng.normal(size=6).astype(np.float32)
    a, b = rng.normal(size=(6, 4)).astype(np.float32), rng.normal(size=(4, 5)).astype(np.float32)
    weights = {"params": {"kernel": np.zeros((6, 5), np.float32)}, "lora": {"a": a, "b": b}}
    keys = jax.random.split(jax.random.key(2), draws)
    y = np.asarray(linear(rate).apply(weights, np.tile(x, (draws, 1)), keys))
    error = y.std(0) / np.sqrt(draws)
    assert (np.abs(y.mean(0) - 2.0 * x @ a @ b) < 5 * error).all()
    # Inverted dropout: Var = rate / (1 - rate) * sum (x_i (A B)_io)^2, times the squared scale.
    expected = rate / (1 - rate) * ((2.0 * x[:, None] * (a @ b)) ** 2).sum(0)
    np.testing.assert_allclose(y.var(0), expected, rtol=0.1)


def packed(rows, **changes):
    most = max(map(len, rows))
    batch = pack(rows, shape_of([e for row in rows for e in row], comparisons=most))
    return batch._replace(ref_BCKT=-2.0 * batch.mask_BCKT, **changes)


def gradient(model, variables, rows, micro_batches=1, step=3, seed=7, objective=None):
    """Returns the gradient and the metrics of a step; SGD of size 1 shows it."""
    trainable, frozen = parts(variables)
    batch = packed(rows)
    batch = jax.tree.map(lambda x: x.reshape(micro_batches, -1, *x.shape[1:]), batch)
    optimizer = optax.sgd(1.0)
    state = TrainState(jnp.int32(step), trainable, optimizer.init(trainable))
    run = TrainStep(model, objective or DPO(beta=0.5), optimizer, OPTIONS, False, seed)
    new, metrics = jax.jit(run)(state, frozen, batch)
    return jax.tree.map(jnp.subtract, trainable, new.trainable), metrics


def examples(num=4):
    rng = np.random.default_rng(5)
    return [example(rng, num_images=i % 2, index=10 + i) for i in range(num)]


def test_it_does_not_depend_on_the_layout(variables):
    """Rows of one comparison, packed rows, micro-batches and another order drop the same inputs."""
    a, b, c, d = examples()
    expected = gradient(DROPPING, variables, [[a], [b], [c], [d]])
    for rows, micro_batches in (
        ([[a], [b], [c], [d]], 4),
        ([[d, b], [a, c]], 1),
        ([[c], [a], [d, b], []], 2),
    ):
        other = gradient(DROPPING, variables, rows, micro_batches)
        for name in ("loss", "rewards/margins", "grad_norm"):
            np.testing.assert_allclose(other[1][name], expected[1][name], rtol=1e-5)
        assert_trees_close(other[0], expected[0], 1e-5)  # as far as sums are rounded


def difference(one, other):
    return max(jax.tree.leaves(jax.tree.map(lambda x, y: float(jnp.abs(x - y).max()), one, other)))


def test_seed_and_step_change_what_is_dropped(variables):
    rows = [[e] for e in examples()]
    expected, _ = gradient(DROPPING, variables, rows)
    assert difference(expected, gradient(DROPPING, variables, rows)[0]) == 0
    plain, _ = gradient(MODEL, variables, rows)
    for other in (
        gradient(DROPPING, variables, rows, step=4)[0],
        gradient(DROPPING, variables, rows, seed=8)[0],
        plain,
    ):
        assert difference(expected, other) > 1e-3


def test_every_adapter_draws_for_itself():
    """Where x is 1, A copies x and B sums it, an adapter's output counts what was kept."""
    keys = jax.random.split(jax.random.key(0), (1, 4))
    seen = []
    for name in ("q_proj", "v_proj"):
        lora = LoraConfig(TINY.text.hidden_size, float(TINY.text.hidden_size), (name,), dropout=0.5)
        model = Llava(TINY, lora)
        zero = jax.tree.map(jnp.zeros_like, random_variables(model))
        zero["params"]["language"] = random_variables(model)["params"]["language"]
        zero["lora"]["language"]["layers"][name]["a"] += 0.1
        zero["lora"]["language"]["layers"][name]["b"] += 0.1
        args = (
            jnp.array([[5, 6, 7, 8]]), jnp.arange(4)[None], jnp.tril(jnp.ones((1, 4, 4), bool)),
            jnp.full((1, 4), -1), jnp.zeros((1, 0, TINY.vision.hidden_size)),
        )  # fmt: skip
        hidden = [model.apply(zero, *args, keys_BS=k, method="hidden")[0] for k in (keys, None)]
        seen.append(float(jnp.abs(hidden[0] - hidden[1]).max()))
    assert min(seen) > 1e-4


@pytest.mark.parametrize("in_step", [False, True])
def test_only_the_gradient_sees_it(variables, in_step):
    """Passes and held-out losses are those of adapters without dropout, bit for bit."""
    batch = packed([[e] for e in examples()])
    trainable, frozen = parts(variables)
    if in_step:
        frozen = {"params": variables["params"]}
    same = [jax.jit(make_logps(model, OPTIONS))(variables, batch) for model in (MODEL, DROPPING)]
    np.testing.assert_array_equal(*same)
    whole = jax.tree.map(lambda x: x[None], batch)
    found = [
        jax.jit(TrainStep(m, DPO(), optax.sgd(1.0), OPTIONS, in_step).evaluate)(
            trainable, frozen, whole
        )
        for m in (MODEL, DROPPING)
    ]
    jax.tree.map(np.testing.assert_array_equal, *found)


def test_the_reference_in_the_step_never_drops(variables):
    """At the start the policy without dropout is the reference, so what it drops is all that
    rewards show; the reference's log-probs are those of a pass.
    """
    rows = [[e] for e in examples()]
    batch = packed(rows)
    step = TrainStep(DROPPING, DPO(), optax.sgd(1.0), OPTIONS, True)
    trainable, _ = parts(variables)
    frozen = {"params": variables["params"], "lora": variables["lora"]}  # adapters trained further
    policy, reference = jax.jit(step._logps)(trainable, frozen, batch, jnp.int32(0))
    expected = jax.jit(make_logps(MODEL, OPTIONS))(variables, batch)
    np.testing.assert_allclose(reference.logp_NKT, expected[:, 0], atol=1e-5)
    assert np.abs(policy.logp_NKT - reference.logp_NKT).max() > 1e-2


def test_without_dropout_the_program_is_the_same(variables):
    """A rate of 0 draws nothing: no random bits are in the program."""
    batch = jax.tree.map(lambda x: x[None], packed([[e] for e in examples()]))
    trainable, frozen = parts(variables)
    state = TrainState(jnp.int32(0), trainable, ())
    texts = []
    for model in (MODEL, DROPPING):
        step = TrainStep(model, DPO(), optax.sgd(1.0), OPTIONS, False)
        state = TrainState(jnp.int32(0), trainable, optax.sgd(1.0).init(trainable))
        texts.append(str(jax.make_jaxpr(step)(state, frozen, batch)))
    assert ["random_bits" in text for text in texts] == [False, True]


def test_places_of_tokens():
    """Rows with several trees, written out; padding belongs to nothing that is used."""
    one, two, three = examples(3)
    two = dataclasses.replace(two, more=(dataclasses.replace(three, index=-1),))
    batch = packed([[one, two], [three]])
    index, place = map(np.asarray, token_places(batch))
    n, m, k = one.length, two.length, three.length
    assert index[0, : n + m].tolist() == [10] * n + [11] * m
    assert place[0, : n + m].tolist() == [*range(n), *range(m)]
    assert index[1, :k].tolist() == [12] * k
    assert place[1, :k].tolist() == [*range(k)]
    keys = jax.random.key_data(token_keys(1, jnp.int32(2), batch))[0, : n + m]
    assert len(np.unique(np.asarray(keys), axis=0)) == n + m
