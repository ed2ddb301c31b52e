"""Turns the arrays that a processor of transformers returns into rows for the sampler.

What lives here: `to_rows`, which finds the images of every row, and says clearly which array is
wrong. What does not: reading a model (`seva_jax/pretrained.py`), how an image becomes tokens
(`seva_jax/images`). N counts the images, or tiles, of all rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from seva_jax.batches.trees import joint_layout
from seva_jax.images import ImageProcessing
from seva_jax.images.qwen import QwenProcessing
from seva_jax.inference.qwen_arrays import ImageArrays, LaidOut, placed, qwen_pictures
from seva_jax.inference.sampler import PromptBatch
from seva_jax.models import LlavaConfig
from seva_jax.types import FRAME, TEXT, Blend, DataError, ImageLayout


def to_rows(
    config: LlavaConfig,
    input_ids: np.ndarray,
    attention_mask: np.ndarray | None,
    given: ImageArrays,
    processing: ImageProcessing | None = None,
) -> PromptBatch:
    """Regroups the processor's flat lists of images and videos by row, and checks all arrays.

    Args:
        config: the architecture.
        input_ids: see `PretrainedLlava.logits`.
        attention_mask: 1 for real tokens.
        given: the other arrays.
        processing: lays out images whose sizes matter; None takes every tile as an image whose
            features are its tokens.

    Returns:
        NumPy arrays; I is the largest number of tiles and frames in a row, and missing ones are
        zeros.

    Raises:
        DataError: the arrays do not fit each other or the model.
    """
    tokens_BS = np.asarray(input_ids)
    if tokens_BS.ndim != 2 or not tokens_BS.size or tokens_BS.dtype.kind not in "iu":
        raise DataError(
            f"input_ids is {tokens_BS.dtype}{list(tokens_BS.shape)}, expected integers "
            "[batch, length], not empty"
        )
    mask_BS = np.ones(tokens_BS.shape) if attention_mask is None else np.asarray(attention_mask)
    if mask_BS.shape != tokens_BS.shape:
        raise DataError(
            f"attention_mask is {list(mask_BS.shape)}, expected the shape of input_ids, "
            f"{list(tokens_BS.shape)}"
        )
    image_BS = tokens_BS == config.image_token_id
    video_BS = tokens_BS == config.video_token_id
    outside = tokens_BS[
        ~(image_BS | video_BS) & ((tokens_BS < 0) | (tokens_BS >= config.text.vocab_size))
    ]
    if len(outside):
        raise DataError(
            f"input_ids holds {outside[0]}, but the vocabulary has {config.text.vocab_size} "
            "tokens; use the tokenizer of this model"
        )
    rows = tokens_BS.astype(np.int32), mask_BS.astype(bool)
    if processing is None:
        return PromptBatch(*rows, *_tile_by_tile(config, image_BS, given.pixel_values))
    if isinstance(processing, QwenProcessing):
        images, videos = qwen_pictures(processing, given)
    else:
        images = _images(config, processing, given)
        videos = _videos(config, processing, given.pixel_values_videos)
    by_row = zip(
        _by_row(image_BS, images, "image", "pixel_values"),
        _by_row(video_BS, videos, "video", "pixel_values_videos"),
        strict=True,
    )
    by_row = list(by_row)
    batch = PromptBatch(*rows, *_laid_out(config, processing, (image_BS, video_BS), by_row))
    return placed(batch, (image_BS, video_BS), by_row) if processing.native else batch


def _tile_by_tile(
    config: LlavaConfig, image_BS: np.ndarray, pixel_values: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Returns `patch_BS` and the pixels of rows whose image tokens are all features in order."""
    side, per_tile = config.vision.image_size, config.tile_features
    pixels_NCHW = np.zeros((0, 3, side, side)) if pixel_values is None else np.asarray(pixel_values)
    if pixels_NCHW.ndim != 4 or pixels_NCHW.shape[1:] != (3, side, side):
        raise DataError(
            f"pixel_values is {list(pixels_NCHW.shape)}, expected [images, 3, {side}, {side}]; "
            "use the processor of this model"
        )
    num_tokens_B = image_BS.sum(axis=1)
    if num_tokens_B.sum() != len(pixels_NCHW) * per_tile:
        raise DataError(
            f"input_ids has {num_tokens_B.sum()} image tokens, but pixel_values has "
            f"{len(pixels_NCHW)} images of {per_tile} tokens each, "
            f"{len(pixels_NCHW) * per_tile} in all; expand every image to its tokens (the "
            "processor does, if its patch_size is set)"
        )
    broken = np.flatnonzero(num_tokens_B % per_tile)
    if len(broken):
        raise DataError(
            f"input_ids: row {broken[0]} has {num_tokens_B[broken[0]]} image tokens, not a "
            f"multiple of {per_tile}, the tokens of an image"
        )
    tiles_B = num_tokens_B // per_tile
    pixels_BIHWC = np.zeros((len(image_BS), tiles_B.max(), side, side, 3), np.float32)
    exists_BI = np.arange(tiles_B.max()) < tiles_B[:, None]
    pixels_BIHWC[exists_BI] = pixels_NCHW.transpose(0, 2, 3, 1)
    patch_BS = np.where(image_BS, np.cumsum(image_BS, axis=1) - 1, TEXT)
    return patch_BS.astype(np.int32), pixels_BIHWC


