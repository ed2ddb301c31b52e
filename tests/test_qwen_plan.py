"""What is lowered and counted for towers of native resolution, and their programs for TPUs."""

import dataclasses
import functools
import math

import jax
import numpy as np
import pytest
from helpers_devices import mesh_of
from helpers_plan import SHAPE, experiment
from tiny_models import PLANNED

from seva_jax.config.base_models import Checkpoint
from seva_jax.inference.prefill_shapes import PrefillShape
from seva_jax.models import (
    Llava,
    LoraConfig,
    Qwen2VisionConfig,
    Qwen3VisionConfig,
    Qwen25VisionConfig,
    abstract_params,
)
from seva_jax.plan.answering import padded_prompt
from seva_jax.plan.options import PlanOptions, row_shape, variants
from seva_jax.plan.program import lower_rollout, lower_step
from seva_jax.text.sampling import Sampling
from seva_jax.training.flops import forward, hardware_flops

SIZES = {"hidden_size": 128, "num_layers": 2, "num_heads": 2}
TOWERS = {
    "qwen2": Qwen2VisionConfig(**SIZES, mlp_size=512),
    "qwen2.5": Qwen25VisionConfig(**SIZES, mlp_size=344, full_layers=(1,)),
    "qwen3": Qwen3VisionConfig(**SIZES, mlp_size=512, position_grid=6, deep=(0,)),
}
SHAPE = dataclasses.replace(SHAPE, tiles=36)


def planned(name, **fields):
    """Returns a model with this tower and positions of three axes."""
    text = dataclasses.replace(PLANNED.text, rope_sections=(8, 12, 12))
    if name == "qwen3":
        text = dataclasses.replace(text, rope_interleaved=True, qk_norm=True)
    vision = dataclasses.replace(TOWERS[name], **fields)
    return dataclasses.replace(
        PLANNED, vision=vision, text=text, feature_layer=-1, feature_select="full"
    )


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("name", TOWERS)
def test_a_step_compiles(name, cached, capfd):
    """It does on a mesh of all axes, from pixels and from stored features."""
    e = experiment()
    e = dataclasses.replace(e, train=dataclasses.replace(e.train, feature_cache=cached))
    compiled = lower_step(e, planned(name), mesh_of(2, 2, 2), SHAPE).compile()
    assert compiled.memory_analysis().argument_size_in_bytes > 0
    assert "Involuntary full rematerialization" not in capfd.readouterr().err


@pytest.mark.parametrize("name", TOWERS)
def test_prefill_and_decode_compile(name):
    e = experiment()
    rollout = dataclasses.replace(e.rollout, sampling=Sampling(4), batch_size=8)
    e = dataclasses.replace(e, rollout=rollout)
    programs = lower_rollout(e, planned(name), mesh_of(2, 2, 2), PrefillShape(96, 36))
    for program in programs:
        assert program.compile().memory_analysis().argument_size_in_bytes > 0


@pytest.mark.parametrize("name", TOWERS)
def test_operations_agree_with_xla(name):
    """They agree within 2 %. The tower has one layer: XLA counts the body of a scan once."""
    fields = {"deep": (0,)} if name == "qwen3" else {}
    config, trained = planned(name, num_layers=1, **fields), ("language", "projector")
    if name == "qwen2.5":
        config = planned(name, num_layers=1, full_layers=(0,))
    e = experiment(trained, "none")
    analysis = lower_step(e, config, mesh_of(1, 1, 1), SHAPE).compile().cost_analysis()
    counted = (analysis[0] if isinstance(analysis, list) else analysis)["flops"]
    expected = 4 * hardware_flops(forward(config, e.lora, SHAPE), trained, "none")
    assert abs(counted / expected - 1) < 0.02, counted / expected


def products(jaxpr, whole):
    """Returns the operations of all matrix products of a program on a CPU.

    Args:
        jaxpr: the program.
        whole: whether layers that choose attend to the whole picture, or to windows.
    """
    total, platforms = 0, set()
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "platform_index":
            platforms.update(eqn.outvars)
        if eqn.primitive.name == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            inner = math.prod(eqn.invars[0].aval.shape[dim] for dim in contracted)
            total += 2 * inner * eqn.outvars[0].aval.size
        if eqn.primitive.name == "cond":
            last = whole or eqn.invars[0] in platforms  # the default platform is the last
            total += products(eqn.params["branches"][-1 if last else 0].jaxpr, whole)
        times = eqn.params["length"] if eqn.primitive.name == "scan" else 1
        for value in eqn.params.values():
            inside = getattr(value, "jaxpr", value)
            if hasattr(inside, "eqns"):
                total += times * products(inside, whole)
    return total


@pytest.mark.parametrize("tiles", [36, 129])
@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("name", TOWERS)
def test_products_of_tower_and_mergers(name, whole, tiles):
    """They are those of the traced program, to the last one."""
    layers = {"full_layers": (0, 1) if whole else ()} if name == "qwen2.5" else {}
    config = planned(name, **layers)
    model, shape = Llava(config), dataclasses.replace(SHAPE, tiles=tiles)
    side = config.vision.image_size
    pixels = jax.ShapeDtypeStruct((2, tiles, side, side, 3), np.float32)
    place = jax.ShapeDtypeStruct((2, tiles, 5), np.int32)

    def merge(model, pixels, place):
        features = model.features(pixels, place)
        return model.projector(features), model.projector.deep(features)

    def apply(params, pixels, place, method):
        return model.apply({"params": params}, pixels, place, method=method)

    once = forward(config, LoraConfig(rank=0), shape)
    params = abstract_params(model)
    for method, expected in (("features", once.tower), (merge, once.tower + once.projector)):
        traced = jax.make_jaxpr(functools.partial(apply, method=method))(params, pixels, place)
        assert products(traced.jaxpr, whole) == 2 * expected


@pytest.mark.parametrize(
    ("most", "size", "tokens"),
    [
        # Resized to 476 x 644 pixels; and to 420 x 588, the most below 262,144 with that shape.
        (None, "qwen2.5-vl-7b", 17 * 23),
        (262144, "qwen2.5-vl-7b", 15 * 21),
        (262144, "7b", 576),
    ],
)
def test_rows_of_an_image(most, size, tokens):
    """A picture of 480 x 640 pixels has a token for each tile; `base.max_pixels` bounds them."""
    options = PlanOptions(("h100:1",), size=(size,))
    e = dataclasses.replace(experiment(), base=Checkpoint(path="nowhere", max_pixels=most))
    (variant,) = variants(e, options)
    assert variant.image.num_tokens == tokens
    length = 1 + tokens + 64 + 2 * 128
    assert row_shape(variant.image, options, 2).length == -(-length // 64) * 64
    assert padded_prompt(variant.image, 64).tiles == (1 if size == "7b" else tokens)
