"""The original layout and pickles, against transformers and torch."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from helpers_llava import (  # noqa: E402
    IMAGE_TOKEN,
    random_llava,
    save,
    write_original,
    write_run,
)
from helpers_tokenizer import llama_style_tokenizer  # noqa: E402
from safetensors.numpy import load_file  # noqa: E402
from transformers import (  # noqa: E402
    AutoProcessor,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaForConditionalGeneration,
)

import seva_jax  # noqa: E402
from seva_jax.convert import __main__ as command  # noqa: E402
from seva_jax.convert.__main__ import open_source  # noqa: E402
from seva_jax.convert.peft import to_llava_lora  # noqa: E402
from seva_jax.convert.pickles import from_bin  # noqa: E402
from seva_jax.convert.rewrite import to_hf, to_llava  # noqa: E402
from seva_jax.images.preprocess import ImageProcessing  # noqa: E402
from seva_jax.text.templates import VICUNA_V1  # noqa: E402
from seva_jax.types import DataError  # noqa: E402

pytestmark = [
    pytest.mark.parity,
    # peft 0.21 asks transformers 5.23 for a name that transformers deprecates.
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Returns a small LLaVA as transformers saves it, with tokenizer and processor, and inputs."""
    directory = save(random_llava(), tmp_path_factory.mktemp("original") / "hf")
    corpus = ["a chat about what is in the image", "the red circle is on the left"] * 5
    llama_style_tokenizer(corpus, IMAGE_TOKEN + 2).save_pretrained(directory)
    fields = ImageProcessing(size=28).to_processor_config()
    (directory / "preprocessor_config.json").write_text(json.dumps(fields))
    ids = np.random.default_rng(0).integers(3, 250, (2, 12))
    ids[:, 2:6] = IMAGE_TOKEN
    pixels = np.random.default_rng(1).normal(size=(2, 3, 28, 28)).astype(np.float32)
    theirs = LlavaForConditionalGeneration.from_pretrained(directory)
    return directory, ids, pixels, their_logits(theirs, ids, pixels)


def their_logits(model, ids, pixels):
    with torch.no_grad():
        output = model.eval()(input_ids=torch.tensor(ids), pixel_values=torch.tensor(pixels))
        return output.logits.numpy()


def test_the_original_layout_gives_the_same_logits(model, tmp_path):
    directory, ids, pixels, expected = model
    to_llava(open_source(directory), tmp_path / "llava")
    ours = seva_jax.from_pretrained(tmp_path / "llava")
    np.testing.assert_allclose(ours.logits(ids, pixels), expected, atol=1e-4, rtol=1e-4)
    # The tower is one that transformers opens, with nothing missing.
    tower, info = CLIPVisionModel.from_pretrained(
        tmp_path / "llava" / "vision_tower", output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    theirs = LlavaForConditionalGeneration.from_pretrained(directory)
    for name, values in theirs.model.vision_tower.state_dict().items():
        assert torch.equal(values, tower.state_dict()[name]), name
    # transformers' own spelling of a CLIP directory is read too.
    save(tower, tmp_path / "clip")
    (tmp_path / "llava" / "vision_tower" / "model.safetensors").unlink()
    again = seva_jax.from_pretrained(tmp_path / "llava", vision_tower=tmp_path / "clip")
    np.testing.assert_array_equal(again.logits(ids, pixels), ours.logits(ids, pixels))


def test_an_original_checkpoint_as_a_hugging_face_one(tmp_path):
    clip = tmp_path / "clip"
    checkpoint = write_original(tmp_path / "llava", clip)
    to_hf(open_source(checkpoint, str(clip)), tmp_path / "hf")
    theirs, info = LlavaForConditionalGeneration.from_pretrained(
        tmp_path / "hf", output_loading_info=True
    )
    missing = info["missing_keys"] - {"model.vision_tower.post_layernorm.bias"}
    assert all("encoder.layers.2" in name for name in missing)  # what the fixture leaves out
    ids = np.random.default_rng(0).integers(5, 35, (2, 12))
    ids[:, 2:6] = 40
    pixels = np.random.default_rng(1).normal(size=(2, 3, 28, 28)).astype(np.float32)
    expected = their_logits(theirs, ids, pixels)
    ours = seva_jax.from_pretrained(checkpoint, vision_tower=clip).logits(ids, pixels)
    np.testing.assert_allclose(ours, expected[..., :40], atol=1e-4, rtol=1e-4)

    processor = AutoProcessor.from_pretrained(tmp_path / "hf")
    image = np.random.default_rng(2).integers(0, 256, (20, 30, 3), np.uint8)
    content = [{"type": "image"}, {"type": "text", "text": "What is it?"}]
    text = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True
    )
    assert text == VICUNA_V1.prompt("What is it?")
    inputs = processor(images=image, text=text, return_tensors="np")
    assert (inputs["input_ids"] == 40).sum() == 4
    ours = ImageProcessing.from_processor_config(tmp_path / "hf")(image)
    theirs = inputs["pixel_values"][0].transpose(1, 2, 0)
    np.testing.assert_allclose(theirs, ours, atol=4 / 255 / 0.26)


