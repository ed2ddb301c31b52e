"""Adapters on tower and connector: gradients, the reference, dropout, devices, configs."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers_devices import mesh_of
from helpers_plan import SHAPE, experiment
from helpers_trees import LONGEST, MOST_IMAGES, OPTIONS, example, pack, shape_of
from tiny_models import EIGHT_HEADS, PLANNED, TINY, random_variables

from seva_jax.config import Experiment, TrainOptions, check
from seva_jax.inference.sampler import PromptBatch, generate
from seva_jax.models import (
    InternConfig,
    Llava,
    LoraConfig,
    SiglipConfig,
    abstract_variables,
    merge_adapters,
    unstack,
)
from seva_jax.objectives import DPO
from seva_jax.plan.program import lower_step
from seva_jax.sharding import put_batch, variable_shardings
from seva_jax.text.sampling import Sampling
from seva_jax.training.dropout import tile_places
from seva_jax.training.flops import forward, hardware_flops
from seva_jax.training.step import TrainState, TrainStep, make_logps, merge
from seva_jax.types import Blend, DataError

LORA = LoraConfig(4, 8.0, vision=True, connector=True, rank_pattern=(("vision", 3),))
SIZES = {"hidden_size": 16, "num_layers": 2, "num_heads": 2, "mlp_size": 32}
TOWERS = {
    "clip": TINY,
    "siglip": dataclasses.replace(
        TINY, vision=SiglipConfig(image_size=8, patch_size=4, **SIZES), feature_select="full"
    ),
    "intern": dataclasses.replace(
        TINY, vision=InternConfig(image_size=8, patch_size=2, **SIZES), feature_layer=-1,
        projector_norm=True,
    ),
}  # fmt: skip


@pytest.fixture(scope="module", params=TOWERS)
def model(request):
    """Returns a module whose tower, connector and decoder have adapters."""
    return Llava(TOWERS[request.param], LORA)


@pytest.fixture(scope="module")
def intern():
    """Returns that of InternVL alone, for what does not depend on the tower's class."""
    return Llava(TOWERS["intern"], LORA)


def drawn(num=4):
    rng = np.random.default_rng(5)
    return [example(rng, num_images=i % 3, index=10 + i) for i in range(num)]


def packed(rows):
    most = max(map(len, rows))
    batch = pack(rows, shape_of([e for row in rows for e in row], comparisons=most))
    return batch._replace(ref_BCKT=-2.0 * batch.mask_BCKT)


def step_of(model, variables, batch, in_step=False, step=3, seed=7, frozen=None):
    """Returns the gradient by the adapters and the metrics of a step; SGD of size 1 shows it."""
    trainable = {"lora": variables["lora"], "params": {}}
    optimizer = optax.sgd(1.0)
    state = TrainState(jnp.int32(step), trainable, optimizer.init(trainable))
    run = TrainStep(model, DPO(beta=0.5), optimizer, OPTIONS, in_step, seed)
    new, metrics = jax.jit(run)(state, frozen or {"params": variables["params"]}, batch)
    return jax.tree.map(jnp.subtract, trainable, new.trainable)["lora"], metrics


def in_parts(batch, micro_batches=1):
    return jax.tree.map(lambda x: x.reshape(micro_batches, -1, *x.shape[1:]), batch)


def assert_close(found, expected, atol=1e-5):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=atol), found, expected)


def test_their_variables(model):
    """Every linear layer of the tower's layers and of the projector, with the rank of its part."""
    shapes = {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape
        for path, leaf in jax.tree_util.tree_leaves_with_path(random_variables(model)["lora"])
    }
    targets = {x.rpartition("/")[0] for x in shapes if x.startswith("vision")}
    assert len(targets) == 6
    assert {shapes[f"{x}/a"][-1] for x in targets} == {3}
    assert {x for x in shapes if "projector" in x} == {
        f"projector/linear_{i}/{side}" for i in (1, 2) for side in "ab"
    }
    assert shapes["projector/linear_1/a"] == (model.config.feature_width, 4)
    few = Llava(model.config, LoraConfig(2, targets=(), vision=True, vision_targets=("fc1",)))
    assert len(jax.tree.leaves(random_variables(few)["lora"])) == 2


