"""The step on trees against the usual two-row layout, and its invariants."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers_trees import (
    MODEL,
    OPTIONS,
    assert_trees_close,
    example,
    logps,
    pack,
    parts,
    plain_logps,
    shape_of,
)
from tiny_models import random_variables

from seva_jax.models.init import _init, _unbox
from seva_jax.objectives import DPO, Supervised
from seva_jax.training.step import (
    TrainState,
    TrainStep,
    merge,
    tree_mask,
)
from seva_jax.types import BranchLogps


@pytest.fixture(scope="module")
def variables():
    """Returns random weights of `MODEL`."""
    return random_variables(MODEL)


def plain_dpo(variables, reference, examples, beta=0.1):
    """Returns the mean DPO loss, written out for the two-row layout."""
    losses = []
    for e in examples:
        policy = [x.sum() for x in plain_logps(variables, e)]
        ref = [x.sum() for x in plain_logps(reference, e)]
        rewards = jnp.stack([beta * (p - r) for p, r in zip(policy, ref, strict=True)])
        losses.append(-jax.nn.log_softmax(rewards)[0])
    return jnp.stack(losses).mean()


@pytest.mark.parametrize("seed", range(6))
def test_log_probs_equal_separate_rows(variables, seed):
    """It holds for random lengths, K = 1..4 branches and 0..2 images, one tree a row."""
    rng = np.random.default_rng(seed)
    examples = [
        example(rng, num_images=int(rng.integers(0, 3)), num_branches=1 + seed % 4, index=i)
        for i in range(3)
    ]
    shape = shape_of(examples)
    batch = pack([[e] for e in examples], shape)
    found = logps(variables, batch)
    for b, e in enumerate(examples):
        for k, expected in enumerate(plain_logps(variables, e)):
            np.testing.assert_allclose(found[b, 0, k, : len(expected)], expected, atol=2e-5)
            assert not found[b, 0, k, len(expected) :].any()


def test_packing_changes_nothing(variables):
    """Three trees in one row give what three rows give."""
    rng = np.random.default_rng(7)
    examples = [example(rng, num_images=n, index=i) for i, n in enumerate((1, 0, 2))]
    shape = shape_of(examples, comparisons=3)
    packed = logps(variables, pack([examples], shape))
    apart = logps(variables, pack([[e] for e in examples], shape))
    np.testing.assert_allclose(packed[0], apart[:, 0], atol=2e-5)


def test_a_token_sees_its_trunk_and_its_branch_only():
    """The tree attention mask equals one written out for two trees."""
    tree = jnp.array([[1, 1, 1, 1, 2, 2, 0]])
    branch = jnp.array([[0, 0, 1, 2, 0, 3, 0]])
    expected = np.array(
        [
            [1, 0, 0, 0, 0, 0, 0],
            [1, 1, 0, 0, 0, 0, 0],
            [1, 1, 1, 0, 0, 0, 0],
            [1, 1, 0, 1, 0, 0, 0],
            [0, 0, 0, 0, 1, 0, 0],
            [0, 0, 0, 0, 1, 1, 0],
            [0, 0, 0, 0, 0, 0, 1],
        ],
        bool,
    )
    np.testing.assert_array_equal(tree_mask(tree, branch)[0], expected)


def run_step(variables, rows, shape, micro_batches=1, objective=None, reference=None):
    """Takes an SGD step of size 1; returns its gradient (minus the update) and metrics."""
    trainable, frozen = parts(variables)
    batch = pack(rows, shape)
    if reference is not None:
        batch = batch._replace(ref_BCKT=logps(reference, batch))
    batch = jax.tree.map(lambda x: x.reshape(micro_batches, -1, *x.shape[1:]), batch)
    optimizer = optax.sgd(1.0)
    state = TrainState(jnp.int32(0), trainable, optimizer.init(trainable))
    step = TrainStep(MODEL, objective or DPO(beta=0.1), optimizer, OPTIONS, False)
    new, metrics = jax.jit(step)(state, frozen, batch)
    gradient = jax.tree.map(jnp.subtract, trainable, new.trainable)
    return gradient, metrics


@pytest.mark.parametrize("num_branches", [2, 3])
def test_dpo_loss_and_gradient_equal_separate_rows(variables, num_branches):
    """JAX differentiates the usual layout on its own."""
    rng = np.random.default_rng(3)
    examples = [example(rng, num_branches=num_branches, index=i) for i in range(3)]
    reference = {"params": variables["params"]}
    gradient, metrics = run_step(
        variables, [[e] for e in examples], shape_of(examples), reference=reference
    )
    trainable, frozen = parts(variables)
    plain = jax.jit(jax.value_and_grad(lambda t: plain_dpo(merge(frozen, t), reference, examples)))
    loss, expected = plain(trainable)
    np.testing.assert_allclose(metrics["loss"], loss, atol=1e-5)
    assert_trees_close(gradient, expected, atol=2e-5)


def test_fresh_adapters_start_at_log_2(variables):
    """Policy and reference are the same model at step 0."""
    fresh = _unbox(jax.jit(lambda key: _init(MODEL, key))(jax.random.key(5)))["lora"]
    start = {"params": variables["params"], "lora": fresh}
    rng = np.random.default_rng(0)
    examples = [example(rng, index=i) for i in range(4)]
    reference = {"params": variables["params"]}
    _, metrics = run_step(start, [[e] for e in examples], shape_of(examples), reference=reference)
    assert abs(metrics["loss"] - np.log(2)) < 1e-6
    assert abs(metrics["rewards/margins"]) < 1e-6


def test_reference_in_the_step_equals_cached(variables):
    """The in-step reference uses the frozen projector, not the trained one."""
    rng = np.random.default_rng(1)
    examples = [example(rng, index=i) for i in range(2)]
    reference = {"params": variables["params"]}
    shape, rows = shape_of(examples), [[e] for e in examples]
    moved = jax.tree.map(lambda x: x, variables)
    moved["params"] = dict(variables["params"])
    moved["params"]["projector"] = jax.tree.map(lambda x: x + 0.1, variables["params"]["projector"])
    cached, cached_metrics = run_step(moved, rows, shape, reference=reference)
    trainable, _ = parts(moved)
    batch = jax.tree.map(lambda x: x[None], pack(rows, shape))
    optimizer = optax.sgd(1.0)
    state = TrainState(jnp.int32(0), trainable, optimizer.init(trainable))
    step = TrainStep(MODEL, DPO(beta=0.1), optimizer, OPTIONS, True)
    new, metrics = jax.jit(step)(state, reference, batch)
    np.testing.assert_allclose(metrics["loss"], cached_metrics["loss"], atol=1e-6)
    assert abs(metrics["loss"] - np.log(2)) > 1e-3  # the projector did move
    assert_trees_close(jax.tree.map(jnp.subtract, trainable, new.trainable), cached, atol=1e-5)


def test_gradient_is_the_mean_over_the_global_batch(variables):
    """1 x 8, 4 x 2 accumulated and packed rows agree, with any weights and empty rows."""
    rng = np.random.default_rng(2)
    examples = [example(rng, index=i, weight=1.0 + i) for i in range(5)]
    shape = shape_of(examples, comparisons=3)
    reference = {"params": variables["params"]}
    rows = [[e] for e in examples] + [[], [], []]
    whole, metrics = run_step(variables, rows, shape, reference=reference)
    split, split_metrics = run_step(variables, rows, shape, 4, reference=reference)
    packed_rows = [examples[:3], examples[3:]]
    packed, packed_metrics = run_step(variables, packed_rows, shape, 2, reference=reference)
    for gradient, other in ((split, split_metrics), (packed, packed_metrics)):
        np.testing.assert_allclose(other["loss"], metrics["loss"], atol=1e-6)
        np.testing.assert_allclose(other["rewards/margins"], metrics["rewards/margins"], atol=1e-6)
        assert_trees_close(gradient, whole, atol=1e-6)
    assert metrics["pairs"] == 5


def test_supervised_loss_is_the_mean_negative_log_likelihood(variables):
    """It equals the value written out."""
    rng = np.random.default_rng(4)
    examples = [example(rng, num_branches=1, index=i) for i in range(3)]
    _, metrics = run_step(
        variables, [[e] for e in examples], shape_of(examples), objective=Supervised()
    )
    expected = np.mean([-np.mean(plain_logps(variables, e)[0]) for e in examples])
    np.testing.assert_allclose(metrics["loss"], expected, atol=1e-5)


def branches(sums):
    """Makes BranchLogps with one token a branch; NaN marks a branch that does not exist."""
    sums = np.asarray(sums, np.float32)
    mask = ~np.isnan(sums)
    tokens = jnp.asarray(np.nan_to_num(sums))[..., None]
    return BranchLogps(tokens, jnp.asarray(mask, jnp.float32)[..., None])


def test_one_negative_is_exactly_sigmoid_dpo():
    """The loss is -log sigmoid, also where it saturates."""
    policy = branches([[-1.0, -2.0], [-5.0, -1.0], [-900.0, -1.0], [-1.0, -900.0]])
    reference = branches([[-1.5, -1.0], [-1.0, -1.0], [-1.0, -1.0], [-1.0, -1.0]])
    loss, metrics = DPO(beta=0.3)(policy, reference)
    margin = 0.3 * (
        (policy.sums_NK - reference.sums_NK)[:, 0] - (policy.sums_NK - reference.sums_NK)[:, 1]
    )
    np.testing.assert_allclose(loss, -jax.nn.log_sigmoid(margin), rtol=1e-6)
    np.testing.assert_allclose(metrics["rewards/margins"], margin, rtol=1e-6)
    np.testing.assert_array_equal(metrics["rewards/accuracies"], [1, 0, 0, 1])


def test_missing_branches_do_not_count():
    """K = 3 with one branch absent equals K = 2, and its gradient is finite."""
    policy, reference = branches([[-1.0, -2.0, np.nan]]), branches([[-2.0, -1.0, np.nan]])
    pair_policy, pair_reference = branches([[-1.0, -2.0]]), branches([[-2.0, -1.0]])
    loss, metrics = DPO()(policy, reference)
    pair_loss, pair_metrics = DPO()(pair_policy, pair_reference)
    np.testing.assert_allclose(loss, pair_loss, rtol=1e-6)
    for name, value in pair_metrics.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-6, err_msg=name)

    def scalar(tokens):
        return DPO(sft_weight=0.5)(policy._replace(logp_NKT=tokens), reference)[0].sum()

    assert np.isfinite(jax.grad(scalar)(policy.logp_NKT)).all()


def test_several_negatives_are_infonce():
    """The loss is -log exp(r_c) / (exp(r_c) + sum_k exp(r_k))."""
    rng = np.random.default_rng(0)
    policy, reference = (branches(rng.normal(size=(5, 4)) * 20) for _ in range(2))
    reward = 0.1 * np.asarray(policy.sums_NK - reference.sums_NK)
    expected = -np.log(np.exp(reward[:, 0]) / np.exp(reward).sum(1))
    np.testing.assert_allclose(DPO()(policy, reference)[0], expected, rtol=2e-5)