def _images(
    config: LlavaConfig,
    processing: ImageProcessing,
    given: ImageArrays,
) -> list[LaidOut]:
    """Returns the layout and the tiles [I, 3, H, W] of every image."""
    if given.pixel_values is None:
        return []
    side, pixels = config.vision.image_size, np.asarray(given.pixel_values)
    image_sizes, batch_num_images = given.image_sizes, given.batch_num_images
    if pixels.ndim != 5 or pixels.shape[2:] != (3, side, side):
        raise DataError(
            f"pixel_values is {list(pixels.shape)}, expected [images, tiles, 3, {side}, {side}]; "
            "use the processor of this model"
        )
    sizes = np.zeros((0, 2), int) if image_sizes is None else np.asarray(image_sizes)
    if sizes.shape != (len(pixels), 2) or sizes.dtype.kind not in "iu" or (sizes < 1).any():
        shown = "missing" if image_sizes is None else f"{sizes.dtype}{list(sizes.shape)}"
        raise DataError(
            f"image_sizes is {shown}, expected the height and width of each of the "
            f"{len(pixels)} images of pixel_values"
        )
    counts = np.ones(len(pixels), int)
    if batch_num_images is not None:
        counts = np.asarray(batch_num_images)
        if counts.ndim != 1 or counts.dtype.kind not in "iu" or counts.sum() != len(pixels):
            raise DataError(
                f"batch_num_images is {counts.tolist()}, expected numbers of images whose sum is "
                f"that of pixel_values, {len(pixels)}"
            )
    layouts: list[ImageLayout] = []
    for group in np.split(sizes, np.cumsum(counts)[:-1]):
        pairs = [(int(height), int(width)) for height, width in group]
        layouts += processing.layouts(pairs, config.tile_features)
    most = max(layout.tiles for layout in layouts)
    if most > pixels.shape[1]:
        raise DataError(
            f"pixel_values has {pixels.shape[1]} tiles for each image, but an image of "
            f"image_sizes needs {most}; use the processor of this model"
        )
    return [(layout, tiles[: layout.tiles]) for layout, tiles in zip(layouts, pixels, strict=True)]


