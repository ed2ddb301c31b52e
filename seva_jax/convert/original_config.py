"""config.json in the layout of LLaVA's own code: LLaVA-1.5, LLaVA-NeXT, OneVision, LLaVA-Video.

The language model's fields are at the top level, next to `mm_*` fields; the vision tower may be a
directory of its own, which `mm_vision_tower` names, or its weights are in the checkpoint; there is
no image token, so ours gets the first free id; and heights and widths are the other way round. The
facts are from haotian-liu/LLaVA and LLaVA-VL/LLaVA-NeXT (`llava/model/llava_arch.py`,
`llava/mm_utils.py`, `llava/model/multimodal_encoder`). This module converts config.json in both
directions. What does not live here: the names of tensors (`table.py`).
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import re
from pathlib import Path, PurePath
from typing import Any, get_args

from seva_jax.convert.load import tensor_names
from seva_jax.convert.original import (
    is_original,
    original_family,
    original_text,
    read_json,
    refuse,
    unsupported,
)
from seva_jax.images.llava_onevision import VideoNewline, VideoPool
from seva_jax.images.preprocess import ImageProcessing
from seva_jax.models import LlavaConfig
from seva_jax.runtime.stores import as_path, is_remote
from seva_jax.text.llama import added_ids
from seva_jax.types import IMAGE_MARKER, DataError

_SELECT = {"patch": "default", "cls_patch": "full"}  # theirs -> Hugging Face's
# Supported values of fields of config.json; None: the field may be missing.
_SUPPORTED = {
    "mm_projector_type": ("mlp2x_gelu",),
    "mm_resampler_type": (None,),
    "mm_use_im_start_end": (False, None),
    "mm_vision_select_feature": (*_SELECT, None),
    "s2": (False, None),
}
_SUPPORTED_BY = {
    "llava": {
        # The last two are those of the other families.
        "image_aspect_ratio": ("pad", "square", None, "anyres", "anyres_max_9"),
        "mm_patch_merge_type": ("flat", None),
    },
    "llava_next": {"mm_patch_merge_type": ("spatial_unpad",)},
    "llava_onevision": {
        "mm_patch_merge_type": ("spatial_unpad",),
        "mm_spatial_pool_mode": (*get_args(VideoPool), None),
        "mm_spatial_pool_stride": (2, None),
        "mm_newline_position": (*get_args(VideoNewline), None),
        "add_faster_video": (False, None),
    },
}
_CLIP, _SIGLIP = "clip_vision_model", "siglip_vision_model"
# Sizes of the towers that released checkpoints name, and hold the weights of.
_CLIP_LARGE = {
    "model_type": _CLIP,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "patch_size": 14,
}
_TOWERS: dict[str, dict[str, Any]] = {
    "openai/clip-vit-large-patch14": {**_CLIP_LARGE, "image_size": 224},
    "openai/clip-vit-large-patch14-336": {**_CLIP_LARGE, "image_size": 336},
    "google/siglip-so400m-patch14-384": {
        "model_type": _SIGLIP,
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_hidden_layers": 27,
        "num_attention_heads": 16,
        "patch_size": 14,
        "image_size": 384,
    },
}
_MOST_TILES = 64  # along a side of a grid; more means a damaged file
_RANGE = re.compile(r"\((\d+)x(\d+)\)")  # of grids of tiles: "(1x1),...,(6x6)"


def tower_directory(directory: Path, vision_tower: str | Path | None = None) -> Path | None:
    """Returns the directory of an original LLaVA's tower, or None for Hugging Face's layout.

    A checkpoint that holds the weights of a tower whose sizes are known by its name needs no
    directory of the tower: then this is the checkpoint itself.

    Args:
        directory: the checkpoint.
        vision_tower: the CLIP or SigLIP directory; without it, the directory that `mm_vision_tower`
            of config.json names, which is looked for in the checkpoint first.

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
        raise DataError(
            f"vision tower {vision_tower}: no config.json there; give a CLIP directory, or a "
            "SigLIP one for LLaVA-OneVision and LLaVA-Video"
        )
    if named in _TOWERS and _holds_tower(directory):
        return directory
    raise DataError(
        f"{path}: mm_vision_tower is {named!r}, which is not there. Fetch that vision "
        f"model (`hf download {named} --local-dir CLIP`) and give it: --base.vision-tower CLIP, "
        "--vision-tower CLIP of seva_jax.convert, or from_pretrained(..., vision_tower=CLIP)"
    )


