"""`to-hf` writes the Hub's spelling, whatever spelling the checkpoint had, and changes no value.

Models that transformers itself saved are in `test_family_export_parity.py`.
"""

import json

import numpy as np
import pytest
from helpers_hub import check_hub_spelling, read
from helpers_llava import CONFIG_V4, PROCESSOR, write_llava
from safetensors.numpy import load_file
from transformers import AutoTokenizer

from seva_jax.convert import read_llava_config
from seva_jax.convert.__main__ import open_source
from seva_jax.convert.rewrite import to_hf
from seva_jax.convert.table import canonical, hub
from seva_jax.text.tokenizer import tokenizer_facts, word_tokenizer

ROPE = {"rope_type": "linear", "factor": 2.0, "rope_theta": 500.0}
VIDEO = {"video_processor_type": "LlavaOnevisionVideoProcessor"}


@pytest.fixture
def checkpoint(tmp_path):
    """Writes a LLaVA as `save_pretrained` of transformers 5 does."""
    (tmp_path / "model").mkdir()
    directory = write_llava(tmp_path / "model")
    text = {k: x for k, x in CONFIG_V4["text_config"].items() if not k.startswith("rope")}
    text |= {"rope_parameters": ROPE, "dtype": "float32", "pad_token_id": None}
    config = {k: x for k, x in CONFIG_V4.items() if k != "torch_dtype"}
    config |= {"text_config": text, "dtype": "float32", "transformers_version": "5.24.0"}
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "preprocessor_config.json").unlink()
    processor = {"processor_class": "LlavaProcessor", "patch_size": 14}
    processor |= {"image_processor": PROCESSOR, "video_processor": VIDEO}
    (directory / "processor_config.json").write_text(json.dumps(processor))
    word_tokenizer([f"w{i}" for i in range(35)]).save_pretrained(directory)
    settings = read(directory / "tokenizer_config.json")
    assert settings["tokenizer_class"] == "TokenizersBackend"
    listed = {"extra_special_tokens": ["w1", "w2"]}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings | listed))
    return directory


def test_what_version_5_saved_is_spelled_as_on_the_hub(checkpoint, tmp_path):
    with pytest.raises(AssertionError):
        check_hub_spelling(checkpoint, "llava")
    out = tmp_path / "out"
    to_hf(open_source(checkpoint), out)
    check_hub_spelling(out, "llava")
    old, new = (load_file(path / "model.safetensors") for path in (checkpoint, out))
    assert new.keys() == {hub(canonical(name)) for name in old}
    for name, values in old.items():
        np.testing.assert_array_equal(new[hub(canonical(name))], values)


def test_config_means_the_same_and_keeps_other_fields(checkpoint, tmp_path):
    to_hf(open_source(checkpoint), tmp_path / "out")
    assert read_llava_config(tmp_path / "out") == read_llava_config(checkpoint)
    old, new = (read(path / "config.json") for path in (checkpoint, tmp_path / "out"))
    assert (new["torch_dtype"], new["transformers_version"]) == ("float32", "5.24.0")
    assert new["vision_config"].items() >= old["vision_config"].items()
    text = new["text_config"]
    assert (text["rope_theta"], text["rope_scaling"]) == (500.0, {"type": "linear", "factor": 2.0})
    assert text["torch_dtype"] == "float32"
    assert text["pad_token_id"] is None
    # Version 4 has another default for some of these.
    assert {"head_dim", "max_position_embeddings", "tie_word_embeddings"} <= text.keys()


def test_processors_have_files_of_their_own(checkpoint, tmp_path):
    out, kind = tmp_path / "out", {"processor_class": "LlavaProcessor"}
    to_hf(open_source(checkpoint), out)
    assert read(out / "preprocessor_config.json") == PROCESSOR | kind
    assert read(out / "video_preprocessor_config.json") == VIDEO | kind
    assert read(out / "processor_config.json") == kind | {"patch_size": 14}


def test_tokenizer_gives_the_same_ids(checkpoint, tmp_path):
    out = tmp_path / "out"
    to_hf(open_source(checkpoint), out)
    old, new = map(AutoTokenizer.from_pretrained, (checkpoint, out))
    assert tokenizer_facts(new) == tokenizer_facts(old)
    settings = read(out / "tokenizer_config.json")
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert settings["additional_special_tokens"] == ["w1", "w2"]
    assert settings["extra_special_tokens"]["image_token"] == "<image>"


def test_an_export_is_not_respelled_again(checkpoint, tmp_path):
    to_hf(open_source(checkpoint), tmp_path / "out")
    to_hf(open_source(tmp_path / "out"), tmp_path / "again")
    for path in (tmp_path / "out").iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes(), path.name