def _videos(
    config: LlavaConfig,
    processing: ImageProcessing,
    pixel_values_videos: np.ndarray | Sequence[np.ndarray] | None,
) -> list[LaidOut]:
    """Returns the layout and the frames [I, 3, H, W] of every video."""
    side, videos = config.vision.image_size, list[LaidOut]()
    for number, video in enumerate([] if pixel_values_videos is None else pixel_values_videos):
        frames = np.asarray(video)
        if frames.ndim != 4 or frames.shape[1:] != (3, side, side) or not len(frames):
            raise DataError(
                f"pixel_values_videos: video {number} is {list(frames.shape)}, expected "
                f"[frames, 3, {side}, {side}] with at least one frame; use the processor of this "
                "model"
            )
        (layout,) = processing.layouts([FRAME] * len(frames), config.tile_features)
        videos.append((layout, frames))
    return videos


def _by_row(
    place_BS: np.ndarray, pictures: Sequence[LaidOut], kind: str, array: str
) -> list[list[LaidOut]]:
    """Returns the images, or the videos, of each row.

    Args:
        place_BS: whether a token is one of theirs.
        pictures: those of all rows.
        kind: "image" or "video", for errors.
        array: the array that they are from, for errors.
    """
    num_tokens_B = place_BS.sum(axis=1)
    total = sum(layout.num_tokens for layout, _ in pictures)
    if num_tokens_B.sum() != total:
        raise DataError(
            f"input_ids has {num_tokens_B.sum()} {kind} tokens, but the {len(pictures)} {kind}s of "
            f"{array} make {total}; use the processor of this model"
        )
    by_row, left = list[list[LaidOut]](), list(pictures)
    for row, num in enumerate(num_tokens_B):
        own = list[LaidOut]()
        while sum(layout.num_tokens for layout, _ in own) < num:
            own.append(left.pop(0))
        tokens = sum(layout.num_tokens for layout, _ in own)
        if tokens > num:
            raise DataError(
                f"input_ids: row {row} has {num} {kind} tokens, but its {kind}s make {tokens}"
            )
        by_row.append(own)
    return by_row


def _laid_out(
    config: LlavaConfig,
    processing: ImageProcessing,
    places: tuple[np.ndarray, np.ndarray],
    by_row: Sequence[tuple[list[LaidOut], list[LaidOut]]],
) -> tuple[np.ndarray, np.ndarray, Blend | None]:
    """Returns `patch_BS`, the pixels and the blend of rows whose images have layouts.

    Args:
        config: the architecture.
        processing: lays out images.
        places: [B, S] each, whether a token is of an image, and whether of a video.
        by_row: images and videos of each row; the tiles of images are first.
    """
    features = config.tile_features
    rows = [[*images, *videos] for images, videos in by_row]
    joint = [
        joint_layout([layout for layout, _ in row], features, processing.blended) for row in rows
    ]
    shape = (*places[0].shape, processing.blended)
    blend = Blend(np.zeros(shape, np.int32), np.zeros(shape, np.float32))
    patch_BS = np.full(places[0].shape, TEXT, np.int32)
    most = max(layout.tiles for layout in joint)
    side = config.vision.image_size
    tiles = (tiles for row in rows for _, tiles in row)
    shape = next((x.shape[1:] for x in tiles if len(x)), (3, side, side))
    pixels_BIHWC = np.zeros((len(rows), most, *shape[1:], 3), np.float32)
    for number, (row, layout) in enumerate(zip(rows, joint, strict=True)):
        at = np.concatenate([np.flatnonzero(place_BS[number]) for place_BS in places])
        patch_BS[number, at] = layout.patch_N
        if layout.blend is not None:
            blend.index_BSM[number, at] = layout.blend.index_BSM
            blend.weight_BSM[number, at] = layout.blend.weight_BSM
        if row:
            tiles_ICHW = np.concatenate([tiles_ICHW for _, tiles_ICHW in row])
            pixels_BIHWC[number, : layout.tiles] = tiles_ICHW.transpose(0, 2, 3, 1)
    return patch_BS, pixels_BIHWC, blend if processing.blended > 1 else None
