"""Respells the files beside the weights as those of the Hub, which transformers 4 and 5 read.

What `save_pretrained` of transformers 5 writes, version 4 does not read: it looks for rotary
frequencies in other fields and for image processors in files of their own, and does not know the
class of the tokenizer. What lives here: config.json, processor and tokenizer files of a copied
checkpoint. What does not: names of tensors (`table.py`), and configs that are written from an
architecture alone (`families/`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from seva_jax.convert.files import write_json
from seva_jax.convert.hf_config import llava_config_fields, read_context_length, read_layouts
from seva_jax.convert.original import read_json
from seva_jax.convert.processor import TOKENIZER
from seva_jax.images.processor_files import IMAGES, PROCESSOR, VIDEOS
from seva_jax.models import LlavaConfig
from seva_jax.text.tokenizer import load_tokenizer, save_tokenizer

_SECTIONS = ("text_config", "vision_config")
# Fields of which versions 4 and 5 have other defaults, or read at other places.
_AS_READ = ("tie_word_embeddings", "rope_theta", "rope_scaling")
# The field of processor_config.json with what belongs into a file of its own.
_PARTS = {"image_processor": IMAGES, "video_processor": VIDEOS}


def respell_files(directory: Path, config: LlavaConfig) -> None:
    """Respells config.json, processor and tokenizer files; those of the Hub stay as they are.

    Args:
        directory: a copy of a checkpoint in Hugging Face's layout.
        config: its architecture.

    Raises:
        DataError: the tokenizer does not load.
    """
    raw = read_json(directory / "config.json")
    if _is_new(raw):
        context, layouts = read_context_length(directory), read_layouts(directory)
        fields = llava_config_fields(config, context, layouts)
        write_json(directory / "config.json", _respelled(raw, fields))
    _split_processor(directory)
    path = directory / TOKENIZER
    # Only version 5 writes the field.
    if path.exists() and "backend" in read_json(path):
        save_tokenizer(load_tokenizer(directory), directory)


def _is_new(raw: dict[str, Any]) -> bool:
    """Returns whether a config.json, or a part of it, is spelled otherwise than on the Hub."""
    parts = [raw, *(x for name in _SECTIONS if isinstance(x := raw.get(name), dict))]
    return any("rope_parameters" in part or "dtype" in part for part in parts)


def _respelled(raw: dict[str, Any], fields: dict[str, Any]) -> dict[str, Any]:
    """Returns a config.json, or a section of it, in the spelling of the Hub.

    Fields that we do not read keep their values. Those that we read and that were left out are
    added, because the defaults of the versions differ.

    Args:
        raw: what the checkpoint has.
        fields: what means something to us, spelled as on the Hub.
    """
    result: dict[str, Any] = {}
    for name, value in raw.items():
        if name in _SECTIONS:
            result[name] = _respelled(value or {}, fields[name])
        elif name == "dtype":
            result["torch_dtype"] = value
        elif name not in (*_AS_READ, "rope_parameters"):
            result[name] = value
    return result | {name: x for name, x in fields.items() if name not in result}


def _split_processor(directory: Path) -> None:
    """Moves image and video processor out of processor_config.json, where version 5 has them."""
    path = directory / PROCESSOR
    fields = read_json(path) if path.exists() else {}
    parts = {name: fields.pop(name) for name in _PARTS if isinstance(fields.get(name), dict)}
    if not parts:
        return
    kind = {name: fields[name] for name in ("processor_class",) if name in fields}
    for name, part in parts.items():
        write_json(directory / _PARTS[name], part | kind)
    write_json(path, fields)
