"""Exports that transformers and peft load give the same logits as our model."""

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")

from helpers_hub import check_hub_spelling  # noqa: E402
from helpers_llava import (  # noqa: E402
    IMAGE_TOKEN,
    PROCESSOR,
    random_llava,
    save,
    write_run,
)
from safetensors import safe_open  # noqa: E402
from transformers import LlavaForConditionalGeneration  # noqa: E402

import seva_jax  # noqa: E402
from seva_jax.convert import load_params  # noqa: E402
from seva_jax.convert.__main__ import open_source  # noqa: E402
from seva_jax.convert.peft import to_peft  # noqa: E402
from seva_jax.convert.rewrite import to_hf  # noqa: E402
from seva_jax.inference.qwen_arrays import ImageArrays  # noqa: E402
from seva_jax.models import Llava  # noqa: E402
from seva_jax.pretrained import to_rows  # noqa: E402
from seva_jax.training.step import merge  # noqa: E402

pytestmark = [
    pytest.mark.parity,
    # peft 0.21 asks transformers 5.23 for a name that transformers deprecates.
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),
]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Returns a small LLaVA, a run's work directory, inputs, and our aligned model's logits."""
    root = tmp_path_factory.mktemp("export")
    directory = save(random_llava(), root / "model", max_shard_size="100kB")
    assert len(list(directory.glob("*.safetensors"))) > 1
    (directory / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    trained = write_run(root / "run", directory)
    ids = np.random.default_rng(0).integers(3, 400, (2, 12))
    ids[:, 2:6] = IMAGE_TOKEN
    pixels = np.random.default_rng(1).normal(size=(2, 3, 28, 28)).astype(np.float32)
    base = seva_jax.from_pretrained(directory)
    source = open_source(root / "run")
    batch = to_rows(base.config, ids, None, ImageArrays(pixels))
    variables = merge({"params": load_params(directory, base.config)}, trained)
    causal = np.tril(np.ones((12, 12), bool))[None].repeat(2, 0)
    positions = np.arange(12)[None].repeat(2, 0)
    ours = Llava(base.config, lora=source.lora).apply(
        variables, batch.tokens_BS, positions, causal, batch.patch_BS, batch.pixels_BIHWC
    )
    untrained = base.logits(ids, pixels)
    assert np.abs(ours - untrained).max() > 1  # what was trained matters
    return root, source, ids, pixels, np.asarray(ours)


def their_logits(model, ids, pixels):
    with torch.no_grad():
        output = model.eval()(input_ids=torch.tensor(ids), pixel_values=torch.tensor(pixels))
        return output.logits.numpy()


def test_merged_model_in_transformers(run):
    root, source, ids, pixels, ours = run
    to_hf(source, root / "merged")
    model = LlavaForConditionalGeneration.from_pretrained(root / "merged", dtype=torch.float32)
    np.testing.assert_allclose(their_logits(model, ids, pixels), ours, atol=1e-4, rtol=1e-4)
    again = seva_jax.from_pretrained(root / "merged").logits(ids, pixels)
    np.testing.assert_allclose(again, ours, atol=1e-4, rtol=1e-4)
    check_hub_spelling(root / "merged", "llava")


def test_adapter_in_peft(run):
    root, source, ids, pixels, ours = run
    to_peft(source, root / "adapter")
    named = peft.PeftConfig.from_pretrained(root / "adapter").base_model_name_or_path
    base = LlavaForConditionalGeneration.from_pretrained(named, dtype=torch.float32)
    model = peft.PeftModel.from_pretrained(base, root / "adapter")
    np.testing.assert_allclose(their_logits(model, ids, pixels), ours, atol=1e-4, rtol=1e-4)
    # peft would write the same names.
    model.save_pretrained(root / "theirs")
    names = {
        directory: set(tensor_names(root / directory / "adapter_model.safetensors"))
        for directory in ("adapter", "theirs")
    }
    assert names["adapter"] == names["theirs"]


def tensor_names(path):
    with safe_open(path, framework="np") as file:
        return list(file.keys())
