"""Rows from the arrays of processors whose images are several tiles: what is refused, by name."""

import dataclasses

import numpy as np
import pytest
from tiny_models import TINY_HF

from seva_jax.convert import SpecialTokens
from seva_jax.convert.families import FAMILIES
from seva_jax.images.llava_next import LlavaNextProcessing
from seva_jax.images.llava_onevision import LlavaOnevisionProcessing
from seva_jax.inference.qwen_arrays import ImageArrays
from seva_jax.pretrained import PretrainedLlava, to_rows
from seva_jax.types import NEWLINE, TEXT, DataError

NEXT = dataclasses.replace(TINY_HF, newline=True)
PROCESSING = LlavaNextProcessing(size=28, resolutions=((28, 56), (56, 28)))
IMAGE, TILE = TINY_HF.image_token_id, 4  # features of a tile: 2 x 2
# 28 x 56 pixels: the whole picture, then two rows of four features and a newline.
TOKENS = TILE + 2 * (4 + 1)


def arrays(**changes):
    ids = np.full((2, TOKENS + 1), 1)
    ids[0, 1:] = IMAGE
    pixels = np.arange(3 * 3 * 28 * 28, dtype=np.float32).reshape(1, 3, 3, 28, 28)
    made = {
        "input_ids": ids,
        "pixel_values": pixels,
        "attention_mask": None,
        "processing": PROCESSING,
        "image_sizes": np.array([[28, 56]]),
    }
    return made | changes


def rows_of(**changes):
    """Returns the rows of `arrays`."""
    made = arrays(**changes)
    given = ImageArrays(**{name: x for name, x in made.items() if name in ImageArrays._fields})
    return to_rows(NEXT, made["input_ids"], made["attention_mask"], given, made["processing"])


def test_an_image_of_several_tiles():
    rows = rows_of()
    whole, first, second = [0, 1, 2, 3], [4, 5, 8, 9, NEWLINE], [6, 7, 10, 11, NEWLINE]
    assert rows.patch_BS[0].tolist() == [TEXT, *whole, *first, *second]
    assert (rows.patch_BS[1] == TEXT).all()
    assert rows.pixels_BIHWC.shape == (2, 3, 28, 28, 3)
    np.testing.assert_array_equal(
        rows.pixels_BIHWC[0].transpose(0, 3, 1, 2), arrays()["pixel_values"][0]
    )
    assert not rows.pixels_BIHWC[1].any()
    assert rows.blend is None


def test_images_of_a_row_follow_each_other():
    """The second image's features are counted after the tiles of the first."""
    one = arrays()
    ids = np.concatenate([one["input_ids"][:1], one["input_ids"][:1]], axis=1)
    sizes = np.array([[28, 56], [28, 56]])
    pixels = np.repeat(one["pixel_values"], 2, 0)
    rows = rows_of(input_ids=ids, pixel_values=pixels, image_sizes=sizes)
    first, second = np.split(rows.patch_BS[0], 2)
    np.testing.assert_array_equal(np.where(first >= 0, first + 3 * TILE, first), second)
    assert rows.pixels_BIHWC.shape[:2] == (1, 6)


def test_blends_of_a_row_follow_each_other():
    """Of a picture made smaller, indices count the tiles before it; newlines are no sums."""
    processing = LlavaOnevisionProcessing(size=28, resolutions=((56, 56), (28, 28)), anyres_max=1)
    (layout,) = processing.layouts([(56, 56)], TILE)
    assert layout.blend is not None
    ids = np.full((1, 2 * layout.num_tokens), IMAGE)
    pixels = np.zeros((2, 5, 3, 28, 28), np.float32)
    given = ImageArrays(pixels, np.array([[56, 56]] * 2), np.array([1, 1]))
    rows = to_rows(NEXT, ids, None, given, processing)
    assert rows.blend is not None
    index, weight = rows.blend.index_BSM[0], rows.blend.weight_BSM[0]
    ends = rows.patch_BS[0] == NEWLINE
    assert (weight[ends] == 0).all()
    np.testing.assert_allclose(weight[~ends].sum(-1), 1, atol=1e-6)
    first, second = np.split(np.where(ends[:, None], 0, index), 2)
    assert (second - first)[~ends[: len(first)]].tolist() == [
        [5 * TILE] * 4 for _ in range((~ends[: len(first)]).sum())
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_sizes": None}, "image_sizes is missing"),
        ({"image_sizes": np.array([[28.0, 56.0]])}, r"image_sizes is float64\[1, 2\]"),
        ({"image_sizes": np.array([[0, 56]])}, "image_sizes is"),
        ({"pixel_values": np.zeros((3, 3, 28, 28))}, r"expected \[images, tiles, 3, 28, 28\]"),
        ({"pixel_values": np.zeros((1, 2, 3, 28, 28))}, "has 2 tiles for each image, but .* 3"),
        ({"pixel_values": None}, "14 image tokens, but the 0 images of pixel_values make 0"),
        ({"batch_num_images": np.array([2])}, r"batch_num_images is \[2\], expected"),
        ({"image_sizes": np.array([[56, 28]])}, "14 image tokens, but the 1 images .* make 16"),
    ],
)
def test_arrays_that_do_not_fit_are_named(changes, message):
    with pytest.raises(DataError, match=message):
        rows_of(**changes)


def test_an_image_is_not_split_over_rows():
    ids = np.full((2, TOKENS // 2), IMAGE)
    with pytest.raises(DataError, match="row 0 has 7 image tokens, but its images make 14"):
        rows_of(input_ids=ids)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.model_type)
def test_an_array_that_a_family_does_not_take_is_named(tmp_path, family):
    opened = PretrainedLlava(
        tmp_path, TINY_HF, {}, SpecialTokens((2,), 0), "float32", None, family, PROCESSING
    )
    ids, values = np.ones((1, 2), int), {"image_sizes": np.ones((1, 2), int)}
    values["batch_num_images"] = np.ones(1, int)
    for name, value in values.items():
        if name not in family.image_arrays:
            for method in (opened.logits, opened.generate):
                with pytest.raises(DataError, match=f"{name}: .*{family.model_type} take no such"):
                    method(ids, **{name: value})