@pytest.mark.parametrize("shards", [1, 2])
def test_pickles_become_safetensors(model, tmp_path, shards, monkeypatch, capsys):
    directory, ids, pixels, expected = model
    tensors = torch_state(directory)
    old = tmp_path / "old"
    old.mkdir()
    for name in ("config.json", "tokenizer.json", "generation_config.json"):
        (old / name).write_bytes((directory / name).read_bytes())
    if shards == 1:
        torch.save(tensors, old / "pytorch_model.bin")
    else:
        names = sorted(tensors)
        files = [f"pytorch_model-0000{i}-of-00002.bin" for i in (1, 2)]
        for i, file in enumerate(files):
            torch.save({name: tensors[name] for name in names[i::2]}, old / file)
        weight_map = {name: files[i % 2] for i, name in enumerate(names)}
        index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
        (old / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    monkeypatch.setattr("sys.argv", ["convert", "from-bin", str(old), str(tmp_path / "new")])
    command.main()
    assert f"{len(tensors)} tensors in {shards} safetensors files" in capsys.readouterr().out
    new = seva_jax.from_pretrained(tmp_path / "new")
    np.testing.assert_allclose(new.logits(ids, pixels), expected, atol=1e-4, rtol=1e-4)
    for path in (tmp_path / "new").glob("*.safetensors"):
        for name, values in load_file(path).items():
            np.testing.assert_array_equal(values, tensors[name].numpy())


def torch_state(directory):
    tensors = load_file(directory / "model.safetensors")
    return {name: torch.from_numpy(values) for name, values in tensors.items()}


class Evil:
    """A pickle that would leave a file behind if it were run."""

    def __reduce__(self):
        return (os.system, ("touch /tmp/seva_jax_was_here",))


@pytest.mark.parametrize(
    "content", [Evil(), {"weight": Evil()}, {"weight": [1, 2]}, [torch.ones(2)], None]
)
def test_pickles_with_more_than_weights_are_refused(model, tmp_path, content):
    (tmp_path / "old").mkdir()
    path = tmp_path / "old" / "pytorch_model.bin"
    if content is None:
        path.write_bytes(b"\x80damaged")
    else:
        torch.save(content, path)
    with pytest.raises(DataError, match="holds more than"):
        from_bin(tmp_path / "old", tmp_path / "new")
    assert not Path("/tmp/seva_jax_was_here").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["old"]


def test_shared_storage_and_nothing_to_convert(tmp_path):
    (tmp_path / "old").mkdir()
    with pytest.raises(DataError, match=r"holds no pytorch_model\*\.bin"):
        from_bin(tmp_path / "old", tmp_path / "new")
    weight = torch.arange(6.0).reshape(2, 3)
    torch.save({"a": weight, "b": weight, "c": weight.T}, tmp_path / "old" / "pytorch_model.bin")
    from_bin(tmp_path / "old", tmp_path / "new")
    loaded = load_file(tmp_path / "new" / "model.safetensors")
    np.testing.assert_array_equal(loaded["b"], weight)
    np.testing.assert_array_equal(loaded["c"], weight.T)


@pytest.mark.parametrize("projector", [True, False])
def test_llavas_own_lora_layout(tmp_path, projector):
    """Loaded as `load_pretrained_model` in LLaVA's llava/model/builder.py does, it is the model."""
    peft = pytest.importorskip("peft")
    clip = tmp_path / "clip"
    checkpoint = write_original(tmp_path / "llava", clip)
    (checkpoint / "tokenizer.model").write_bytes(b"")  # LLaVA reads it, this test does not
    parts = ("lora", "projector") if projector else ("lora",)
    write_run(tmp_path / "run", checkpoint, vision_tower=str(clip), parts=parts)
    source = open_source(tmp_path / "run")
    to_llava(source, tmp_path / "merged")
    out = tmp_path / "llava-lora"
    assert "--model-base" in to_llava_lora(source, out)
    assert {p.name for p in out.iterdir()} == {
        *("config.json", "adapter_config.json", "adapter_model.safetensors"),
        "non_lora_trainables.bin",
    }
    config = LlamaConfig.from_dict(json.loads((out / "config.json").read_text()))
    expected = load_file(tmp_path / "merged" / "model.safetensors")

    model = LlamaForCausalLM(config)  # LLaVA's is one, with projector and tower
    base = load_file(checkpoint / "model.safetensors")
    language = {k: torch.from_numpy(v) for k, v in base.items() if "mm_" not in k}
    model.load_state_dict(language)
    others = torch.load(out / "non_lora_trainables.bin", map_location="cpu", weights_only=True)
    others = {k.removeprefix("base_model."): v for k, v in others.items()}
    if any(k.startswith("model.model.") for k in others):
        others = {k.removeprefix("model."): v for k, v in others.items()}
    assert set(others) == {k for k in expected if "mm_projector" in k and projector}
    for name, values in others.items():
        np.testing.assert_array_equal(values.numpy(), expected[name])
    merged = peft.PeftModel.from_pretrained(model, out).merge_and_unload().state_dict()
    for name, values in merged.items():
        np.testing.assert_allclose(values.numpy(), expected[name], atol=1e-5, err_msg=name)
    changed = [k for k in merged if not np.array_equal(merged[k].numpy(), base[k])]
    assert len(changed) == 2 * 3  # as `write_run` trains: three targets in two layers
