"""Tokens of images that become tiles, against the functions of transformers' models."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from seva_jax.images.internvl import InternvlProcessing
from seva_jax.images.llava_next import LlavaNextProcessing
from seva_jax.images.llava_onevision import LlavaOnevisionProcessing
from seva_jax.types import NEWLINE, DataError, ExampleError

torch = pytest.importorskip("torch")

from transformers import (  # noqa: E402
    GotOcr2ImageProcessorPil,
    InternVLProcessor,
    LlavaNextProcessor,
    LlavaOnevisionProcessor,
)
from transformers.models.llava_next import modeling_llava_next as llava_next  # noqa: E402
from transformers.models.llava_onevision import (  # noqa: E402
    modeling_llava_onevision as llava_onevision,
)

SIZES = [
    (1, 1),
    (2, 1),
    (1, 47),
    (53, 1),
    (1, 4000),
    (4000, 1),
    (1, 200_000),
    (9, 2000),
    (336, 336),
    (337, 335),
    (384, 384),
    (480, 640),
    (640, 480),
    (427, 640),
    (333, 500),
    (1000, 1001),
    (719, 1283),
    (1283, 719),
    (2304, 2304),
    (3024, 4032),
    (4000, 1333),
    (1111, 4000),
    (4000, 4000),
]


def sampled(count: int, seed: int = 0) -> list[tuple[int, int]]:
    """Returns sizes of any shape, small ones as often as large ones."""
    rng = np.random.default_rng(seed)
    return [(int(h), int(w)) for h, w in np.exp(rng.uniform(0, np.log(4000), (count, 2)))]


def config(processing, side: int) -> SimpleNamespace:
    vision = SimpleNamespace(image_size=processing.size, patch_size=processing.size // side)
    pinpoints = [list(resolution) for resolution in processing.resolutions]
    return SimpleNamespace(vision_config=vision, image_grid_pinpoints=pinpoints)


def packed(processing, sizes, tiles: list[int], side: int, table):
    """Returns what transformers' model makes of features, for each image.

    Args:
        processing: ours, for its settings.
        sizes: heights and widths of the images.
        tiles: number of tiles of each.
        side: features in a row of a tile.
        table: gives the features [tiles, side * side, D] of an image, given its tiles.
    """
    next_ = isinstance(processing, LlavaNextProcessing)
    model = llava_next.LlavaNextModel if next_ else llava_onevision.LlavaOnevisionModel
    options = (
        {"vision_feature_select_strategy": "default"}
        if next_
        else {"vision_aspect_ratio": f"anyres_max_{processing.anyres_max}"}
    )
    newline = torch.full((table(1).shape[-1],), float(NEWLINE), dtype=torch.float32)
    tokens, _ = model.pack_image_features(
        SimpleNamespace(config=config(processing, side)),
        [torch.from_numpy(table(number)) for number in tiles],
        sizes,
        image_newline=newline,
        **options,
    )
    return [token.numpy() for token in tokens]


def indices(side: int):
    def table(tiles: int) -> np.ndarray:
        return np.arange(tiles * side * side, dtype=np.float32).reshape(tiles, side * side, 1)

    return table


SMALL = LlavaNextProcessing(size=28, resolutions=((28, 84), (84, 28), (56, 56), (28, 28)))


@pytest.mark.parametrize(
    ("processing", "side"), [(LlavaNextProcessing(), 24), (SMALL, 4), (SMALL, 7)]
)
def test_tokens_equal_those_of_llava_next(processing, side):
    sizes = SIZES + sampled(60)
    layouts = processing.layouts(sizes, side * side)
    tiles = [
        llava_next.image_size_to_num_patches(
            size, [list(x) for x in processing.resolutions], processing.size
        )
        for size in sizes
    ]
    assert [layout.tiles for layout in layouts] == tiles
    theirs = packed(processing, sizes, tiles, side, indices(side))
    for layout, tokens in zip(layouts, theirs, strict=True):
        np.testing.assert_array_equal(layout.patch_N, tokens[:, 0])
        assert layout.blend is None
        assert layout.patch_N.dtype == np.int32
    assert len({layout.num_tokens for layout in layouts}) > 10
    # An image is laid out in the same way whether or not it is alone.
    assert processing.layouts(sizes[10:11], side * side)[0] is layouts[10]
    assert not processing.one_layout


ONEVISION = [
    (LlavaOnevisionProcessing(), 27),
    (LlavaOnevisionProcessing(anyres_max=4), 27),
    (LlavaOnevisionProcessing(anyres_max=2), 3),
]


def blended(layout, features: np.ndarray) -> np.ndarray:
    """Returns the tokens that the model makes by a layout, in float64."""
    index, weight = layout.blend
    assert index.dtype == np.int32
    assert weight.dtype == np.float32
    tokens = (weight[..., None].astype(np.float64) * features[index]).sum(1)
    np.testing.assert_array_equal(weight[layout.patch_N == NEWLINE], 0)
    np.testing.assert_array_equal(index[layout.patch_N == NEWLINE], 0)
    tokens[layout.patch_N == NEWLINE] = NEWLINE
    return tokens


@pytest.mark.parametrize(("processing", "side"), ONEVISION)
def test_tokens_equal_those_of_llava_onevision(processing, side):
    rng, smaller = np.random.default_rng(1), 0
    pinpoints = [list(x) for x in processing.resolutions]
    for size in SIZES + sampled(25):
        (layout,) = processing.layouts([size], side * side)
        tiles = llava_onevision.image_size_to_num_patches(size, pinpoints, processing.size)
        assert layout.tiles == tiles
        features = rng.uniform(-1, 1, (tiles, side * side, 3)).astype(np.float32)
        (theirs,) = packed(processing, [size], [tiles], side, lambda _, f=features: f)
        ours = blended(layout, features.reshape(-1, 3))
        assert ours.shape == theirs.shape
        # Places are float32 numbers up to 162; some CPUs round them twice.
        np.testing.assert_allclose(ours, theirs, atol=3e-5)
        np.testing.assert_allclose(layout.blend.weight_BSM.sum(-1), layout.patch_N >= 0, atol=1e-6)
        shrunk = (layout.blend.weight_BSM[:, 0] != 1)[layout.patch_N >= 0].any()
        smaller += shrunk
        if not shrunk:
            (theirs,) = packed(processing, [size], [tiles], side, indices(side))
            np.testing.assert_array_equal(layout.patch_N, theirs[:, 0])
            np.testing.assert_array_equal(ours, blended(layout, features.reshape(-1, 3)))
    assert 5 < smaller < 40


def test_several_images_of_llava_onevision_become_one_tile_each():
    processing, side = LlavaOnevisionProcessing(), 27
    layouts = processing.layouts([(480, 640), (3000, 2000)], side * side)
    theirs = packed(processing, [(480, 640), (3000, 2000)], [1, 1], side, indices(side))
    for layout, tokens in zip(layouts, theirs, strict=True):
        assert layout.tiles == 1
        np.testing.assert_array_equal(layout.patch_N, tokens[:, 0])
        features = np.random.default_rng(0).uniform(-1, 1, (729, 2))
        np.testing.assert_array_equal(blended(layout, features)[:-1], features)
    with pytest.raises(ExampleError, match="200000 pixels"):
        processing.layouts([(480, 640), (1, 200_000)], side * side)


def test_pictures_of_which_nothing_is_left_are_refused():
    # torch raises for them: "Input and output sizes should be greater than 0".
    wide = LlavaOnevisionProcessing(resolutions=((384, 384 * 40),), anyres_max=1)
    with pytest.raises(ExampleError, match=r"covers 1 x 1080 features.*anyres_max_1"):
        wide.layouts([(1, 100_000)], 729)


# The tokens that the processors write, which have the same arithmetic a second time.


def processor(kind, processing, **fields):
    """Returns a processor that counts tokens, without its tokenizer."""
    instance = object.__new__(kind)
    instance.image_processor = SimpleNamespace(
        image_grid_pinpoints=[list(x) for x in processing.resolutions]
    )
    for name, value in fields.items():
        setattr(instance, name, value)
    return instance


def test_numbers_of_tokens_equal_those_of_the_processors():
    sizes = SIZES + sampled(200, seed=1)
    next_, onevision = LlavaNextProcessing(), LlavaOnevisionProcessing()
    of_next = processor(LlavaNextProcessor, next_, patch_size=14, num_additional_image_tokens=1)
    of_onevision = processor(
        LlavaOnevisionProcessor, onevision, num_image_tokens=729, vision_aspect_ratio="anyres_max_9"
    )
    for size in sizes:
        (layout,) = next_.layouts([size], 576)
        assert layout.num_tokens == of_next._get_number_of_features(*size, 336, 336) - 1
        (layout,) = onevision.layouts([size], 729)
        assert layout.num_tokens == of_onevision._get_number_of_features(*size, 384, 384)


@pytest.mark.parametrize(("least", "most"), [(1, 12), (1, 6), (3, 5), (2, 40), (1, 1)])
def test_tokens_of_internvl_equal_its_processor(least, most):
    processing = InternvlProcessing(min_tiles=least, max_tiles=most)
    theirs = object.__new__(InternVLProcessor)
    theirs.image_seq_length = 256
    theirs.image_processor = GotOcr2ImageProcessorPil(
        size={"height": 448, "width": 448}, min_patches=least, max_patches=most
    )
    theirs._merge_kwargs = lambda **_: {"images_kwargs": dict(InternVLProcessor.images_kwargs)}
    sizes = SIZES + sampled(200, seed=2) + [(448 * h, 448 * w) for h in (1, 2, 3) for w in (1, 2)]
    counts = theirs._get_num_multimodal_tokens(sizes)
    layouts = processing.layouts(sizes, 256)
    for layout, tiles, tokens in zip(
        layouts, counts.num_image_patches, counts.num_image_tokens, strict=True
    ):
        assert layout.tiles == tiles
        np.testing.assert_array_equal(layout.patch_N, np.arange(tokens - 2))  # start and end
    assert processing.one_layout == (most == 1)
    assert (len({layout.tiles for layout in layouts}) > 1) == (most > 1)


def test_layouts_are_shared_and_cannot_be_changed():
    for processing, features in (
        (LlavaNextProcessing(), 576),
        (LlavaOnevisionProcessing(), 729),
        (InternvlProcessing(), 256),
    ):
        (first,) = processing.layouts([(480, 640)], features)
        (second,) = processing.layouts([(480, 640)], features)
        assert first is second
        with pytest.raises(ValueError, match="read-only"):
            first.patch_N[0] = 1


def test_features_that_are_no_square_are_refused():
    for processing in (LlavaNextProcessing(), LlavaOnevisionProcessing()):
        with pytest.raises(DataError, match="577 features"):
            processing.layouts([(480, 640)], 577)
