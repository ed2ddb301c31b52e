"""Images of native resolution: the pixels of transformers, their places, and noise on them."""

import json

import numpy as np
import pytest
from helpers_qwen import MOST, QWEN, image_processor, patch_of

from seva_jax.batches.trees import trunk_positions
from seva_jax.corrupt import DiffusionNoise, RandomResizedCrop
from seva_jax.corrupt.diffusion import diffusion_schedule
from seva_jax.images import QwenProcessing
from seva_jax.images.compose import Box
from seva_jax.images.qwen_layouts import resized, window_order
from seva_jax.images.shown import shown_tokens
from seva_jax.inference.corrupted import prompt_images
from seva_jax.types import DataError, ExampleError, Prompt

SIZES = [(91, 260), (300, 71), (30, 31), (130, 130), (56, 84), (500, 400), (29, 57), (1000, 40)]


def processing_of(family):
    theirs = image_processor(family)
    mean, std = tuple(theirs.image_mean), tuple(theirs.image_std)
    return QwenProcessing(size=2 * patch_of(family), mean=mean, std=std, **MOST)


def picture(size, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)


@pytest.mark.parametrize("family", QWEN[1:])
@pytest.mark.parametrize("size", SIZES)
def test_pixels_are_those_of_transformers(family, size):
    image, processing = picture(size), processing_of(family)
    arrays = image_processor(family)([image], return_tensors="np")
    _, rows, columns = arrays["image_grid_thw"][0]
    assert processing.grid(size) == (rows // 2, columns // 2)
    patch = patch_of(family)
    blocks = arrays["pixel_values"].reshape(-1, 2, 2, 3, 2, patch, patch)[:, :, :, :, 0]
    theirs = blocks.transpose(0, 1, 4, 2, 5, 3).reshape(-1, 2 * patch, 2 * patch, 3)
    ours = processing.tiles(image)
    np.testing.assert_allclose(ours, theirs[window_order(rows // 2, columns // 2)], atol=1e-5)
    np.testing.assert_array_equal(processing.view(ours, size), processing(image))


def test_windows_follow_one_another_and_tokens_are_in_reading_order():
    processing = processing_of("qwen2_5_vl")
    (layout,) = processing.layouts([(150, 180)], 1)
    assert processing.grid((150, 180)) == (5, 6)
    place = layout.native.place_I5
    windows = [tuple(x) for x in place[:, 1:3] // 4]
    assert [x for i, x in enumerate(windows) if i == 0 or x != windows[i - 1]] == [
        (0, 0), (0, 1), (1, 0), (1, 1),
    ]  # fmt: skip
    by_token = place[layout.patch_N]
    np.testing.assert_array_equal(by_token[:, 1] * 6 + by_token[:, 2], np.arange(30))
    assert [{*x} for x in place[:, [0, 3, 4]].T] == [{1}, {5}, {6}]


def test_tokens_that_show_a_part_of_an_image():
    """They are those whose centre is in it, as for MIA-DPO's attention."""
    processing, size = processing_of("qwen2_5_vl"), (150, 180)
    rows, columns = processing.grid(size)
    box = Box(top=40, left=0, height=150, width=180, bottom=110, right=60)
    shown = shown_tokens(processing, 1, [size, (60, 60)], 0, box)
    y, x = np.mgrid[:rows, :columns] + 0.5
    inside = (y / rows >= 40 / 150) & (y / rows < 110 / 150) & (x / columns < 60 / 180)
    assert inside.any()
    np.testing.assert_array_equal(shown, [*inside.ravel(), *[False] * 4])
    other = shown_tokens(processing, 1, [size, (60, 60)], 1)
    assert other.tolist() == [False] * (rows * columns) + [True] * 4


def test_text_counts_on_from_the_largest_position_of_an_image():
    layouts = processing_of("qwen2_vl").layouts([(150, 180), (60, 60)], 1)
    trunk = np.array([1, *[9] * 30, 1, 1, *[9] * 4, 1])
    positions, after = trunk_positions(trunk == 9, layouts, True)
    assert positions[:2].tolist() == [[0, 0, 0], [1, 1, 1]]
    assert positions[30].tolist() == [1, 5, 6]  # the image begins at 1 and has 5 x 6 tokens
    assert positions[31:33].tolist() == [[7] * 3, [8] * 3]
    assert positions[33:37].tolist() == [[9, 9, 9], [9, 9, 10], [9, 10, 9], [9, 10, 10]]
    assert positions[37].tolist() == [11] * 3
    assert after == 12
    positions, after = trunk_positions(np.zeros(3, bool), (), True)
    assert positions.tolist() == [[0] * 3, [1] * 3, [2] * 3]
    assert after == 3


@pytest.mark.parametrize("size", [(91, 260), (300, 71), (130, 130)])
def test_noise_is_that_of_the_whole_picture(size):
    """Its statistics depend neither on the size nor on the order of tiles."""
    processing, corruption = processing_of("qwen2_5_vl"), DiffusionNoise(500)
    images = {"a": picture(size)}
    clean, noisy = prompt_images(
        Prompt("p", "What?", ("a",)), images.__getitem__, processing, [corruption], seed=1
    )
    assert noisy.sizes == clean.sizes == (size,)
    kept, sigma = (x[500] for x in diffusion_schedule())
    noise = (noisy.tiles_IHWC - kept * clean.tiles_IHWC) / sigma
    assert abs(noise.mean()) < 5 / noise.size**0.5
    assert abs(noise.std() - 1) < 5 / noise.size**0.5
    per_tile = noise.reshape(len(noise), -1)
    assert np.abs(per_tile.std(1) - 1).max() < 6 / per_tile.shape[1] ** 0.5
    likeness = np.corrcoef(per_tile) - np.eye(len(per_tile))
    assert np.abs(likeness).max() < 7 / per_tile.shape[1] ** 0.5


def test_a_cropped_image_has_tokens_of_its_own():
    processing = processing_of("qwen3_vl")
    images = {"a": picture((300, 250))}
    clean, cropped = prompt_images(
        Prompt("p", "What?", ("a",)), images.__getitem__, processing,
        [RandomResizedCrop(size=96)], seed=1,
    )  # fmt: skip
    assert cropped.sizes == ((96, 96),)
    (before,), (after,) = (processing.layouts(x.sizes, 1) for x in (clean, cropped))
    assert (len(clean.tiles_IHWC), len(cropped.tiles_IHWC)) == (before.tiles, after.tiles)
    assert after.tiles == 9 < before.tiles


@pytest.mark.parametrize(
    "fields",
    [
        {"min_pixels": 3136, "max_pixels": 12845056},
        {"size": {"shortest_edge": 3136, "longest_edge": 12845056}},
        {"size": {"min_pixels": 4, "max_pixels": 5}, "min_pixels": 3136, "max_pixels": 12845056},
    ],
)
def test_bounds_have_two_spellings(tmp_path, fields):
    known = {"image_processor_type": "Qwen2VLImageProcessor", "patch_size": 14, "merge_size": 2}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(known | fields))
    read = QwenProcessing.from_processor_config(tmp_path)
    assert (read.size, read.min_pixels, read.max_pixels) == (28, 3136, 12845056)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(read.to_processor_config()))
    assert QwenProcessing.from_processor_config(tmp_path) == read


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"merge_size": 3}, "merge_size is 3: must be 2"),
        ({"temporal_patch_size": 1}, "temporal_patch_size is 1: must be 2"),
        ({"max_pixels": "many"}, "max_pixels is 'many': must be a whole number"),
        ({"max_pixels": 100}, "min_pixels is 3136 and max_pixels 100"),
        ({"image_processor_type": "CLIPImageProcessor"}, "expected Qwen2VLImageProcessor"),
    ],
)
def test_fields_that_are_not_supported_are_named(tmp_path, fields, words):
    known = {"image_processor_type": "Qwen2VLImageProcessor", "patch_size": 14}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(known | fields))
    with pytest.raises(DataError, match=words):
        QwenProcessing.from_processor_config(tmp_path)


def test_an_elongated_image_is_dropped():
    with pytest.raises(ExampleError, match="more than 200 times as long as wide") as caught:
        resized((10, 2010), 28, 56 * 56, 10**6)
    assert caught.value.reason == "image too elongated"