def test_the_gradient_is_that_of_rows_without_trees(model):
    """The sum of all answers' log-probs, by adapters: packed trees, and a plain row an answer."""
    variables, examples = random_variables(model), drawn()
    batch = packed([examples[:2], examples[2:]])
    logps = make_logps(model, OPTIONS)

    def of_trees(lora):
        return logps({"params": variables["params"], "lora": lora}, batch).sum()

    def of_rows(lora):
        total = 0.0
        for e in examples:
            for branch in e.branches:
                tokens = np.concatenate([e.trunk, branch])
                length, start = len(tokens), len(e.trunk)
                tokens = np.pad(tokens, (0, LONGEST - length))[None]
                missing = MOST_IMAGES - len(e.images_IX)
                pixels = np.pad(e.images_IX, ((0, missing), (0, 0), (0, 0), (0, 0)))[None]
                is_image = tokens == model.config.image_token_id
                patch = np.where(is_image, np.cumsum(is_image, 1) - 1, -1)
                logits = model.apply(
                    {"params": variables["params"], "lora": lora}, tokens,
                    jnp.arange(LONGEST)[None], jnp.tril(jnp.ones((LONGEST, LONGEST), bool))[None],
                    patch, pixels,
                )  # fmt: skip
                found = jax.nn.log_softmax(logits[0, start - 1 : length - 1])
                total += found[np.arange(len(branch)), branch].sum()
        return total

    found, expected = (jax.jit(jax.grad(f))(variables["lora"]) for f in (of_trees, of_rows))
    assert_close(found, expected, 2e-4)
    for part in ("vision", "projector"):  # all of them, A and B
        assert min(float(jnp.abs(x).max()) for x in jax.tree.leaves(found[part])) > 1e-3


@pytest.mark.parametrize("in_step", [False, True])
def test_a_step_begins_at_the_base(model, in_step):
    """With B = 0 the loss is log 2, and the reference is the model without adapters ever after."""
    variables = random_variables(model)
    base = {"params": variables["params"]}
    batch = packed([[e] for e in drawn()])
    expected = jax.jit(make_logps(Llava(model.config), OPTIONS))(base, batch)
    batch = in_parts(batch._replace(ref_BCKT=expected))
    fresh = jax.tree.map_with_path(
        lambda path, x: jnp.zeros_like(x) if path[-1].key == "b" else x, variables["lora"]
    )
    gradient, metrics = step_of(model, base | {"lora": fresh}, batch, in_step)
    assert float(metrics["loss"]) == pytest.approx(np.log(2), abs=1e-6)
    for part in ("vision", "projector", "language"):
        assert max(float(jnp.abs(x).max()) for x in jax.tree.leaves(gradient[part])) > 1e-4, part
    step = TrainStep(model, DPO(), optax.sgd(1.0), OPTIONS, in_step)
    trainable = {"lora": variables["lora"]}
    micro = jax.tree.map(lambda x: x[0], batch)
    policy, reference = jax.jit(step._logps)(trainable, base, micro)
    np.testing.assert_allclose(reference.logp_NKT, expected[:, 0], atol=1e-5)
    assert np.abs(policy.logp_NKT - expected[:, 0]).max() > 1e-2


