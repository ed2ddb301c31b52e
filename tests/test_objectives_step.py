"""Every objective through the train step: the same loss and gradient for every batch layout."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers_devices import mesh_of
from helpers_trees import (
    LONGEST,
    MODEL,
    MOST_IMAGES,
    OPTIONS,
    assert_trees_close,
    example,
    pack,
    parts,
    plain_logits,
    shape_of,
)
from tiny_models import random_variables

from seva_jax import objectives as ours
from seva_jax.batches.trees import differing
from seva_jax.sharding import put_batch
from seva_jax.training.step import (
    StepOptions,
    TrainState,
    TrainStep,
    image_features,
    tree_hidden,
    tree_logps,
)

EACH = (
    ours.mpo(),
    ours.DPO(sft_weight=0.5, label_smoothing=0.1, divergence=ours.ForwardKL()),
    ours.DPO(weighting=ours.ScoreGap(scale=1.0)),
    ours.Hinge(weighting=ours.RawScore(), ld_alpha=0.5),
    ours.IPO(divergence=ours.JensenShannon()),
    ours.SigmoidNorm(weighting=ours.OnPolicy()),
    ours.ExoPair(),
    ours.Robust(label_smoothing=0.1),
    ours.DiscoPOP(),
    ours.NCAPair(),
    ours.SPPOHard(beta=1.0),
    ours.APOZero(),
    ours.APODown(),
)
TOGETHER = (
    ours.AOT(beta=0.5),
    ours.AOTUnpaired(beta=0.5),
    ours.Supervised(mean="tokens"),
    ours.DPO(weighting=ours.ScoreGap(scale=1.0)),
    ours.RRPO(alpha=0.5),
    ours.ReAlign(form="top"),
    ours.Inherent(),
    ours.Trajectory(window=1),
)
MIXES = {
    "each": ours.Mixed(tuple(ours.Part(x, 0.3) for x in EACH)),
    "whole batch": ours.Mixed(tuple(map(ours.Part, TOGETHER))),
}


@pytest.fixture(scope="module")
def variables():
    """Returns random weights of `MODEL`."""
    return random_variables(MODEL)


def run(variables, objective, batch, devices, micro_batches):
    """Returns metrics and gradient of one step with the reference in it."""
    trainable, _ = parts(variables)
    frozen = {"params": variables["params"]}
    optimizer = optax.sgd(1.0)
    state = TrainState(jnp.int32(0), trainable, optimizer.init(trainable))
    step = jax.jit(TrainStep(MODEL, objective, optimizer, OPTIONS, True))
    batch = jax.tree.map(lambda x: x.reshape(micro_batches, -1, *x.shape[1:]), batch)
    mesh = mesh_of(devices)
    with jax.set_mesh(mesh):
        new, metrics = step(state, frozen, put_batch(mesh, batch, leading=1))
    difference = jax.tree.map(lambda a, b: np.asarray(a) - b, trainable, new.trainable)
    return jax.device_get(metrics), difference


def two_trees(rng, index):
    """Makes two answers to an image, and the first of them to another image."""
    first = example(rng, index=index, weight=1.0 + index % 3)
    other = dataclasses.replace(first, images_IX=rng.normal(size=first.images_IX.shape))
    spans = differing(*first.branches)
    return dataclasses.replace(
        first,
        scores=(1.0 + index, 0.5, 0.1 * index),
        spans=(*spans, spans[0]),
        more=(dataclasses.replace(other, branches=first.branches[:1]),),
    )


def all_logps(variables, tree, branch):
    """Returns log-probs of the whole vocabulary at the tokens of an answer, in a row of its own."""
    tokens = np.concatenate([tree.trunk, tree.branches[branch]])
    padded = np.pad(tokens, (0, LONGEST - len(tokens)))[None]
    pixels = np.pad(tree.images_IX, ((0, MOST_IMAGES - 1), (0, 0), (0, 0), (0, 0)))[None]
    logits = plain_logits(variables, padded, pixels.astype(np.float32))[0]
    return jax.nn.log_softmax(logits[len(tree.trunk) - 1 : len(tokens) - 1])


def test_statistics_are_those_of_whole_distributions(variables):
    """What the step reduces in chunks equals log-softmax over the whole vocabulary."""
    rng = np.random.default_rng(1)
    examples = [two_trees(rng, i) for i in range(2)]
    batch = pack([examples], shape_of(examples, comparisons=2))
    reference = {"params": variables["params"]}
    needs = frozenset({"log_sum_sq", "best_other", "last_argmax", "kl"})

    @jax.jit
    def found_in(variables, reference, batch):
        hidden, before = (
            tree_hidden(MODEL, v, batch, image_features(MODEL, v, batch))
            for v in (variables, reference)
        )
        return tree_logps(MODEL, variables, batch, OPTIONS, hidden, needs, (reference, before))

    found = found_in(variables, reference, batch)
    for n, whole in enumerate(examples):
        logps, before = (
            [all_logps(v, tree, k) for tree in whole.trees for k in range(len(tree.branches))]
            for v in (variables, reference)
        )
        for k, (answer, now, then) in enumerate(
            zip(whole.all_branches, logps, before, strict=True)
        ):
            place = np.arange(len(answer))
            others = now.at[place, answer].set(-np.inf).max(-1)
            kl = (jnp.exp(then) * (then - now)).sum(-1)
            squares = jnp.log(jnp.exp(2 * now).sum(-1))
            for name, expected in {"best_other": others, "kl": kl, "log_sum_sq": squares}.items():
                got = getattr(found, f"{name}_NKT")[n, k]
                np.testing.assert_allclose(got[: len(answer)], expected, atol=1e-4, err_msg=name)
                assert not got[len(answer) :].any()
            assert kl.min() > 1e-3
        own = logps[0][np.arange(len(logps[0])), logps[2].argmax(-1)]
        np.testing.assert_allclose(found.last_argmax_NT[n, : len(own)], own, atol=1e-4)
        assert (logps[2].argmax(-1) != logps[0].argmax(-1)).any()


@pytest.mark.parametrize("mix", MIXES)
def test_the_layout_changes_nothing(variables, mix):
    """8 devices with 2 micro-batches equal 1 with 1, with comparisons of weight 0 between."""
    rng = np.random.default_rng(0)
    examples = [two_trees(rng, i) for i in range(8)]
    shape = shape_of(examples)
    objective = MIXES[mix]
    metrics, gradient = run(variables, objective, pack([[e] for e in examples], shape), 1, 1)
    assert np.isfinite(metrics["loss"])
    assert all(np.abs(x).max() > 0 for x in jax.tree.leaves(gradient))
    order = [5, 0, 7, 2, 1, 4, 3, 6]
    unused = [example(rng, weight=0.0, index=9) for _ in range(8)]
    rows = [[x] for i in order for x in (examples[i], unused[i])]
    other, other_gradient = run(variables, objective, pack(rows, shape), 8, 2)
    np.testing.assert_allclose(other["loss"], metrics["loss"], rtol=1e-5)
    for name in ("rewards/margins", "nll_loss"):
        np.testing.assert_allclose(other[name], metrics[name], atol=1e-5)
    scale = max(np.abs(x).max() for x in jax.tree.leaves(gradient))
    assert_trees_close(other_gradient, gradient, atol=2e-6 * scale)


def arrays(jaxpr):
    """Yields the shapes of everything that a program computes, in loops and branches too."""
    for equation in jaxpr.eqns:
        yield from (out.aval.shape for out in equation.outvars if hasattr(out.aval, "shape"))
        for value in jax.tree.leaves(equation.params, is_leaf=lambda x: hasattr(x, "eqns")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from arrays(inner)


def test_whole_distributions_exist_for_a_chunk_only(variables):
    """It holds for RRPO's KL, in the step and its backward pass, also with long answers."""
    rng = np.random.default_rng(0)
    examples = [dataclasses.replace(two_trees(rng, i), more=()) for i in range(2)]
    examples = [dataclasses.replace(e, spans=e.spans[:2], scores=()) for e in examples]
    batch = pack([[e] for e in examples], shape_of(examples))
    chunk = 3
    assert batch.target_BA.shape[1] > 2 * chunk
    trainable, _ = parts(variables)
    optimizer = optax.sgd(1.0)
    state = TrainState(jnp.int32(0), trainable, optimizer.init(trainable))
    step = TrainStep(MODEL, ours.RRPO(), optimizer, StepOptions(chunk), True)
    batch = jax.tree.map(lambda x: x[None], batch)
    program = jax.make_jaxpr(step)(state, {"params": variables["params"]}, batch).jaxpr
    size, width = MODEL.config.text.vocab_size, MODEL.config.text.hidden_size
    wide = {shape for shape in arrays(program) if shape[-1:] == (size,)}
    assert (2, chunk, size) in wide
    tables = {(size,), (width, size), (1, width, size)}
    assert all(np.prod(s) <= 2 * chunk * size for s in wide - tables), wide


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("micro_batches", [1, 2])
def test_held_out_metrics_are_those_of_the_step(variables, mix, micro_batches):
    """An evaluation computes what a step reports of the same batch and parameters."""
    rng = np.random.default_rng(8)
    examples = [two_trees(rng, index) for index in range(4)]
    batch = pack([[e] for e in examples], shape_of(examples))
    expected, _ = run(variables, MIXES[mix], batch, 1, micro_batches)
    trainable, _ = parts(variables)
    step = TrainStep(MODEL, MIXES[mix], optax.identity(), OPTIONS, True)
    micro = jax.tree.map(lambda x: x.reshape(micro_batches, -1, *x.shape[1:]), batch)
    found = jax.jit(step.evaluate)(trainable, {"params": variables["params"]}, micro)
    assert found.pop("weight") == sum(e.weight for e in examples)
    for name, value in found.items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-5, atol=1e-6, err_msg=name)
