"""Small random models of transformers' families beside LLaVA-1.5, and what their processors return.

What lives here: models with torch, and batches of arrays made by hand from transformers' own
functions. What does not: LLaVA-1.5 (`helpers_llava.py`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from helpers_llava import EOS, IMAGE_TOKEN, PAD, VOCAB, padded_ids

VIDEO_TOKEN = IMAGE_TOKEN + 4
SIDE = 56  # of a tile in pixels; 4 x 4 patches
GRID = [[56, 112], [112, 56], [112, 112], [168, 56], [56, 168]]
TOWER = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": SIDE,
    "patch_size": 14,
}
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 56,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCAB,
    "eos_token_id": EOS,
}


def random_model(
    family: str,
    kind: str = "",
    text: dict[str, Any] | None = None,
    vision: dict[str, Any] | None = None,
    **top: Any,
) -> Any:
    """Makes a model of transformers in float32, as `helpers_llava.random_llava` does.

    Args:
        family: its `model_type`.
        kind: `model_type` of the language model; the usual one by default.
        text: fields of the language model's config.
        vision: fields of the tower's config.
        top: other fields.
    """
    import torch
    import transformers

    towers = {
        "llava_next": "clip_vision_model",
        "llava_onevision": "siglip_vision_model",
        "internvl": "internvl_vision",
    }
    kind = kind or ("llama" if family == "llava_next" else "qwen2")
    own = {
        "llava_next": {"image_grid_pinpoints": GRID, "image_token_index": IMAGE_TOKEN},
        "llava_onevision": {
            "image_grid_pinpoints": GRID,
            "image_token_index": IMAGE_TOKEN,
            "video_token_index": VIDEO_TOKEN,
        },
        "internvl": {"image_token_id": IMAGE_TOKEN, "image_seq_length": 4},
    }
    extra = {"llava_onevision": {"vision_use_head": False}, "internvl": {"attention_bias": True}}
    config = transformers.CONFIG_MAPPING[family](
        vision_config={"model_type": towers[family]}
        | TOWER
        | extra.get(family, {})
        | (vision or {}),
        text_config={"model_type": kind} | TEXT | (text or {}),
        **own[family] | top,
    )
    model = transformers.AutoModelForImageTextToText.from_config(config).eval()
    model.generation_config.pad_token_id = PAD
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            is_scale = name.endswith(("norm.weight", "norm1.weight", "norm2.weight")) or (
                "norm" in name and name.endswith("weight")
            )
            near_one = is_scale or "lambda" in name
            parameter.copy_(1 + 0.3 * noise if near_one else 0.2 * noise)
    return model


def tokens_of(model: Any, sizes: list[tuple[int, int]], alone: bool) -> list[int]:
    """Returns how many tokens each image takes, computed by transformers' processor.

    Args:
        model: LLaVA-NeXT or LLaVA-OneVision.
        sizes: heights and widths.
        alone: whether each is the only image of its prompt.
    """
    from transformers import LlavaNextProcessor, LlavaOnevisionProcessor

    config, patches = model.config, SIDE // 14
    if config.model_type == "llava_onevision":
        processor = LlavaOnevisionProcessor.__new__(LlavaOnevisionProcessor)
        processor.num_image_tokens = patches**2
        processor.vision_aspect_ratio = config.vision_aspect_ratio
        if not alone:
            return [patches**2 + 1] * len(sizes)
    else:
        processor = LlavaNextProcessor.__new__(LlavaNextProcessor)
        processor.patch_size, processor.num_additional_image_tokens = 14, 0
    processor.image_processor = type("Pinpoints", (), {"image_grid_pinpoints": GRID})
    return [processor._get_number_of_features(*size, SIDE, SIDE) for size in sizes]


def batch(
    model: Any,
    rows: list[list[tuple[int, int]]],
    texts: list[int],
    padding: str = "left",
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """Makes a batch as the family's processor does, with random pixels and tokens.

    Args:
        model: the model.
        rows: heights and widths of the images of each row; of InternVL, only height is read: the
            number of tiles.
        texts: number of text tokens of each row.
        padding: side, "left" or "right".
        seed: of tokens and pixels.
    """
    from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

    rng = np.random.default_rng(seed)
    family = model.config.model_type
    ids, tiles = [], []
    for sizes, text in zip(rows, texts, strict=True):
        alone = len(sizes) == 1 or family != "llava_onevision"
        if family == "internvl":
            lengths = [4 * num for num, _ in sizes]
            tiles += [num for num, _ in sizes]
        else:
            lengths = tokens_of(model, sizes, alone)
            tiles += [image_size_to_num_patches(s, GRID, SIDE) if alone else 1 for s in sizes]
        parts = np.array_split(rng.integers(3, IMAGE_TOKEN, text), len(sizes) + 1)
        row = list(parts[0])
        for length, part in zip(lengths, parts[1:], strict=True):
            row += [IMAGE_TOKEN] * length + list(part)
        ids.append(row)
    ids_BS, mask_BS = padded_ids(ids, padding)
    arrays = {"input_ids": ids_BS, "attention_mask": mask_BS}
    if not tiles:
        return arrays
    if family == "internvl":
        pixels = rng.standard_normal((sum(tiles), 3, SIDE, SIDE))
        return arrays | {"pixel_values": pixels.astype(np.float32)}
    pixels = np.zeros((len(tiles), max(tiles), 3, SIDE, SIDE), np.float32)
    for image, num in zip(pixels, tiles, strict=True):
        image[:num] = rng.standard_normal((num, 3, SIDE, SIDE))
    arrays["pixel_values"] = pixels
    arrays["image_sizes"] = np.array([size for sizes in rows for size in sizes], np.int64)
    if family == "llava_onevision":
        arrays["batch_num_images"] = np.array([len(sizes) for sizes in rows], np.int64)
    return arrays


def video_tokens(frames: int, side: int) -> int:
    """Returns how many tokens a video takes in LLaVA-OneVision, computed by its processor."""
    from transformers import LlavaOnevisionProcessor

    processor = LlavaOnevisionProcessor.__new__(LlavaOnevisionProcessor)
    processor.num_image_tokens, processor.video_token = (side // 14) ** 2, "v"
    pixels = np.zeros((1, frames, 1))
    return len(processor.replace_video_token({"pixel_values_videos": pixels}, 0))


def batch_with_videos(
    model: Any, rows: list[list[Any]], side: int = SIDE, seed: int = 0
) -> dict[str, np.ndarray]:
    """Makes a batch of LLaVA-OneVision, padded on the left.

    Args:
        model: the model.
        rows: what each row has, in order: a number of text tokens, a size of an image, or frames of
            a video, as `{frames}`.
        side: of a tile.
        seed: of tokens and pixels.
    """
    from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

    rng = np.random.default_rng(seed)
    ids, sizes, tiles, nums, videos = [], [], [], [], []
    for row in rows:
        own, images = [], [part for part in row if isinstance(part, tuple)]
        for part in row:
            if isinstance(part, int):
                own += list(rng.integers(3, IMAGE_TOKEN, part))
            elif isinstance(part, tuple):
                alone = len(images) == 1
                own += [IMAGE_TOKEN] * tokens_of(model, [part], alone)[0]
                sizes.append(part)
                tiles.append(image_size_to_num_patches(part, GRID, SIDE) if alone else 1)
            else:
                (frames,) = part
                own += [VIDEO_TOKEN] * video_tokens(frames, side)
                videos.append(rng.standard_normal((frames, 3, side, side)))
        ids.append(own)
        nums += [len(images)] * bool(images)
    ids_BS, mask_BS = padded_ids(ids)
    arrays = {"input_ids": ids_BS, "attention_mask": mask_BS}
    if videos:
        arrays["pixel_values_videos"] = np.stack(videos).astype(np.float32)
    if tiles:
        arrays["pixel_values"] = np.zeros((len(tiles), max(tiles), 3, side, side), np.float32)
        for image, num in zip(arrays["pixel_values"], tiles, strict=True):
            image[:num] = rng.standard_normal((num, 3, side, side))
        arrays["image_sizes"], arrays["batch_num_images"] = np.array(sizes), np.array(nums)
    return arrays
