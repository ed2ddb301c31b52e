"""Language models of the kinds that LLaVAs have, against transformers on the same weights."""

import dataclasses
import json

import numpy as np
import pytest

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch")

from helpers_llava import PROCESSOR, VOCAB, random_llava, save, write_run  # noqa: E402
from test_pretrained_parity import check_logits, inputs, their_answers  # noqa: E402
from transformers import LlavaForConditionalGeneration  # noqa: E402

import seva_jax  # noqa: E402
from seva_jax.convert import SpecialTokens, load_params  # noqa: E402
from seva_jax.convert.__main__ import open_source  # noqa: E402
from seva_jax.convert.hf_config import llava_config_fields  # noqa: E402
from seva_jax.convert.peft import to_peft  # noqa: E402
from seva_jax.convert.rewrite import to_hf  # noqa: E402
from seva_jax.inference.qwen_arrays import ImageArrays  # noqa: E402
from seva_jax.models import (  # noqa: E402
    DynamicRope,
    LinearRope,
    Llama3Rope,
    Llava,
    TextConfig,
    YarnRope,
)
from seva_jax.pretrained import to_rows  # noqa: E402
from seva_jax.training.step import merge  # noqa: E402

GROUPED = {"num_key_value_heads": 2}
LLAMA3 = {
    "rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32, "rope_theta": 500.0,
}  # fmt: skip
YARN = {
    "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "rope_theta": 500.0,
}  # fmt: skip


def rope(**fields):
    return {"rope_parameters": {"rope_theta": 10000.0} | fields, "max_position_embeddings": 128}