def _holds_tower(directory: Path) -> bool:
    """Returns whether a checkpoint holds the weights of its tower."""
    return any(name.startswith("vision_tower.") for name in tensor_names(directory))


def _places(directory: Path, named: str) -> list[Path]:
    """Returns where the tower's directory may be that a checkpoint's config.json names."""
    own = directory / PurePath(named).name  # of a directory that was moved after `to-llava`
    if "://" in named:
        with contextlib.suppress(DataError):
            return [as_path(named), own]
        return [own]
    if is_remote(directory):  # nothing in a bucket names files of this machine
        inside = not PurePath(named).is_absolute() and ".." not in PurePath(named).parts
        return [directory / named, own] if inside else [own]
    return [directory / named, as_path(named), own]


def as_hf_fields(path: Path, fields: dict[str, Any], tower: Path) -> dict[str, Any]:
    """Merges config.json of an original LLaVA and of its tower into Hugging Face's layout.

    Fields of videos that transformers does not have keep their names, and `LlavaOnevision.layouts`
    reads them.

    Args:
        path: config.json, for error messages.
        fields: its content.
        tower: see `tower_directory`.

    Raises:
        DataError: the tower is of another kind, or a field has an unsupported value.
    """
    text_type, family = original_text(path, fields), original_family(fields)
    supported = {**_SUPPORTED, **_SUPPORTED_BY[family]}
    refuse(path, unsupported((name, fields.get(name), supported[name]) for name in supported))
    vision = _tower_fields(path, fields, tower, _SIGLIP if family == "llava_onevision" else _CLIP)
    text = {n: v for n, v in fields.items() if not n.startswith(("mm_", "image_"))}
    if text_type != "llama":
        text["rope_scaling"] = None  # their code sets it so, whatever the file says
    image_token = _image_token(path, fields, text_type)
    select = fields.get("mm_vision_select_feature") or "patch"
    merged = {
        "model_type": family,
        "text_config": text | {"model_type": text_type},
        "vision_config": vision,
        "vision_feature_layer": fields.get("mm_vision_select_layer", -2),
        "vision_feature_select_strategy": _SELECT[select],
        "image_token_index": image_token,
        "tie_word_embeddings": fields.get("tie_word_embeddings", False),
    }
    if family != "llava":
        merged["image_grid_pinpoints"] = _resolutions(path, fields, vision)
    if family != "llava_onevision":
        return merged
    # Their code takes the features before the last layer, whatever the file says, and checkpoints
    # that hold the tower's weights lack that layer.
    inside = _holds_tower(path.parent)
    if inside and isinstance(vision.get("num_hidden_layers"), int):
        vision["num_hidden_layers"] -= 1
    return merged | {
        "vision_feature_layer": -1 if inside else -2,
        "vision_feature_select_strategy": "full",  # there is no class token
        "vision_aspect_ratio": fields["image_aspect_ratio"],
        "video_token_index": fields.get("video_token_index", image_token + 1),
        "mm_spatial_pool_mode": fields.get("mm_spatial_pool_mode") or "bilinear",
        "mm_newline_position": fields.get("mm_newline_position") or "one_token",
    }


def _tower_fields(path: Path, fields: dict[str, Any], tower: Path, kind: str) -> dict[str, Any]:
    """Returns the fields of the tower's config.

    Raises:
        DataError: it is of another kind.
    """
    if tower == path.parent:
        where, vision = f"{path}: mm_vision_tower {fields.get('mm_vision_tower')!r}", None
        found = _TOWERS.get(str(fields.get("mm_vision_tower")), {})
    else:
        where = str(tower / "config.json")
        found = read_json(tower / "config.json")
        vision = found.get("vision_config")
    named, whole = found.get("model_type"), kind.partition("_")[0]
    vision = vision if named == whole else found
    if not isinstance(vision, dict) or named not in (whole, kind):
        name = {_CLIP: "CLIP", _SIGLIP: "SigLIP"}[kind]
        raise DataError(
            f"{where}: model_type is {named!r}, expected a {name} model, {whole} or {kind} "
            f"(image_aspect_ratio is {fields.get('image_aspect_ratio')!r})"
        )
    return {**vision, "model_type": kind}