def test_a_reference_with_adapters_of_its_own(intern):
    """Adapters that are trained further: the reference keeps those that were loaded."""
    before, after = random_variables(intern), random_variables(intern)
    after["lora"] = jax.tree.map(lambda x: 1.5 * x, after["lora"])
    batch = packed([[e] for e in drawn()])
    step = TrainStep(intern, DPO(), optax.sgd(1.0), OPTIONS, True)
    found = jax.jit(step._logps)({"lora": after["lora"]}, before, batch)
    for logps, variables in zip(found, (merge(before, after), before), strict=True):
        expected = jax.jit(make_logps(intern, OPTIONS))(variables, batch)
        np.testing.assert_allclose(logps.logp_NKT, expected[:, 0], atol=1e-5)


def test_dropout_does_not_depend_on_the_layout(intern):
    """Rows of one comparison, packed rows, micro-batches and another order drop the same inputs."""
    dropping = intern.clone(lora=dataclasses.replace(LORA, dropout=0.25))
    variables, (a, b, c, d) = random_variables(intern), drawn()
    expected = step_of(dropping, variables, in_parts(packed([[a], [b], [c], [d]])))
    for rows, micro_batches in (([[d, b], [a, c]], 1), ([[c], [b, a], [d], []], 2)):
        found = step_of(dropping, variables, in_parts(packed(rows), micro_batches))
        np.testing.assert_allclose(found[1]["loss"], expected[1]["loss"], rtol=1e-5)
        assert_close(found[0], expected[0])
    plain = step_of(intern, variables, in_parts(packed([[a], [b], [c], [d]])))
    assert abs(float(plain[1]["loss"] - expected[1]["loss"])) > 1e-5


@pytest.mark.parametrize("part", ["vision", "connector"])
def test_dropout_reaches_every_adapter(intern, part):
    """What is drawn for one part alone changes the loss, and differs from step to step."""
    chosen = LoraConfig(4, 8.0, (), dropout=0.25, **{part: True})
    dropping = intern.clone(lora=chosen)
    variables = random_variables(dropping)
    batch = in_parts(packed([[e] for e in drawn()]))
    losses = {
        float(step_of(m, variables, batch, step=step)[1]["loss"])
        for m, step in (
            (dropping, 3), (dropping, 4), (intern.clone(lora=chosen.finished), 3),
        )
    }  # fmt: skip
    assert len(losses) == 3
    again = [float(step_of(dropping, variables, batch)[1]["loss"]) for _ in range(2)]
    assert again[0] == again[1]


def test_places_of_tiles():
    """Tiles count from the first of their comparison, also where tokens are sums of features."""
    examples = [example(np.random.default_rng(i), num_images=i, index=10 + i) for i in (2, 0, 1)]
    batch = packed([examples])
    owner_BI, place_BI = tile_places(batch, TINY.tile_features)
    np.testing.assert_array_equal(owner_BI[0, :3], [12, 12, 11])
    np.testing.assert_array_equal(place_BI[0, :3], [0, 1, 0])
    index_BSM = np.maximum(batch.patch_BS, 0)[..., None].repeat(4, -1)
    weight_BSM = np.zeros(index_BSM.shape, np.float32)
    weight_BSM[..., 2] = batch.patch_BS >= 0
    blended = batch._replace(blend=Blend(index_BSM, weight_BSM))
    for found, expected in zip(
        tile_places(blended, TINY.tile_features), (owner_BI, place_BI), strict=True
    ):
        np.testing.assert_array_equal(found, expected)


