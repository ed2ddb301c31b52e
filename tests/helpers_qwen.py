"""Small random models of Qwen2-VL, Qwen2.5-VL and Qwen3-VL, and what their processors return."""

from __future__ import annotations

from typing import Any

import numpy as np
from helpers_llava import EOS, IMAGE_TOKEN, PAD, VOCAB, padded_ids

QWEN = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
MOST = {"min_pixels": 56 * 56, "max_pixels": 280 * 280}
WIDTH, DEPTH = 32, 4
_TEXT = {
    "hidden_size": 32,
    "intermediate_size": 56,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCAB,
    "eos_token_id": EOS,
    "bos_token_id": None,
}
_TOWERS = {
    "qwen2_vl": {"embed_dim": WIDTH, "hidden_size": 32, "mlp_ratio": 2, "patch_size": 14},
    "qwen2_5_vl": {
        "hidden_size": WIDTH,
        "out_hidden_size": 32,
        "intermediate_size": 48,
        "fullatt_block_indexes": [1, 3],
        "window_size": 112,
    },
    "qwen3_vl": {
        "hidden_size": WIDTH,
        "out_hidden_size": 32,
        "intermediate_size": 48,
        "num_position_embeddings": 36,
        "deepstack_visual_indexes": [0, 2],
        "patch_size": 16,
    },
}


def patch_of(family: str) -> int:
    """Returns the side of a patch in pixels."""
    return 16 if family == "qwen3_vl" else 14


def random_qwen(
    family: str,
    text: dict[str, Any] | None = None,
    vision: dict[str, Any] | None = None,
    **top: Any,
) -> Any:
    """Makes a model of transformers in float32 with random weights.

    Args:
        family: its `model_type`.
        text: fields of the language model's config.
        vision: fields of the tower's config.
        top: other fields.
    """
    import torch
    import transformers

    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}
    if family == "qwen3_vl":
        rope |= {"mrope_interleaved": True}
    own = {"head_dim": 8} if family == "qwen3_vl" else {}
    config = transformers.CONFIG_MAPPING[family](
        vision_config=_TOWERS[family] | {"depth": DEPTH, "num_heads": 4} | (vision or {}),
        text_config=_TEXT | own | {"rope_parameters": rope} | (text or {}),
        **{"image_token_id": IMAGE_TOKEN, "video_token_id": IMAGE_TOKEN + 4} | top,
    )
    model = transformers.AutoModelForImageTextToText.from_config(config).eval()
    model.generation_config.pad_token_id = PAD
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            is_norm = "norm" in name or "ln_q" in name
            near_one = is_norm and name.endswith("weight")
            parameter.copy_(1 + 0.3 * noise if near_one else 0.2 * noise)
    return model


def opened_pair(family: str, factory: Any) -> tuple[str, Any, Any]:
    """Returns the family, a random model in transformers, and the same one opened by us.

    Args:
        family: its `model_type`.
        factory: pytest's, of directories.
    """
    import seva_jax

    theirs = random_qwen(family)
    folder = factory.mktemp(family)
    theirs.save_pretrained(folder)
    return family, theirs, seva_jax.from_pretrained(folder)


