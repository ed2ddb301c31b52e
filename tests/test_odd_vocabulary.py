"""A vocabulary that `tensor` does not divide: any mesh equals one device, and files have its size.

InternVL3's 151,674 rows divide by 2 only.
"""

import dataclasses
import itertools

import helpers_rollout
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers_devices import mesh_of
from helpers_llava import random_params, their_tensors
from helpers_rollout import PROMPTS, prompt_set
from helpers_trees import OPTIONS, assert_trees_close, example, pack, shape_of
from jax.sharding import PartitionSpec
from safetensors.numpy import load_file, save_file
from tiny_models import EIGHT_HEADS, noisy_variables, random_variables

from seva_jax.convert import load_params
from seva_jax.convert.table import HEAD
from seva_jax.inference.answering_layout import possible_tensors, require_tensor
from seva_jax.models import Llava, LoraConfig, abstract_params, abstract_variables
from seva_jax.objectives import DPO
from seva_jax.plan.published import PUBLISHED
from seva_jax.sharding import put_batch, replicated, resolve, variable_shardings
from seva_jax.text.sampling import Sampling
from seva_jax.training.checkpoint import Checkpoints
from seva_jax.training.step import TrainState, TrainStep
from seva_jax.types import DataError

ODD = 41
MESHES = [(2, 1, 4), (1, 2, 4), (2, 2, 2), (1, 1, 8)]


def of_vocabulary(size, tied=False, **fields):
    text = dataclasses.replace(EIGHT_HEADS.text, vocab_size=size, tied_head=tied)
    return dataclasses.replace(EIGHT_HEADS, text=text, **fields)


MODEL = Llava(of_vocabulary(ODD), LoraConfig(rank=4, alpha=8.0))
TIED = Llava(of_vocabulary(ODD, tied=True), LoraConfig(rank=4, alpha=8.0))


def shardings_of(model, mesh):
    return variable_shardings(mesh, dict(abstract_variables(model)))


def test_width_is_split_where_the_vocabulary_is_not():
    mesh = mesh_of(1, 2, 4)
    split = ("fsdp", "tensor")
    assert resolve(mesh, ("vocab", "embed"), (41, 16), "w").spec == PartitionSpec(None, split)
    assert resolve(mesh, ("embed", "vocab"), (16, 41), "w").spec == PartitionSpec(split, None)
    # Nothing changes for a vocabulary that divides.
    even = PartitionSpec("tensor", "fsdp")
    assert resolve(mesh, ("vocab", "embed"), (40, 16), "w").spec == even
    with pytest.raises(DataError, match=r"w: neither does the vocabulary \(41\).*width \(12\)"):
        resolve(mesh, ("vocab", "embed"), (41, 12), "w")


# --- training


def step(model, shape, variables):
    """Returns metrics and gradients of adapters, projector and the whole language model."""
    rng = np.random.default_rng(0)
    examples = [example(rng, num_images=i % 3, index=i, weight=1 + i % 2) for i in range(8)]
    batch = pack([[e] for e in examples], shape_of(examples))
    batch = batch._replace(ref_BCKT=-2.0 * batch.mask_BCKT)
    mesh = mesh_of(*shape)
    placed = jax.device_put(variables, shardings_of(model, mesh))
    parts = {name: placed["params"][name] for name in ("projector", "language")}
    trainable = {"lora": placed["lora"], "params": parts}
    optimizer = optax.sgd(1.0)
    state = TrainState(jnp.int32(0), trainable, optimizer.init(trainable))
    run = jax.jit(TrainStep(model, DPO(beta=0.5), optimizer, OPTIONS, False))
    with jax.set_mesh(mesh):
        batch = jax.tree.map(lambda x: x[None], batch)
        new, metrics = run(state, {"params": placed["params"]}, put_batch(mesh, batch, leading=1))
    gradient = jax.tree.map(lambda a, b: np.asarray(a) - np.asarray(b), trainable, new.trainable)
    return jax.device_get(metrics), gradient


@pytest.mark.parametrize(
    ("model", "shapes"),
    [
        pytest.param(MODEL, [(1, 2, 4)], id="head"),
        pytest.param(TIED, [(2, 1, 4)], id="tied", marks=pytest.mark.slow),
        pytest.param(MODEL, [(2, 2, 2), (1, 1, 8)], id="other meshes", marks=pytest.mark.slow),
    ],
)
def test_loss_and_gradient(model, shapes):
    variables = jax.tree.map(np.asarray, random_variables(model))
    metrics, expected = step(model, (1, 1, 1), variables)
    assert np.abs(expected["params"]["language"]["embedding"]).max() > 1e-2
    for shape in shapes:
        found, gradient = step(model, shape, variables)
        np.testing.assert_allclose(found["loss"], metrics["loss"], rtol=0, atol=1e-6)
        assert_trees_close(gradient, expected, atol=2e-6)