def test_answers_are_those_of_the_adapted_tower(intern):
    """Rollouts answer as the model with the adapters merged, and not as the base."""
    variables = random_variables(intern)
    shardings = jax.tree.map(lambda x: x.sharding, variables["params"])
    merged = merge_adapters(
        jax.tree.map(jnp.copy, variables["params"]), variables["lora"], intern.lora,
        jnp.dtype("float32"), shardings,
    )  # fmt: skip
    rng = np.random.default_rng(3)
    tokens = rng.integers(5, 40, (4, 9)).astype(np.int32)
    patch = np.full_like(tokens, -1)
    patch[:, 2:6] = np.arange(4)
    pixels = rng.normal(size=(4, 1, 8, 8, 3)).astype(np.float32)
    batch = PromptBatch(tokens, np.ones((4, 9), bool), patch, pixels)
    keys = jax.random.split(jax.random.key(5), 4)

    def answers(model, variables):
        separate = unstack(model, variables)
        return np.asarray(generate(*separate, batch, keys, Sampling(8), (2,), 0))

    without = {part: x for part, x in variables["lora"].items() if part != "vision"}
    plain = Llava(intern.config)
    found = answers(intern, variables)
    np.testing.assert_array_equal(found, answers(plain, {"params": merged}))
    assert (found != answers(intern, variables | {"lora": without})).any()
    assert (found != answers(plain, {"params": variables["params"]})).any()


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(1, 8, 1), (2, 2, 2)], ids=str)
def test_devices_change_nothing(shape):
    """Loss and gradient of a step with dropout, on several devices and on one."""
    model = Llava(EIGHT_HEADS, dataclasses.replace(LORA, dropout=0.1))
    variables = jax.tree.map(np.asarray, random_variables(model))
    batch = packed([[e] for e in drawn(8)])
    results = []
    for sizes in ((1, 1, 1), shape):
        mesh, boxed = mesh_of(*sizes), abstract_variables(model)
        there = {
            name: jax.device_put(values, variable_shardings(mesh, boxed[name]))
            for name, values in variables.items()
        }
        with jax.set_mesh(mesh):
            gradient, metrics = step_of(model, there, put_batch(mesh, in_parts(batch), 1))
        results.append((jax.device_get(gradient), float(metrics["loss"])))
    (expected, loss), (found, other) = results
    assert other == pytest.approx(loss, rel=1e-6)
    largest = max(np.abs(x).max() for x in jax.tree.leaves(expected))
    assert_close(found, expected, 1e-5 * max(largest, 1))


@pytest.mark.parametrize("remat", ["none", "layers"])
@pytest.mark.parametrize("fields", [{"vision": True}, {"connector": True}], ids=str)
def test_operations_agree_with_xla(fields, remat):
    """They agree within 2 %, as XLA also counts norms, softmax and the optimiser."""
    e = experiment(("lora",), remat, lora=LoraConfig(rank=32, **fields))
    analysis = lower_step(e, PLANNED, mesh_of(1, 1, 1), SHAPE).compile().cost_analysis()
    counted = (analysis[0] if isinstance(analysis, list) else analysis)["flops"]
    expected = 4 * hardware_flops(forward(PLANNED, e.lora, SHAPE), ("lora",), remat)
    assert abs(counted / expected - 1) < 0.02, counted / expected


REFUSED = {
    "feature_cache needs a vision tower that does not change": (
        LoraConfig(vision=True), TrainOptions(trained=("lora",), feature_cache="features"),
    ),
    "leave vision out of train.trained, or set --lora.no-vision": (
        LoraConfig(vision=True), TrainOptions(trained=("lora", "vision")),
    ),
    "leave projector out of train.trained, or set --lora.no-connector": (
        LoraConfig(connector=True), TrainOptions(),
    ),
    "vision_targets is empty": (
        LoraConfig(vision=True, vision_targets=()), TrainOptions(trained=("lora",)),
    ),
    "nothing to adapt": (LoraConfig(targets=()), TrainOptions(trained=("lora",))),
}  # fmt: skip


@pytest.mark.parametrize("message", REFUSED)
def test_configs_that_are_refused(message):
    lora, train = REFUSED[message]
    with pytest.raises(DataError, match=message):
        check(Experiment(lora=lora, train=train))


def test_configs_that_are_not():
    """Features can be cached while adapters are on the connector alone."""
    cached = TrainOptions(trained=("lora",), feature_cache="features")
    check(Experiment(lora=LoraConfig(connector=True), train=cached))
    check(
        Experiment(lora=LoraConfig(targets=(), vision=True), train=TrainOptions(trained=("lora",)))
    )
