"""Images and videos of Qwen-VL as its processor returns them: patches of all of them, and grids.

What lives here: cutting them into tiles, and positions of three axes. What does not: other models'
arrays (`processor_arrays.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from seva_jax.batches.trees import joint_layout, trunk_positions
from seva_jax.images.qwen import QwenProcessing
from seva_jax.images.qwen_layouts import FRAMES, MERGE, grid_layout, window_order
from seva_jax.inference.sampler import PromptBatch
from seva_jax.types import DataError, ImageLayout

LaidOut = tuple[ImageLayout, np.ndarray]  # an image or a video: its layout and tiles [I, 3, H, W]


class ImageArrays(NamedTuple):
    """Arrays of a processor besides tokens, see `PretrainedLlava.logits`."""

    pixel_values: np.ndarray | None = None
    image_sizes: np.ndarray | None = None
    batch_num_images: np.ndarray | None = None
    pixel_values_videos: np.ndarray | Sequence[np.ndarray] | None = None
    image_grid_thw: np.ndarray | None = None
    video_grid_thw: np.ndarray | None = None
    second_per_grid_ts: np.ndarray | Sequence[float] | None = None
    mm_token_type_ids: np.ndarray | None = None


def qwen_pictures(
    processing: QwenProcessing, given: ImageArrays
) -> tuple[list[LaidOut], list[LaidOut]]:
    """Returns layouts and tiles [I, 3, H, W] of images, and of videos.

    Tiles show two frames, one under the other, if there are videos. A video of Qwen3-VL is one
    picture for every two frames, because there is text in between.

    Args:
        processing: lays them out.
        given: the arrays.

    Raises:
        DataError: the arrays do not fit each other or the model.
    """
    images = _patches(processing, given.pixel_values, given.image_grid_thw, "image")
    videos = _patches(processing, given.pixel_values_videos, given.video_grid_thw, "video")
    for (pairs, _, _), blocks in images:
        if pairs != 1 or not np.array_equal(*np.moveaxis(blocks, 4, 0)):
            raise DataError(
                "pixel_values: an image has different frames; give a video as pixel_values_videos"
            )
    frames = FRAMES if videos else 1
    seconds = _seconds(given.second_per_grid_ts, len(videos))
    laid_out = [
        (grid_layout(rows, columns), _tiles(blocks[:, :, :, :, :frames], rows, columns))
        for (_, rows, columns), blocks in images
    ]
    laid_out_videos = list[LaidOut]()
    for ((pairs, rows, columns), blocks), apart in zip(videos, seconds, strict=True):
        tiles = np.split(blocks, pairs)
        tiles = [_tiles(pair, rows, columns) for pair in tiles]
        if processing.timestamps:
            laid_out_videos += [(grid_layout(rows, columns), pair) for pair in tiles]
            continue
        speed = processing.positions_per_second
        interval = float(np.float32(speed) * np.float32(apart)) if speed else 1.0
        layout = grid_layout(rows, columns, pairs, interval)
        laid_out_videos.append((layout, np.concatenate(tiles)))
    return laid_out, laid_out_videos


_Patches = tuple[tuple[int, int, int], np.ndarray]


def _patches(
    processing: QwenProcessing, pixel_values: object, grid_thw: np.ndarray | None, kind: str
) -> list[_Patches]:
    """Returns the grid of tiles, and the patches, of each image or video.

    Args:
        processing: lays them out.
        pixel_values: the patches of all.
        grid_thw: the grid of patches of each.
        kind: "image" or "video".

    Returns:
        Pairs of frames, rows and columns of tiles; and patches [tiles, rows of patches, columns of
        patches, colours, frames, rows, columns], tiles row by row.
    """
    if pixel_values is None:
        return []
    values = {"image": "pixel_values", "video": "pixel_values_videos"}[kind]
    patch = processing.size // MERGE
    width, patches = 3 * FRAMES * patch * patch, np.asarray(pixel_values)
    if patches.ndim != 2 or patches.shape[1] != width:
        raise DataError(
            f"{values} is {list(patches.shape)}, expected [patches, {width}]; use the processor of "
            "this model"
        )
    grids = np.zeros((0, 3), int) if grid_thw is None else np.asarray(grid_thw)
    whole = grids.ndim == 2 and grids.shape[1:] == (3,) and grids.dtype.kind in "iu"
    if grid_thw is None or not whole or (grids < 1).any() or (grids[:, 1:] % MERGE).any():
        given = "missing" if grid_thw is None else str(grids.tolist())[:80]
        raise DataError(
            f"{kind}_grid_thw is {given}, expected [pairs of frames, rows, columns] of patches for "
            f"each {kind}, rows and columns multiples of {MERGE}"
        )
    counts = grids.prod(axis=1)
    if counts.sum() != len(patches):
        raise DataError(
            f"{values} has {len(patches)} patches, but the {kind}s of {kind}_grid_thw have "
            f"{counts.sum()}"
        )
    out = list[_Patches]()
    for (pairs, rows, columns), part in zip(
        grids.tolist(), np.split(patches, np.cumsum(counts)[:-1]), strict=True
    ):
        blocks = part.reshape(-1, MERGE, MERGE, 3, FRAMES, patch, patch)
        out.append(((pairs, rows // MERGE, columns // MERGE), blocks))
    return out


def _seconds(given: np.ndarray | Sequence[float] | None, videos: int) -> np.ndarray:
    """Returns how many seconds each video takes for two frames; 1 where that is not given."""
    if given is None:
        return np.ones(videos)
    seconds = np.asarray(given)
    if seconds.shape != (videos,) or not (seconds > 0).all():
        raise DataError(
            f"second_per_grid_ts is {seconds.tolist()}, expected a positive number for each of the "
            f"{videos} videos of video_grid_thw"
        )
    return seconds


def _tiles(blocks: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Returns patches of a picture, see `_patches`, as tiles [I, 3, H, W] in order of windows."""
    *_, frames, patch, _ = blocks.shape
    size = MERGE * patch
    tiles_ICHW = blocks.transpose(0, 3, 4, 1, 5, 2, 6).reshape(-1, 3, frames * size, size)
    return tiles_ICHW[window_order(rows, columns)]


