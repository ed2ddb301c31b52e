"""The layout of the original LLaVA repository (liuhaotian/llava-v1.5-*).

It differs from Hugging Face's in three ways: config.json holds Llama's fields at the top level,
next to `mm_*` fields; the vision tower is a separate CLIP directory, named by `mm_vision_tower`;
and there is no image token, so ours gets the first id after the vocabulary. This module converts
config.json in both directions; the names of tensors are in `table.py`.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePath
from typing import Any

from seva_jax.images.preprocess import ImageProcessing
from seva_jax.models import LlavaConfig
from seva_jax.runtime.stores import as_path, is_remote
from seva_jax.types import DataError

_SELECT = {"patch": "default", "cls_patch": "full"}  # theirs -> Hugging Face's
# Supported values of fields of config.json; None: the field may be missing.
_SUPPORTED = {
    "mm_projector_type": ("mlp2x_gelu",),
    "image_aspect_ratio": ("pad", "square", None),
    "mm_use_im_start_end": (False, None),
    "mm_vision_select_feature": (*_SELECT, None),
}

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
    """Returns whether these are the fields of an original LLaVA's config.json."""
    return "mm_vision_tower" in fields or fields.get("model_type") == "llava_llama"


def tower_directory(directory: Path, vision_tower: str | Path | None = None) -> Path | None:
    """Returns the CLIP directory of an original LLaVA, or None for Hugging Face's layout.

    Args:
        directory: the checkpoint.
        vision_tower: the CLIP directory; without it, the directory that `mm_vision_tower` of
            config.json names, which is looked for in the checkpoint first.

    Raises:
        DataError: there is no such directory, or one is given to a checkpoint that needs none.
    """
    path = directory / "config.json"
    fields = read_json(path)
    if not is_original(fields):
        if vision_tower:
            raise DataError(
                f"{directory} is in Hugging Face's layout, which holds its own vision tower: "
                f"leave out the vision tower {vision_tower}"
            )
        return None
    named = str(fields.get("mm_vision_tower"))
    for tower in [as_path(vision_tower)] if vision_tower else _places(directory, named):
        with contextlib.suppress(OSError):  # the name may be impossible for a file
            if (tower / "config.json").is_file():
                return tower
    if vision_tower:
        raise DataError(f"vision tower {vision_tower}: no config.json there; give a CLIP directory")
    raise DataError(
        f"{path}: mm_vision_tower is {named!r}, which is not there. Fetch that CLIP "
        f"model (`hf download {named} --local-dir CLIP`) and give it: --base.vision-tower CLIP, "
        "--vision-tower CLIP of seva_jax.convert, or from_pretrained(..., vision_tower=CLIP)"
    )


def _places(directory: Path, named: str) -> list[Path]:
    """Returns where the CLIP directory may be that a checkpoint's config.json names."""
    own = directory / PurePath(named).name  # of a directory that was moved after `to-llava`
    if "://" in named:
        with contextlib.suppress(DataError):
            return [as_path(named), own]
        return [own]
    if is_remote(directory):  # nothing in a bucket names files of this machine
        inside = not PurePath(named).is_absolute() and ".." not in PurePath(named).parts
        return [directory / named, own] if inside else [own]
    return [directory / named, as_path(named), own]


def pads_images(directory: Path) -> bool:
    """Returns whether an original LLaVA pads images to a square (LLaVA-1.5 does)."""
    return read_json(directory / "config.json").get("image_aspect_ratio") == "pad"


def llava_name_problem(out: Path, lora: bool = False) -> str | None:
    """Returns why LLaVA would misread a directory of this name, or None.

    Its loader decides by the name (`load_pretrained_model` in llava/model/builder.py): "llava" must
    be in it, "lora" stands for adapters, "mpt" and "mistral" for other language models. Of
    checkpoint-N, the name of the parent counts too (`get_model_name_from_path`).

    Args:
        out: the directory.
        lora: whether it holds adapters, not a whole model.
    """
    path = out.absolute()
    name = path.name
    if name.startswith("checkpoint-"):
        name = f"{path.parent.name}_{name}"
    has = [part for part in ("llava", "lora", "mpt", "mistral") if part in name.lower()]
    wanted = ["llava", "lora"] if lora else ["llava"]
    if has == wanted:
        return None
    what = "adapters" if lora else "a whole LLaVA model on Llama or Vicuna"
    others = [part for part in ("lora", "mpt", "mistral") if part not in wanted]
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


def aspect_ratio(processing: ImageProcessing) -> str:
    """Returns the `image_aspect_ratio` with which LLaVA processes images in a given way."""
    return "pad" if processing.pad_to_square else "square"


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


def as_hf_fields(path: Path, fields: dict[str, Any], tower: Path) -> dict[str, Any]:
    """Merges config.json of an original LLaVA and of its tower into Hugging Face's layout.

    Args:
        path: config.json, for error messages.
        fields: its content.
        tower: the CLIP directory.

    Raises:
        DataError: the tower is not a CLIP model, or a field has an unsupported value.
    """
    refuse(path, unsupported((name, fields.get(name), _SUPPORTED[name]) for name in _SUPPORTED))
    clip = read_json(tower / "config.json")
    vision = clip.get("vision_config") if clip.get("model_type") == "clip" else clip
    if not isinstance(vision, dict) or clip.get("model_type") not in ("clip", "clip_vision_model"):
        raise DataError(
            f"{tower / 'config.json'}: model_type is {clip.get('model_type')!r}, expected a CLIP "
            "model, clip or clip_vision_model"
        )
    text = {name: value for name, value in fields.items() if not name.startswith("mm_")}
    select = fields.get("mm_vision_select_feature") or "patch"
    return {
        "model_type": "llava",
        "text_config": text | {"model_type": "llama"},
        "vision_config": vision | {"model_type": "clip_vision_model"},
        "vision_feature_layer": fields.get("mm_vision_select_layer", -2),
        "vision_feature_select_strategy": _SELECT[select],
        "image_token_index": fields.get("image_token_index", fields.get("vocab_size", 32000)),
        "tie_word_embeddings": fields.get("tie_word_embeddings", False),
    }


def original_fields(
    config: LlavaConfig, hf_fields: dict[str, Any], tower: str, processing: ImageProcessing
) -> dict[str, Any]:
    """Returns the fields of config.json in the original layout.

    Args:
        config: the architecture.
        hf_fields: the same model's fields in Hugging Face's layout.
        tower: the CLIP directory, as config.json should name it.
        processing: the image pipeline.
    """
    select = {hf: theirs for theirs, hf in _SELECT.items()}
    return {
        **hf_fields["text_config"],
        "architectures": ["LlavaLlamaForCausalLM"],
        "model_type": "llava_llama",
        "image_aspect_ratio": aspect_ratio(processing),
        "image_token_index": config.image_token_id,
        "mm_hidden_size": config.vision.hidden_size,
        "mm_projector_type": "mlp2x_gelu",
        "mm_use_im_patch_token": False,
        "mm_use_im_start_end": False,
        "mm_vision_select_feature": select[config.feature_select],
        "mm_vision_select_layer": config.feature_layer,
        "mm_vision_tower": tower,
        "tune_mm_mlp_adapter": False,
        "use_mm_proj": True,
    }
