"""Files and names of model directories, and what tells the layouts of LLaVA's own code apart.

The layout of LLaVA's own code (liuhaotian/llava-v1.5-*, lmms-lab/LLaVA-Video-*) differs from
Hugging Face's: config.json holds the language model's fields at the top level, next to `mm_*`
fields. What does not live here: what these fields mean (`original_config.py`), the names of tensors
(`table.py`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from seva_jax.types import DataError

# `model_type` in the layout of LLaVA's own code, and that of the language model in it.
TEXT_OF = {
    "llava": "llama",  # older LLaVA-1.5
    "llava_llama": "llama",
    "llava_mistral": "mistral",
    "llava_qwen": "qwen2",
}

# What a directory's name must contain for LLaVA's loaders, and what would mislead them.
_NEXT_TEXTS = ("mixtral", "zephyr", "llama", "yi", "nous-hermes", "gemma", "moe", "a14b")
_LOADER = {
    "llama": (("llava",), ("mpt", "mistral")),
    "mistral": (("llava", "mistral"), ("mixtral", "mpt")),
    "qwen2": (("llava", "qwen"), ("mistral", *_NEXT_TEXTS, "llava-v1.5", "llava-v1.6-34b")),
}
_LANGUAGE_MODELS = {"llama": "Llama or Vicuna", "mistral": "Mistral", "qwen2": "Qwen2"}

# Files of a LoRA adapter: the last two as .safetensors or .bin; the third is LLaVA's.
ADAPTER_CONFIG, ADAPTER, ADAPTER_OTHERS = (
    *("adapter_config.json", "adapter_model"),
    "non_lora_trainables",
)
_ADAPTERS = (ADAPTER_CONFIG, f"{ADAPTER}.safetensors", f"{ADAPTER}.bin")
_WHOLE = (
    *("model.safetensors", "model.safetensors.index.json"),
    *("pytorch_model.bin", "pytorch_model.bin.index.json"),
)


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object from a file.

    Raises:
        DataError: the file is missing, unreadable, not JSON, or not an object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(
            f"{path} does not exist: give a directory that holds a whole LLaVA-1.5 model "
            "(for example downloaded with `hf download llava-hf/llava-1.5-7b-hf --local-dir DIR`)"
        ) from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise DataError(f"{path} cannot be read as JSON ({error}): fetch it again") from None
    if not isinstance(value, dict):
        raise DataError(f"{path} holds a {type(value).__name__}, expected a JSON object")
    return value


def is_adapter(directory: Path) -> bool:
    """Returns whether a directory holds a LoRA adapter, and not a whole model as well."""
    return any((directory / name).exists() for name in _ADAPTERS) and not any(
        (directory / name).exists() for name in _WHOLE
    )


def refuse_adapters(directory: Path) -> None:
    """Raises if a model directory holds a LoRA adapter.

    transformers applies such an adapter without being asked, so the files alone do not say which
    model is meant.

    Raises:
        DataError: it does; says how to use the adapter.
    """
    names = [name for name in _ADAPTERS if (directory / name).exists()]
    if not names:
        return
    listed = " and ".join(names)
    if any((directory / name).exists() for name in _WHOLE):
        raise DataError(
            f"{directory} holds a whole model and a LoRA adapter ({listed}), which transformers "
            "would apply: move these files to a directory of their own and give both, "
            "--base.path MODEL --base.adapter DIR (or from_pretrained(MODEL, adapter=DIR)), or "
            "merge them into the weights (merge_and_unload of peft)"
        )
    raise DataError(
        f"{directory} holds a LoRA adapter ({listed}), not a whole model: give the model that it "
        f"was trained on and this directory, --base.path MODEL --base.adapter {directory} (or "
        f"from_pretrained(MODEL, adapter={str(directory)!r})), or merge it into that model first "
        "(merge_and_unload of peft)"
    )


def is_original(fields: dict[str, Any]) -> bool:
    """Returns whether these are the fields of a config.json in the layout of LLaVA's own code."""
    named = fields.get("model_type")
    return "mm_vision_tower" in fields or (named != "llava" and named in [*TEXT_OF])