def placed(
    batch: PromptBatch,
    tokens: tuple[np.ndarray, np.ndarray],
    by_row: Sequence[tuple[list[LaidOut], list[LaidOut]]],
) -> PromptBatch:
    """Adds the places of tiles, and positions of three axes.

    The text after a video continues from the video's largest position. So did the code that trained
    the released models; transformers 5 continues from the larger of its rows and columns.

    Args:
        batch: the rows, whose tiles are those of images and then those of videos.
        tokens: [B, S] each, whether a token is of an image, and whether of a video.
        by_row: images and videos of each row.
    """
    rows, tiles = batch.pixels_BIHWC.shape[:2]
    place_BI5 = np.zeros((rows, tiles, 5), np.int32)
    positions_BS3 = np.zeros((*tokens[0].shape, 3), np.int32)
    for number, parts in enumerate(by_row):
        joint = joint_layout([layout for part in parts for layout, _ in part], 1, 1)
        if joint.native is not None:
            place_BI5[number, : joint.tiles] = joint.native.place_I5
        real_S = np.asarray(batch.mask_BS)[number]
        in_order = dict[int, ImageLayout]()
        for is_token_BS, part in zip(tokens, parts, strict=True):
            at, first = np.flatnonzero(is_token_BS[number]), 0
            for layout, _ in part:
                in_order[int(at[first])] = layout
                first += layout.num_tokens
        shown_S = (tokens[0] | tokens[1])[number, real_S]
        layouts = [in_order[first] for first in sorted(in_order)]
        positions_BS3[number, real_S], _ = trunk_positions(shown_S, layouts, True)
    return batch._replace(place_BI5=place_BI5, positions_BS3=positions_BS3)
