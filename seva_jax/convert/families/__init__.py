"""The model families whose checkpoints can be opened, a file each.

Another family of the same kind is a class here and a line in `FAMILIES`; a new tower is a file in
`seva_jax/models`, and rows in `seva_jax/convert/table.py`. Read next: `base.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from seva_jax.convert.families.base import Family
from seva_jax.convert.families.internvl import Internvl
from seva_jax.convert.families.llava import Llava
from seva_jax.convert.families.llava_next import LlavaNext
from seva_jax.convert.families.llava_onevision import LlavaOnevision
from seva_jax.convert.families.qwen_vl import Qwen2Vl, Qwen3Vl, Qwen25Vl
from seva_jax.convert.original import is_original, original_family, original_text
from seva_jax.models import LlavaConfig
from seva_jax.types import DataError

LLAVA = Llava()
FAMILIES: tuple[Family, ...] = (
    *(LLAVA, LlavaNext(), LlavaOnevision(), Internvl()),
    *(Qwen2Vl(), Qwen25Vl(), Qwen3Vl()),
)


def family_of_fields(path: Path, fields: dict[str, Any]) -> Family:
    """Returns the family of a config.json.

    Args:
        path: the file, for error messages.
        fields: what is in it, in Hugging Face's layout or in the original LLaVA's.

    Raises:
        DataError: no family has its `model_type`.
    """
    model_type = fields.get("model_type")
    if is_original(fields):
        original_text(path, fields)  # raises for other language models
        model_type = original_family(fields)
    for family in FAMILIES:
        if family.model_type == model_type:
            return family
    known = ", ".join(f'"{family.model_type}"' for family in FAMILIES)
    raise DataError(
        f"{path}: model_type is {model_type!r}, supported: {known}; give the "
        "directory of a model of one of these families"
    )


def family_of(config: LlavaConfig) -> Family:
    """Returns the family that a model of this architecture belongs to.

    Raises:
        DataError: no family has this tower with or without newlines.
    """
    for family in FAMILIES:
        if family.describes(config):
            return family
    raise DataError(
        f"no model family has the tower {type(config.vision).__name__} with newline "
        f"{config.newline}; change base.model"
    )
