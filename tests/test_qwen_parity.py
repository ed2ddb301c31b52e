"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL against transformers in float32."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

pytest.importorskip("torch")

from helpers_hub import check_hub_spelling
from helpers_qwen import QWEN, batch, image_processor, opened_pair, torch_batch

import seva_jax
from seva_jax.convert.__main__ import open_source
from seva_jax.convert.load import leaves_by_path
from seva_jax.convert.peft import to_peft
from seva_jax.convert.rewrite import to_hf
from seva_jax.models import Llava, LoraConfig, abstract_variables

ODD = [(91, 260), (300, 71), (56, 60), (130, 130)]


@pytest.fixture(scope="module", params=QWEN)
def pair(request, tmp_path_factory):
    """Returns the family, its model in transformers, and the same one opened by us."""
    return opened_pair(request.param, tmp_path_factory)


def trained_source(ours, lora, shapes, *collections):
    """Returns a run on a model with random values of the variables of these shapes."""
    rng = np.random.default_rng(5)
    values = leaves_by_path(
        jax.tree.map(
            lambda leaf: rng.normal(0, 0.2, leaf.value.shape).astype(np.float32),
            {name: shapes[name] for name in collections}, is_leaf=lambda x: hasattr(x, "names"),
        )
    )  # fmt: skip
    return dataclasses.replace(
        open_source(ours.directory), lora=lora,
        trained={name: leaf.shape for name, leaf in values.items()},
        read=lambda names: [values[name] for name in names],
    )  # fmt: skip


def compare(pair, arrays):
    import torch

    _, theirs, ours = pair
    with torch.no_grad():
        expected = theirs(**torch_batch(arrays)).logits.numpy()
    real = arrays["attention_mask"] == 1
    np.testing.assert_allclose(ours.logits(**arrays)[real], expected[real], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("size", ODD)
def test_logits_of_one_image(pair, size):
    compare(pair, batch(pair[0], [[size]], [9]))


@pytest.mark.parametrize("padding", ["left", "right"])
def test_logits_of_several_images_and_of_none(pair, padding):
    compare(pair, batch(pair[0], [ODD[:3], [], ODD[3:]], [11, 8, 9], padding))


def test_logits_without_images(pair):
    compare(pair, batch(pair[0], [[], []], [7, 12]))


def test_an_export_is_spelled_as_on_the_hub(pair, tmp_path):
    """The files are those that transformers 5 wrote; transformers finds every tensor in them."""
    from transformers import AutoModelForImageTextToText

    family, theirs, ours = pair
    shutil.copytree(ours.directory, tmp_path / "model")
    image_processor(family).save_pretrained(tmp_path / "model")
    to_hf(open_source(tmp_path / "model"), tmp_path / "out")
    check_hub_spelling(tmp_path / "out", family)
    again, loaded = AutoModelForImageTextToText.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert not loaded["missing_keys"]
    assert not loaded["unexpected_keys"]
    for name, values in theirs.state_dict().items():
        assert (again.state_dict()[name] == values).all(), name


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_adapters_are_those_of_peft(pair, tmp_path):
    """Read from peft's files, and written so that peft reads them, on the language model alone."""
    import copy

    import peft
    import torch

    family, theirs, ours = pair
    arrays = batch(family, [ODD[:2], [ODD[2]]], [11, 9])
    layers = r".*language_model\.layers\.\d+\.(self_attn|mlp)\.\w+_proj"
    config = peft.LoraConfig(r=3, lora_alpha=5.0, target_modules=layers)
    adapted = peft.get_peft_model(copy.deepcopy(theirs), config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
        expected = adapted(**torch_batch(arrays)).logits.numpy()
    adapted.save_pretrained(tmp_path / "peft")
    real = arrays["attention_mask"] == 1
    merged = seva_jax.from_pretrained(ours.directory, adapter=tmp_path / "peft")
    found = merged.logits(**arrays)
    np.testing.assert_allclose(found[real], expected[real], atol=1e-4, rtol=1e-4)
    assert np.abs(found - ours.logits(**arrays))[real].max() > 0.1

    lora = LoraConfig(4, 6.0)
    source = trained_source(ours, lora, abstract_variables(Llava(ours.config, lora=lora)), "lora")
    to_peft(source, tmp_path / "adapter")
    opened = peft.PeftModel.from_pretrained(copy.deepcopy(theirs), tmp_path / "adapter")
    with torch.no_grad():
        expected = opened(**torch_batch(arrays)).logits.numpy()
    found = seva_jax.from_pretrained(ours.directory, adapter=tmp_path / "adapter").logits(**arrays)
    np.testing.assert_allclose(found[real], expected[real], atol=1e-4, rtol=1e-4)
    assert np.abs(found - ours.logits(**arrays))[real].max() > 0.1


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_a_trained_merger_is_stored_whole(pair, tmp_path):
    """Peft replaces the base's modules by it, those of DeepStack too; transformers finds all."""
    import copy

    import peft
    import torch

    family, theirs, ours = pair
    arrays = batch(family, [ODD[:2], [ODD[2]]], [11, 9])
    lora = LoraConfig(4, 6.0, targets=("q_proj",))
    shapes = abstract_variables(Llava(ours.config, lora=lora))
    shapes["params"] = {"projector": shapes["params"]["projector"]}
    source = trained_source(ours, lora, shapes, "lora", "params")
    to_peft(source, tmp_path / "adapter")
    saved = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    deep = [f"visual.deepstack_merger_list.{i}" for i in range(2 * (family == "qwen3_vl"))]
    assert saved["modules_to_save"] == [*deep, "visual.merger"]
    opened = peft.PeftModel.from_pretrained(copy.deepcopy(theirs), tmp_path / "adapter")
    with torch.no_grad():
        expected = opened(**torch_batch(arrays)).logits.numpy()
    found = seva_jax.from_pretrained(ours.directory, adapter=tmp_path / "adapter").logits(**arrays)
    real = arrays["attention_mask"] == 1
    np.testing.assert_allclose(found[real], expected[real], atol=1e-4, rtol=1e-4)
    assert np.abs(found - ours.logits(**arrays))[real].max() > 0.1


def test_greedy_answers(pair):
    import torch

    family, theirs, ours = pair
    arrays = batch(family, [ODD[:2], [ODD[2]], []], [11, 9, 12])
    with torch.no_grad():
        expected = theirs.generate(**torch_batch(arrays), max_new_tokens=12, do_sample=False)
    found = ours.generate(**arrays, max_new_tokens=12)
    np.testing.assert_array_equal(found, expected.numpy())