def test_logits_stay_split():
    """Each device has its part of the vocabulary: the last is shorter, and none has all of it."""
    mesh = mesh_of(2, 1, 4)
    params = jax.device_put(
        jax.tree.map(np.asarray, random_variables(MODEL))["params"],
        shardings_of(MODEL, mesh)["params"],
    )
    hidden = np.ones((2, 64, 16), np.float32)

    def total(params, hidden):
        logits = MODEL.apply({"params": params}, hidden, method="head")
        assert logits.shape == (2, 64, ODD)
        return jax.nn.logsumexp(logits, axis=-1)

    with jax.set_mesh(mesh):
        text = jax.jit(total).lower(params, put_batch(mesh, hidden)).compile().as_text()
    assert "f32[1,64,11]" in text
    assert f"f32[1,64,{ODD}]" not in text


def test_a_state_is_saved_and_restored_on_other_meshes(tmp_path):
    """A checkpoint has the true sizes, whatever mesh wrote it."""
    params = jax.tree.map(np.asarray, random_variables(MODEL))["params"]
    old = jax.device_put(params, shardings_of(MODEL, mesh_of(1, 2, 4))["params"])
    checkpoints = Checkpoints(tmp_path, {})
    checkpoints.save(TrainState(jnp.int32(3), {"params": old}, {}), {})
    checkpoints.close()
    checkpoints = Checkpoints(tmp_path, {})
    for shape in [(1, 1, 1), (1, 1, 8)]:
        there = shardings_of(MODEL, mesh_of(*shape))["params"]
        like = jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), params, there
        )
        number = jax.ShapeDtypeStruct((), jnp.int32, sharding=replicated(mesh_of(*shape)))
        restored = checkpoints.restore(TrainState(number, {"params": like}, {}))
        assert restored is not None
        found = restored[0].trainable["params"]
        jax.tree.map(np.testing.assert_array_equal, found, params)
        assert found["language"]["head"].sharding == there["language"]["head"]
    checkpoints.close()


# --- files


def test_loading_and_writing_back(tmp_path):
    params = random_params(MODEL.config)
    save_file(their_tensors(params), tmp_path / "model.safetensors")
    for shape in MESHES:
        there = shardings_of(MODEL, mesh_of(*shape))["params"]
        loaded = load_params(tmp_path, MODEL.config, "float32", there)
        jax.tree.map(np.testing.assert_array_equal, loaded, params)
        head = loaded["language"]["head"]
        assert head.sharding == there["language"]["head"]
        width = 16 // (shape[1] * shape[2])
        assert head.addressable_shards[0].data.shape == (width, ODD)
    written = their_tensors(jax.tree.map(np.asarray, loaded))
    for name, values in load_file(tmp_path / "model.safetensors").items():
        np.testing.assert_array_equal(written[name], values)
    assert written[HEAD].shape == (ODD, 16)


# --- answers

SMALL = Llava(of_vocabulary(31, image_token_id=helpers_rollout.IMAGE))
SAMPLINGS = [
    Sampling(8),
    Sampling(8, temperature=1.5, top_p=0.9),
    Sampling(8, temperature=1.5, repetition_penalty=1.3),
]


def answers(values, mesh, sampling, **options):
    made = helpers_rollout.engine(None, mesh=mesh, **options)
    values = jax.device_put(values, shardings_of(SMALL, made.mesh))
    made = dataclasses.replace(made, model=SMALL, variables=values)
    asked = made.answer(prompt_set(PROMPTS[:8]), sampling)
    return [a.answers for a in itertools.chain(*asked)]


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=["greedy", "top-p", "penalty"])
def test_sampled_answers(sampling):
    values = jax.tree.map(np.asarray, noisy_variables(SMALL))
    expected = answers(values, (1, 1, 1), sampling)
    assert len(set(expected)) > 3
    assert answers(values, (1, 2, 4), sampling, tensor=4) == expected


# --- plans


def test_internvl3_8b_is_planned_with_more_than_two_devices():
    model = Llava(PUBLISHED["internvl3-8b"].config)
    shapes = {"params": abstract_params(model)}
    mesh = mesh_of(1, 8, 1)
    assert list(possible_tensors(model, shapes, mesh)) == [1, 2, 4]  # 4 key-value heads
    require_tensor(model, shapes, mesh, 4)
    placed = shardings_of(model, mesh_of(1, 2, 4))["params"]["language"]
    assert placed["embedding"].shard_shape((151674, 3584)) == (151674, 448)