# Each with its fields in config.json, and how it shows in ours.
TEXTS = {
    "llama3 rope": (rope(**LLAMA3), {"rope": Llama3Rope(4.0, 1.0, 4.0, 32)}),
    "linear rope": (rope(rope_type="linear", factor=2.5), {"rope": LinearRope(2.5)}),
    "dynamic rope": (rope(rope_type="dynamic", factor=2.0), {"rope": DynamicRope(2.0, 128)}),
    "yarn": (rope(**YARN) | GROUPED, {"rope": YarnRope(4.0, 32)}),
    "yarn with all options": (
        rope(**YARN, beta_fast=8, beta_slow=2, mscale=1.0, mscale_all_dim=0.5, truncate=False),
        {"rope": YarnRope(4.0, 32, (0.1 * np.log(4) + 1) / (0.05 * np.log(4) + 1), 8, 2, False)},
    ),
    "mistral without a window": (
        {"model_type": "mistral", "sliding_window": None} | GROUPED,
        {"window": 0},
    ),
    "mistral": (
        {"model_type": "mistral", "sliding_window": 5, "head_dim": 16} | GROUPED,
        {"window": 5, "head_dim": 16},
    ),
    "qwen2, tied": (
        {"model_type": "qwen2", "tie_word_embeddings": True} | GROUPED,
        {"qkv_bias": True, "window": 0, "tied_head": True},
    ),
    "qwen2 with layers with a window": (
        {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 4}
        | {"max_window_layers": 1}
        | GROUPED,
        {"qkv_bias": True, "window": 4, "full_layers": (0,), "tied_head": False},
    ),
    "qwen3": (
        {"model_type": "qwen3", "head_dim": 16, "use_sliding_window": True, "sliding_window": 6}
        | {"layer_types": ["sliding_attention", "full_attention"]}
        | GROUPED,
        {"qk_norm": True, "head_dim": 16, "window": 6, "full_layers": (1,)},
    ),
}  # fmt: skip
NEW = 8


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Returns a function from the name of a text to (transformers' model, ours), made once."""
    made = {}

    def get(name):
        if name not in made:
            text = TEXTS[name][0]
            tied = text.get("tie_word_embeddings", False)
            model = random_llava(text, tie_word_embeddings=tied)
            directory = save(model, tmp_path_factory.mktemp("llava"))
            made[name] = model, seva_jax.from_pretrained(directory)
        return made[name]

    return get


@pytest.mark.parametrize("name", TEXTS)
def test_logits_and_greedy_answers(pair, name):
    theirs, ours = pair(name)
    text = ours.config.text
    assert {field: getattr(text, field) for field in TEXTS[name][1]} == {
        field: pytest.approx(value) if isinstance(value, float) else value
        for field, value in TEXTS[name][1].items()
    }
    for padding in ("left", "right"):
        check_logits(theirs, ours, inputs((1, 2), (21, 4), padding))
    batch = inputs((1, 0), (12, 9), "left", seed=1)
    expected = their_answers(theirs, batch, max_new_tokens=NEW, eos_token_id=VOCAB)
    got = dataclasses.replace(ours, special=SpecialTokens((VOCAB,), 0))
    np.testing.assert_array_equal(got.generate(*batch, max_new_tokens=NEW), expected)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # of peft
def test_exports_of_a_run_on_qwen2(tmp_path):
    """Adapters on layers with biases: transformers and peft compute what our policy computes."""
    peft = pytest.importorskip("peft")
    text = {"model_type": "qwen2", "num_key_value_heads": 2, "tie_word_embeddings": True}
    directory = save(random_llava(text, tie_word_embeddings=True), tmp_path / "model")
    (directory / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    trained = write_run(tmp_path / "run", directory)
    source = open_source(tmp_path / "run")
    base = seva_jax.from_pretrained(directory)
    ids, pixels, _ = inputs((1, 1), (7, 7), "left")
    batch = to_rows(base.config, ids, None, ImageArrays(pixels))
    variables = merge({"params": load_params(directory, base.config)}, trained)
    size = ids.shape[1]
    causal = np.tril(np.ones((size, size), bool))[None].repeat(2, 0)
    positions = np.arange(size)[None].repeat(2, 0)
    ours = Llava(base.config, lora=source.lora).apply(
        variables, batch.tokens_BS, positions, causal, batch.patch_BS, batch.pixels_BIHWC
    )
    assert np.abs(ours - base.logits(ids, pixels)).max() > 0.5  # what was trained matters

    def theirs(model):
        with torch.no_grad():
            named = {"input_ids": torch.tensor(ids), "pixel_values": torch.tensor(pixels)}
            return model.eval()(**named).logits.numpy()

    to_hf(source, tmp_path / "merged")
    opened = LlavaForConditionalGeneration.from_pretrained
    merged, report = opened(tmp_path / "merged", dtype=torch.float32, output_loading_info=True)
    assert not report["missing_keys"] | report["unexpected_keys"]
    np.testing.assert_allclose(theirs(merged), ours, atol=1e-4, rtol=1e-4)
    to_peft(source, tmp_path / "adapter")
    adapted = peft.PeftModel.from_pretrained(
        opened(directory, dtype=torch.float32), tmp_path / "adapter"
    )
    np.testing.assert_allclose(theirs(adapted), ours, atol=1e-4, rtol=1e-4)
    # Our own fields, as an export of another layout writes them, mean the same model.
    fields = llava_config_fields(base.config)
    (tmp_path / "merged" / "config.json").write_text(json.dumps(fields))
    again = opened(tmp_path / "merged", dtype=torch.float32)
    np.testing.assert_array_equal(theirs(again), theirs(merged))


def test_each_option_of_the_text_changes_the_logits(pair):
    """Otherwise the comparison above would not notice that one is ignored."""
    without = {
        "llama3 rope": {"rope": TextConfig().rope},
        "linear rope": {"rope": TextConfig().rope},
        "yarn": {"rope": TextConfig().rope},
        "yarn with all options": {"rope": YarnRope(4.0, 32)},
        "mistral": {"window": 0},
        "qwen2 with layers with a window": {"full_layers": ()},
        "qwen3": {"full_layers": (0,)},
    }
    for name, change in without.items():
        _, ours = pair(name)
        batch = inputs((1,), (21,), "left")
        text = dataclasses.replace(ours.config.text, **change)
        other = dataclasses.replace(ours, config=dataclasses.replace(ours.config, text=text))
        assert np.abs(other.logits(*batch) - ours.logits(*batch)).max() > 1e-2, name
