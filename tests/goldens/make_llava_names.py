"""Writes llava_names.json: what transformers 4.57 saves of a tiny LLaVA.

Run it with that version: `python tests/goldens/make_llava_names.py`, after `pip install
'transformers==4.57.*' torch safetensors`.
"""

import json
import tempfile
from pathlib import Path

import transformers
from safetensors import safe_open
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

# Those of `CONFIG_V4` in helpers_llava.py.
TEXT = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 32,
    "rope_theta": 500.0,
}
VISION = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "image_size": 28,
    "patch_size": 14,
}


def main() -> None:
    """Saves the model, and writes names of tensors and fields of config.json."""
    assert transformers.__version__.startswith("4.57."), transformers.__version__
    config = LlavaConfig(CLIPVisionConfig(**VISION), LlamaConfig(**TEXT))
    with tempfile.TemporaryDirectory() as directory:
        LlavaForConditionalGeneration(config).save_pretrained(directory)
        with safe_open(Path(directory) / "model.safetensors", "np") as file:
            names = sorted(file.keys())
        saved = json.loads((Path(directory) / "config.json").read_text())
    found = {
        "transformers": transformers.__version__,
        "tensors": names,
        "rope_theta": saved["text_config"]["rope_theta"],
    }
    text = json.dumps(found, indent=1) + "\n"
    Path(__file__).with_name("llava_names.json").write_text(text)


if __name__ == "__main__":
    main()
