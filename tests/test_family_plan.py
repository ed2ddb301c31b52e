"""What the planner counts for towers other than CLIP, and for images of several tiles."""

import dataclasses
import functools
import math

import jax
import numpy as np
import pytest
from helpers_devices import mesh_of
from helpers_plan import SHAPE, experiment
from tiny_models import PLANNED

from seva_jax.batches.trees import RowShape
from seva_jax.config.base_models import Assets
from seva_jax.config.config_files import config_directory, read_config
from seva_jax.images.llava_next import LlavaNextProcessing
from seva_jax.inference.prefill_shapes import PrefillShape
from seva_jax.models import (
    InternConfig,
    Llava,
    LlavaConfig,
    LoraConfig,
    SiglipConfig,
    abstract_params,
)
from seva_jax.plan.answering import padded_prompt
from seva_jax.plan.options import PlanOptions, image_layout, row_shape, variants
from seva_jax.plan.program import lower_step
from seva_jax.plan.published import PUBLISHED
from seva_jax.training.flops import forward, hardware_flops
from seva_jax.types import DataError

# One layer each, because XLA counts the body of a scan once.
SIZES = {"image_size": 64, "patch_size": 16, "hidden_size": 128, "num_layers": 1, "num_heads": 4}
TOWERS = {
    "siglip": (SiglipConfig(**SIZES, mlp_size=512), {"feature_select": "full", "newline": True}),
    "intern": (InternConfig(**SIZES, mlp_size=512), {"projector_norm": True}),
}


def planned(name):
    tower, options = TOWERS[name]
    return dataclasses.replace(PLANNED, vision=tower, feature_layer=-1, **options)


@pytest.mark.parametrize("name", TOWERS)
def test_operations_agree_with_xla(name):
    """They agree within 2 %, as XLA also counts norms, softmax and the optimiser."""
    config, trained = planned(name), ("language", "vision", "projector")
    shape = dataclasses.replace(SHAPE, tiles=3)
    e = experiment(trained, "none")
    analysis = lower_step(e, config, mesh_of(1, 1, 1), shape).compile().cost_analysis()
    counted = (analysis[0] if isinstance(analysis, list) else analysis)["flops"]
    expected = 4 * hardware_flops(forward(config, e.lora, shape), trained, "none")
    assert abs(counted / expected - 1) < 0.02, counted / expected


def products(jaxpr):
    """Returns the operations of all matrix products of a program."""
    total = 0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            inner = math.prod(eqn.invars[0].aval.shape[dim] for dim in contracted)
            total += 2 * inner * eqn.outvars[0].aval.size
        times = eqn.params["length"] if eqn.primitive.name == "scan" else 1
        for value in eqn.params.values():
            inside = getattr(value, "jaxpr", value)
            if hasattr(inside, "eqns"):
                total += times * products(inside)
    return total


@pytest.mark.parametrize("name", [*TOWERS, "clip"])
def test_products_of_tower_and_projector(name):
    """They are those of the traced program, to the last one."""
    config = PLANNED if name == "clip" else planned(name)
    config = dataclasses.replace(config, vision=dataclasses.replace(config.vision, num_layers=3))
    model, shape = Llava(config), dataclasses.replace(SHAPE, tiles=3)
    pixels = jax.ShapeDtypeStruct((2, 3, 64, 64, 3), np.float32)

    def project(model, pixels):
        return model.projector(model.features(pixels))

    def apply(params, pixels, method):
        return model.apply({"params": params}, pixels, method=method)

    once = forward(config, LoraConfig(rank=0), shape)
    params = abstract_params(model)
    for method, expected in (("features", once.tower), (project, once.tower + once.projector)):
        traced = jax.make_jaxpr(functools.partial(apply, method=method))(params, pixels)
        assert products(traced.jaxpr) == 2 * expected


def test_unused_parameters():
    """A checkpoint has what transformers makes; we build less by these."""
    siglip = SiglipConfig(num_layers=27)
    layer = 4 * 1152 * 1152 + 4 * 1152 + 2 * 1152 * 4304 + 4304 + 1152 + 4 * 1152
    config = LlavaConfig(siglip, feature_layer=-2, feature_select="full", newline=True)
    assert config.unused_parameters == layer + 2 * 1152
    config = LlavaConfig(InternConfig(), feature_layer=-2, projector_norm=True)
    layer = 4 * 1024 * 1024 + 4 * 1024 + 2 * 1024 * 4096 + 4096 + 1024 + 6 * 1024
    assert config.unused_parameters == layer
    assert dataclasses.replace(config, feature_layer=-1).unused_parameters == 0


def test_rows_of_an_image_of_several_tiles():
    """A photograph of 480 x 640 is a grid of 2 x 2 tiles beside the whole picture.

    It covers 36 of 48 rows of features, each of which ends with a newline.
    """
    config, options = LlavaConfig(newline=True), PlanOptions(("h100:1",))
    processing = LlavaNextProcessing()
    image = image_layout(processing, config, options.image)
    assert (image.tiles, image.num_tokens) == (5, 576 + 36 * 49)
    # 1 + 2340 + 64 + 256 = 2661, rounded up to a multiple of 64; 2405 to one of 32.
    assert row_shape(image, options, 2) == RowShape(2688, 1, 2, 128, 5, 256)
    assert padded_prompt(image, 64) == PrefillShape(2432, 5)
    (same,) = Assets(config, None, processing).layouts([options.image])
    assert (same.patch_N == image.patch_N).all()


def test_rows_of_a_video():
    """RRPO's 16 frames: each is one tile of 27 x 27 features, of which 14 x 14 tokens are left."""
    published = PUBLISHED["llava-onevision-qwen2-7b"]
    options = PlanOptions(("h100:1",), size=("llava-onevision-qwen2-7b",), frames=16)
    image = image_layout(published.processing, published.config, options.image, options.frames)
    assert (image.tiles, image.num_tokens) == (16, 16 * 196 + 1)
    # 1 + 3137 + 64 + 256 = 3458, rounded up to a multiple of 64.
    shape = row_shape(image, options, 2)
    assert shape == RowShape(3520, 1, 2, 128, 16, 256)
    config = read_config(config_directory() / "rrpo.py")
    assert config.text.max_length > shape.length
    (variant,) = variants(config, options)
    assert variant.image is image
    one = forward(published.config, config.lora, dataclasses.replace(shape, tiles=1))
    assert forward(published.config, config.lora, shape).tower == 16 * one.tower


@pytest.mark.parametrize("size", ["7b", "llava-v1.6-vicuna-7b", "internvl3-8b"])
def test_videos_of_models_that_take_none(size):
    options = PlanOptions(("h100:1",), size=(size,), frames=16)
    with pytest.raises(DataError, match="--frames 16 plans for videos, which only LLaVA-OneVision"):
        variants(read_config(config_directory() / "rrpo.py"), options)


def test_videos_of_qwen_have_half_as_many_pictures():
    """Two frames share a tile; the bounds of Qwen3-VL are those of the whole video."""
    for name, tokens in (("qwen2.5-vl-7b", 17 * 23 * 8), ("qwen3-vl-8b", 15 * 20 * 8)):
        published = PUBLISHED[name]
        layout = image_layout(published.processing, published.config, (480, 640), 16)
        assert layout.tiles == layout.num_tokens == tokens
    bounded = dataclasses.replace(published.processing, max_video_pixels=32 * 32 * 16 * 50)
    layout = image_layout(bounded, published.config, (480, 640), 16)
    assert layout.tiles == 8 * 6 * 8