def original_text(path: Path, fields: dict[str, Any]) -> str:
    """Returns the `model_type` of the language model in a config.json of the original layout.

    Args:
        path: the file, for error messages.
        fields: what is in it.

    Raises:
        DataError: it is another language model.
    """
    named = fields.get("model_type", "llava_llama")
    if named not in [*TEXT_OF]:
        known = ", ".join(f'"{name}"' for name in TEXT_OF)
        raise DataError(
            f"{path}: model_type is {named!r}, supported in the layout of LLaVA's own code "
            f"(mm_vision_tower): {known}"
        )
    return TEXT_OF[named]


def original_family(fields: dict[str, Any]) -> str:
    """Returns the `model_type` of the family that transformers has for an original config.json.

    How images become tiles tells the families apart.
    """
    ratio = str(fields.get("image_aspect_ratio"))
    if re.fullmatch(r"anyres_max_\d+", ratio):
        return "llava_onevision"
    return "llava_next" if ratio == "anyres" else "llava"


def llava_name_problem(out: Path, lora: bool = False, text: str = "llama") -> str | None:
    """Returns why LLaVA would misread a directory of this name, or None.

    Its loader decides by the name (`load_pretrained_model` in llava/model/builder.py): "llava" must
    be in it, "lora" stands for adapters, and others for language models. Of checkpoint-N, the name
    of the parent counts too (`get_model_name_from_path`). LLaVA-NeXT's loader, which models on
    Mistral and Qwen2 need, looks for more names than LLaVA's.

    Args:
        out: the directory.
        lora: whether it holds adapters, not a whole model.
        text: the language model, a value of `TEXT_OF`.
    """
    path = out.absolute()
    name = path.name
    if name.startswith("checkpoint-"):
        name = f"{path.parent.name}_{name}"
    wanted, misleading = _LOADER[text]
    if lora:
        wanted = (*wanted, "lora")
    others = [part for part in ("lora", *misleading) if part not in wanted]
    if all(part in name.lower() for part in wanted) and not any(
        part in name.lower() for part in others
    ):
        return None
    what = "adapters" if lora else f"a whole LLaVA model on {_LANGUAGE_MODELS[text]}"
    return (
        f"LLaVA's loader decides by a directory's name, and would not take {name!r} for {what}: "
        f"choose a name that contains {' and '.join(wanted)}, and not {' or '.join(others)}, such "
        f"as {out.with_name('-'.join(['aligned', *wanted]))}"
    )


def require_sentencepiece(directory: Path) -> None:
    """Raises if a checkpoint lacks the file that LLaVA's slow tokenizer reads.

    Raises:
        DataError: it has no tokenizer.model.
    """
    if not (directory / "tokenizer.model").is_file():
        raise DataError(
            f"{directory} has no tokenizer.model, without which the original LLaVA cannot open the "
            "export: put the one there that the language model came with (Vicuna's is Llama 2's), "
            "or use to-hf"
        )


def unsupported(fields: Iterable[tuple[str, Any, Sequence[Any]]]) -> list[str]:
    """Returns a line for each unsupported field, given names, values and supported values."""
    return [
        f"{name} is {value!r}, supported: {', '.join(map(repr, supported))}"
        for name, value, supported in fields
        if value not in supported
    ]


def listing(problems: Iterable[str]) -> str:
    """Returns the lines of a message, each on a new line of its own."""
    return "".join(f"\n  {problem}" for problem in problems)


def refuse(path: Path, problems: Sequence[str]) -> None:
    """Raises `DataError`, listing the problems of a config.json, if there are any."""
    if problems:
        raise DataError(f"{path} describes a model that is not supported:{listing(problems)}")