def image_processor(family: str) -> Any:
    """Returns transformers' image processor of the family."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    half = [0.5] * 3
    own = {"image_mean": half, "image_std": half} if family == "qwen3_vl" else {}
    return Qwen2VLImageProcessorPil(patch_size=patch_of(family), **MOST, **own)


def batch(
    family: str,
    rows: list[list[tuple[int, int]]],
    texts: list[int],
    padding: str = "left",
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """Makes a batch as the family's processor does, with random pictures and tokens.

    Args:
        family: its `model_type`.
        rows: heights and widths of the images of each row.
        texts: number of text tokens of each row, at least one more than its images.
        padding: side, "left" or "right".
        seed: of tokens and pictures.
    """
    rng = np.random.default_rng(seed)
    pictures = [rng.integers(0, 256, (*size, 3), np.uint8) for sizes in rows for size in sizes]
    arrays: dict[str, np.ndarray] = {}
    if pictures:
        processed = image_processor(family)(pictures, return_tensors="np")
        arrays = {name: np.asarray(processed[name]) for name in ("pixel_values", "image_grid_thw")}
    lengths = iter(arrays["image_grid_thw"].prod(1) // 4 if pictures else ())
    ids = []
    for sizes, text in zip(rows, texts, strict=True):
        parts = np.array_split(rng.integers(3, IMAGE_TOKEN, text), len(sizes) + 1)
        row = list(parts[0])
        for part in parts[1:]:
            row += [IMAGE_TOKEN] * int(next(lengths)) + list(part)
        ids.append(row)
    ids_BS, mask_BS = padded_ids(ids, padding)
    kinds = {"mm_token_type_ids": (ids_BS == IMAGE_TOKEN).astype(np.int64)} if pictures else {}
    return {"input_ids": ids_BS, "attention_mask": mask_BS, **arrays, **kinds}


def batch_with_videos(
    family: str,
    rows: list[list[int | tuple[int, int] | dict[int, tuple[int, int]]]],
    seconds: float = 1.0,
    padding: str = "left",
    seed: int = 0,
) -> dict[str, Any]:
    """Makes a batch as the family's processor does, with random pictures and tokens.

    transformers makes a video's patches with torchvision, so they are cut here.

    Args:
        family: its `model_type`.
        rows: for each row its parts: a number of text tokens; the height and width of an image; or
            of a video, by its number of frames.
        seconds: how long two frames of a video take.
        padding: side, "left" or "right".
        seed: of tokens and pictures.
    """
    rng = np.random.default_rng(seed)
    tile = 2 * patch_of(family)
    pixels: dict[str, list[np.ndarray]] = {"image": [], "video": []}
    grids: dict[str, list[list[int]]] = {"image": [], "video": []}
    ids, kinds = [], []
    for parts in rows:
        row, kind = list[int](), list[int]()
        for part in parts:
            if isinstance(part, int):
                row += rng.integers(3, IMAGE_TOKEN, part).tolist()
                kind += [0] * part
                continue
            is_video = isinstance(part, dict)
            ((frames, size),) = part.items() if is_video else ((2, part),)
            height, width = (max(round(x / tile), 1) * tile for x in size)
            shown = rng.normal(size=(frames if is_video else 1, 3, height, width))
            shown = np.concatenate([shown, shown[-1:]] if len(shown) % 2 else [shown])
            name = "video" if is_video else "image"
            pixels[name].append(patches_of(shown.astype(np.float32), tile // 2))
            pairs, down, over = len(shown) // 2, height // tile, width // tile
            grids[name].append([pairs, 2 * down, 2 * over])
            token = IMAGE_TOKEN + 4 * is_video
            for pair in range(pairs):
                if pair and family == "qwen3_vl":  # timestamps
                    row += rng.integers(3, IMAGE_TOKEN, 3).tolist()
                    kind += [0] * 3
                row += [token] * (down * over)
                kind += [1 + is_video] * (down * over)
        ids.append(row)
        kinds.append(kind)
    ids_BS, mask_BS = padded_ids(ids, padding)
    kinds_BS = np.zeros(ids_BS.shape, np.int64)
    kinds_BS[mask_BS == 1] = np.concatenate(kinds)
    arrays: dict[str, Any] = {"input_ids": ids_BS, "attention_mask": mask_BS}
    arrays["mm_token_type_ids"] = kinds_BS
    for name, array in (("image", "pixel_values"), ("video", "pixel_values_videos")):
        if grids[name]:
            arrays[array] = np.concatenate(pixels[name])
            arrays[f"{name}_grid_thw"] = np.array(grids[name])
    if grids["video"] and family == "qwen2_5_vl":
        arrays["second_per_grid_ts"] = np.full(len(grids["video"]), seconds, np.float32)
    return arrays


def patches_of(frames: np.ndarray, patch: int) -> np.ndarray:
    """Cuts an even number of frames [T, 3, H, W] into the patches of transformers' processors."""
    pairs, (height, width) = len(frames) // 2, (x // patch for x in frames.shape[2:])
    blocks = frames.reshape(
        pairs, 2, 3, height // 2, 2, patch, width // 2, 2, patch
    ).transpose(0, 3, 6, 4, 7, 2, 1, 5, 8)  # fmt: skip
    return blocks.reshape(pairs * height * width, -1)


def torch_batch(arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """Returns the arrays as tensors."""
    import torch

    return {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}