def _resolutions(path: Path, fields: dict[str, Any], vision: dict[str, Any]) -> list[list[int]]:
    """Returns heights and widths that images are fitted into; the file has widths first.

    It has pairs in pixels, also as a string, or a range of grids of tiles, "(1x1),...,(6x6)".

    Raises:
        DataError: it has something else.
    """
    given = fields.get("image_grid_pinpoints")
    pairs: Any = given
    if isinstance(given, str):
        with contextlib.suppress(ValueError, SyntaxError, MemoryError, RecursionError):
            pairs = _range_of_grids(given, vision.get("image_size")) or ast.literal_eval(given)
    if isinstance(pairs, list | tuple) and all(
        isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs
    ):
        return [[height, width] for width, height in pairs]
    raise DataError(
        f"{path}: image_grid_pinpoints is {str(given)[:80]!r}, supported: pairs of widths and "
        'heights, or a range such as "(1x1),...,(6x6)"'
    )


def _range_of_grids(given: str, side: Any) -> list[tuple[int, int]] | None:
    """Returns widths and heights of "(1x1),...,(6x6)", in tiles of `side` pixels, or None."""
    ends = [(int(width), int(height)) for width, height in _RANGE.findall(given)]
    if not ends or not isinstance(side, int):
        return None
    (left, low), (right, high) = ends[0], ends[-1]
    if max(right, high) > _MOST_TILES:
        return None
    return [(x * side, y * side) for x in range(left, right + 1) for y in range(low, high + 1)]


def _image_token(path: Path, fields: dict[str, Any], text_type: str) -> int:
    """Returns the id that `<image>` gets as one more token of the checkpoint's tokenizer.

    Qwen2's embedding has more rows than its tokenizer has tokens, others have as many.
    """
    name = "image_token_index" if "image_token_index" in fields else "vocab_size"
    token = fields.get(name, 32000)
    if type(token) is not int:
        refuse(path, [f"{name} is {token!r}, supported: an integer"])
    if name == "vocab_size" and text_type == "qwen2":
        added = added_ids(path.parent)
        token = added.get(IMAGE_MARKER, max(added.values(), default=token - 1) + 1)
    return token


def pads_images(directory: Path) -> bool:
    """Returns whether an original LLaVA pads images to a square (LLaVA-1.5 does)."""
    return read_json(directory / "config.json").get("image_aspect_ratio") == "pad"


def original_processing(
    directory: Path, tower: Path, layouts: ImageProcessing | None, pad_to_square: bool | None
) -> ImageProcessing:
    """Returns how LLaVA's own code processes images for a checkpoint.

    Args:
        directory: the checkpoint.
        tower: see `tower_directory`.
        layouts: see `Family.layouts`.
        pad_to_square: whether LLaVA-1.5 pads images to a square; None takes the checkpoint's way.

    Raises:
        DataError: the processor file of the tower is missing or not supported.
    """
    if layouts is not None and layouts.videos:
        return layouts  # their code has the numbers of SigLIP's processor built in
    pads = layouts is None and (pads_images(directory) if pad_to_square is None else pad_to_square)
    if tower == directory:
        vision = _TOWERS[read_json(directory / "config.json")["mm_vision_tower"]]
        clip = ImageProcessing(size=vision["image_size"], pad_to_square=pads)
    else:
        clip = ImageProcessing.from_processor_config(tower, pads)
    if layouts is None:
        return clip
    names = ("mean", "std", "pad_colour", "resample")
    return dataclasses.replace(layouts, **{name: getattr(clip, name) for name in names})


def aspect_ratio(processing: ImageProcessing) -> str:
    """Returns the `image_aspect_ratio` with which LLaVA processes images in a given way."""
    return "pad" if processing.pad_to_square else "square"


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
