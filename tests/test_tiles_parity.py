"""Tiles of images against transformers' Pillow processors, which need no torch."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from transformers import (
    GotOcr2ImageProcessorPil,
    InternVLProcessor,
    LlavaNextImageProcessorPil,
    LlavaNextProcessor,
    LlavaOnevisionImageProcessorPil,
)

from seva_jax.config.command_line import load_experiment
from seva_jax.config.config_files import read_config
from seva_jax.config.source import to_source
from seva_jax.images import preprocess
from seva_jax.images.internvl import InternvlProcessing
from seva_jax.images.llava_next import LlavaNextProcessing
from seva_jax.images.llava_onevision import LlavaOnevisionProcessing
from seva_jax.images.tiled import TiledProcessing
from seva_jax.text.tokenizer import word_tokenizer
from seva_jax.types import DataError, ExampleError

KINDS = (LlavaNextProcessing, LlavaOnevisionProcessing, InternvlProcessing)
PINPOINTS = [[28, 56], [56, 28], [56, 56], [84, 28], [28, 84], [28, 28]]
NEXT = LlavaNextImageProcessorPil(
    size={"shortest_edge": 28},
    crop_size={"height": 28, "width": 28},
    image_grid_pinpoints=PINPOINTS,
)
ONEVISION = LlavaOnevisionImageProcessorPil(
    size={"height": 28, "width": 28},
    image_grid_pinpoints=PINPOINTS,
    image_mean=[0.5, 0.4, 0.3],
    image_std=[0.5, 0.6, 0.7],
)
INTERNVL = GotOcr2ImageProcessorPil(
    size={"height": 28, "width": 28}, max_patches=6, image_mean=[0.485, 0.456, 0.406]
)
PROCESSORS = dict(zip(KINDS, (NEXT, ONEVISION, INTERNVL), strict=True))

SIZES = [
    (1, 1),
    (1, 47),
    (53, 1),
    (2, 3),
    (1, 3000),
    (3000, 1),
    (28, 28),
    (29, 27),
    (28, 84),
    (57, 55),
    (300, 301),
    (47, 93),
    (211, 66),
    (240, 320),
    (333, 500),
    (500, 333),
    (900, 1200),
]


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def reference(processor, image_HWC: np.ndarray) -> np.ndarray:
    """Returns the tiles that transformers makes of the only image of a prompt, [I, H, W, 3]."""
    options = {"return_tensors": "np"}
    if isinstance(processor, GotOcr2ImageProcessorPil):
        options |= InternVLProcessor.images_kwargs
    pixels = processor(Image.fromarray(image_HWC), **options)["pixel_values"]
    return (pixels if pixels.ndim == 4 else pixels[0]).transpose(0, 2, 3, 1)


def read(processor, directory: Path) -> TiledProcessing:
    processor.save_pretrained(directory)
    kind = next(kind for kind, value in PROCESSORS.items() if type(value) is type(processor))
    return kind.from_processor_config(directory)


def features_of(processing: TiledProcessing) -> int:
    return (processing.size // 14) ** 2


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", SIZES)
def test_tiles_equal_those_of_transformers(kind, size, tmp_path):
    processing, image = read(PROCESSORS[kind], tmp_path), noise(*size)
    tiles, expected = processing.tiles(image), reference(PROCESSORS[kind], image)
    assert tiles.dtype == np.float32
    np.testing.assert_allclose(tiles, expected, atol=1e-5)
    (layout,) = processing.layouts([size], features_of(processing))
    assert layout.tiles == len(tiles)


@pytest.mark.parametrize(
    "processor",
    [
        LlavaNextImageProcessorPil(
            size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336}
        ),
        LlavaOnevisionImageProcessorPil(image_mean=[0.5] * 3, image_std=[0.5] * 3),
        GotOcr2ImageProcessorPil(
            size={"height": 448, "width": 448},
            image_mean=[0.485, 0.456, 0.406],
            image_std=[0.229, 0.224, 0.225],
        ),
    ],
)
def test_defaults_are_those_of_released_models(processor, tmp_path):
    processing, image = read(processor, tmp_path), noise(480, 640)
    assert processing == type(processing)()
    tiles = processing.tiles(image)
    np.testing.assert_allclose(tiles, reference(processor, image), atol=1e-5)
    assert len(tiles) == {336: 5, 384: 5, 448: 13}[processing.size]


def test_photographs_equal_those_of_transformers(tmp_path):
    data = pytest.importorskip("skimage.data")
    for number, processor in enumerate(PROCESSORS.values()):
        processing = read(processor, tmp_path / str(number))
        for image in (data.astronaut(), data.chelsea(), data.rocket()):
            tiles = processing.tiles(image)
            np.testing.assert_allclose(tiles, reference(processor, image), atol=1e-5)
            assert tiles.std() > 0.2  # a photograph, not a blank


@pytest.mark.parametrize("kind", KINDS)
def test_every_size_has_the_tiles_of_its_layout(kind, tmp_path):
    processing = read(PROCESSORS[kind], tmp_path)
    rng = np.random.default_rng(4)
    sizes = np.exp(rng.uniform(0, np.log(4000), (40, 2))).astype(int).tolist()
    for height, width in [*sizes, (4000, 4000)]:
        image = np.zeros((height, width, 3), np.uint8)
        for alone in (True, False):
            images = [(height, width)] * (1 if alone else 2)
            layout = processing.layouts(images, features_of(processing))[0]
            assert len(processing.tiles(image, alone)) == layout.tiles
            assert layout.patch_N.max() < layout.tiles * features_of(processing)


@pytest.mark.parametrize("sizes", [[(40, 90), (90, 40)], [(28, 28), (1, 50), (300, 200)]])
def test_several_images_equal_those_of_transformers(sizes, tmp_path):
    images = [noise(*size, seed=seed) for seed, size in enumerate(sizes)]
    for number, (kind, processor) in enumerate(PROCESSORS.items()):
        processing = read(processor, tmp_path / str(number))
        tiles = [processing.tiles(image, alone=False) for image in images]
        if kind is LlavaOnevisionProcessing:  # those of a prompt are a list
            prompt = [[Image.fromarray(image) for image in images]]
            theirs = processor(prompt, return_tensors="np")["pixel_values"]
            expected = list(theirs.transpose(0, 1, 3, 4, 2))
            # Ours shrinks the longer side before it pads, as for LLaVA-1.5.
            for ours, their in zip(tiles, expected, strict=True):
                difference = np.abs(ours - their) * np.float32(processing.std)
                assert difference.mean() <= 1 / 255
                assert difference.max() <= 4 / 255
            assert [len(x) for x in tiles] == [1] * len(images)
        else:
            for ours, image in zip(tiles, images, strict=True):
                np.testing.assert_allclose(ours, reference(processor, image), atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_calling_gives_the_whole_picture(kind):
    processing, image = kind(), noise(70, 90)
    place = -1 if kind is InternvlProcessing else 0
    whole = processing(image)
    np.testing.assert_array_equal(whole, processing.tiles(image)[place])
    stretched = Image.fromarray(image).resize((processing.size,) * 2, processing.resample)
    np.testing.assert_array_equal(processing.denormalise(whole), np.asarray(stretched))


@pytest.mark.parametrize("kind", KINDS)
def test_a_recorded_config_has_the_processing(kind, tmp_path):
    experiment, _ = load_experiment("test", [])
    resolutions = {"resolutions": ((28, 56), (56, 28))}
    own = {"max_tiles": 5} if kind is InternvlProcessing else resolutions
    processing = kind(size=28, mean=(0.1, 0.2, 0.3), **own)
    base = dataclasses.replace(experiment.base, processing=processing)
    (tmp_path / "config.py").write_text(to_source(dataclasses.replace(experiment, base=base)))
    assert read_config(tmp_path / "config.py").base == base


def test_internvl_with_one_tile_is_stretched():
    image = noise(30, 90)
    one = InternvlProcessing(size=28, max_tiles=1)
    theirs = GotOcr2ImageProcessorPil(
        size={"height": 28, "width": 28},
        max_patches=1,
        image_mean=list(one.mean),
        image_std=list(one.std),
    )
    np.testing.assert_allclose(one.tiles(image), reference(theirs, image), atol=1e-5)
    assert one.one_layout
    assert one.layouts([(0, 0), (0, 0)], 4)[1].num_tokens == 4  # sizes are not read


@pytest.mark.parametrize("size", [(16, 10), (160, 100), (16, 40), (160, 400)])
def test_equally_good_grids_of_internvl_are_chosen_by_the_size(size, tmp_path):
    # Shapes in the middle between those of 2 x 2 tiles and of 4 in a row or column.
    processor = GotOcr2ImageProcessorPil(
        size={"height": 28, "width": 28}, min_patches=4, max_patches=4
    )
    image = noise(*size)
    tiles = read(processor, tmp_path).tiles(image)
    np.testing.assert_allclose(tiles, reference(processor, image), atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_long_images_take_little_memory_and_look_the_same(kind, monkeypatch):
    yy, xx = np.mgrid[:3000, :20]
    image = np.stack([yy % 256, xx % 256, (xx + yy) // 2 % 256], -1).astype(np.uint8)
    processing = kind(
        size=28, **({} if kind is InternvlProcessing else {"resolutions": ((56, 56),)})
    )
    expected = processing.tiles(image)
    monkeypatch.setattr(preprocess, "_DIRECT_PIXELS", 50_000)
    made, resize = [], Image.Image.resize

    def recorded(self, size, *args):
        made.append(size[0] * self.height)  # Pillow starts with the width
        return resize(self, size, *args)

    monkeypatch.setattr(Image.Image, "resize", recorded)
    tiles = processing.tiles(image)
    assert 0 < max(made) <= image.shape[0] * image.shape[1]
    difference = np.abs(tiles - expected) * np.float32(processing.std)
    assert difference.mean() <= 1 / 255
    assert difference.max() <= 4 / 255


def test_endless_images_among_several_are_refused():
    image = np.zeros((1, 200_000, 3), np.uint8)
    with pytest.raises(ExampleError, match="200000 pixels"):
        LlavaOnevisionProcessing().tiles(image, alone=False)
    assert LlavaOnevisionProcessing().tiles(image).shape == (2, 384, 384, 3)


@pytest.mark.parametrize("kind", KINDS)
def test_wrong_arrays_are_refused(kind):
    for image in (np.zeros((4, 4, 3), np.float32), np.zeros((0, 4, 3), np.uint8)):
        for alone in (True, False):
            with pytest.raises(DataError):
                kind().tiles(image, alone)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (LlavaNextProcessing, {"pad_to_square": True}),
        (LlavaOnevisionProcessing, {"keep_aspect": True}),
        (InternvlProcessing, {"shortest_edge": 500}),
        (LlavaNextProcessing, {"resolutions": ()}),
        (LlavaNextProcessing, {"resolutions": ((336, 500),)}),
        (LlavaOnevisionProcessing, {"anyres_max": 0}),
        (InternvlProcessing, {"min_tiles": 0}),
        (InternvlProcessing, {"min_tiles": 13}),
    ],
)
def test_wrong_settings_are_refused(kind, settings):
    with pytest.raises(DataError, match=next(iter(settings))):
        kind(**settings)


# --- processor files


@pytest.mark.parametrize("kind", KINDS)
def test_transformers_reads_what_is_written(kind, tmp_path):
    image = noise(50, 80)
    base = read(PROCESSORS[kind], tmp_path / "theirs")
    processing = dataclasses.replace(base, resample=Image.Resampling.BILINEAR)
    written = tmp_path / "preprocessor_config.json"
    written.write_text(json.dumps(processing.to_processor_config()))
    assert kind.from_processor_config(tmp_path) == processing
    theirs = type(PROCESSORS[kind]).from_pretrained(tmp_path)
    np.testing.assert_allclose(processing.tiles(image), reference(theirs, image), atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_reads_the_files_of_transformers_4_and_5(kind, tmp_path):
    processor = PROCESSORS[kind]
    processing = read(processor, tmp_path / "alone")
    nested = tmp_path / "nested"
    if kind is LlavaNextProcessing:
        LlavaNextProcessor(processor, word_tokenizer(["a"]), patch_size=14).save_pretrained(nested)
        assert not (nested / "preprocessor_config.json").exists()
    else:  # those processors need torchvision for video
        nested.mkdir()
        config = {"image_processor": processor.to_dict(), "processor_class": "Processor"}
        (nested / "processor_config.json").write_text(json.dumps(config))
    assert kind.from_processor_config(nested) == processing
    assert kind.from_processor_config(str(nested)) == processing


def test_anyres_max_is_that_of_the_model(tmp_path):
    assert read(ONEVISION, tmp_path).anyres_max == 9
    for config, expected in (({}, 9), ({"vision_aspect_ratio": "anyres_max_4"}, 4)):
        (tmp_path / "config.json").write_text(json.dumps(config))
        assert LlavaOnevisionProcessing.from_processor_config(tmp_path).anyres_max == expected
    for value in ("anyres", "pad", "anyres_max_0", 9, None):
        (tmp_path / "config.json").write_text(json.dumps({"vision_aspect_ratio": value}))
        with pytest.raises(DataError, match=rf"config\.json: vision_aspect_ratio is {value!r}"):
            LlavaOnevisionProcessing.from_processor_config(tmp_path)
    for content in ("{", "[]"):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(DataError, match=r"config\.json: not readable"):
            LlavaOnevisionProcessing.from_processor_config(tmp_path)


COMMON = [
    ("image_processor_type", "CLIPImageProcessor"),
    ("do_resize", False),
    ("do_rescale", False),
    ("rescale_factor", 1.0),
    ("do_normalize", False),
    ("image_mean", [0.5, 0.5]),
    ("image_std", [0.5, 0.5, 0]),
    ("resample", 17),
    ("size", None),
    ("size", {"height": 28, "width": 56}),
]
GRIDS = [
    ("image_grid_pinpoints", None),
    ("image_grid_pinpoints", []),
    ("image_grid_pinpoints", [[28, 56], [28]]),
    ("image_grid_pinpoints", [[28, 57]]),
    ("image_grid_pinpoints", [[28, 0]]),
    ("crop_size", {"height": 14, "width": 14}),
]
PATCHES = [("min_patches", 0), ("min_patches", 7), ("max_patches", True), ("max_patches", 1.5)]
REFUSED = [
    *((LlavaNextProcessing, *x) for x in COMMON + GRIDS),
    *((LlavaOnevisionProcessing, *x) for x in COMMON + GRIDS),
    *((InternvlProcessing, *x) for x in COMMON + PATCHES),
]


@pytest.mark.parametrize(("kind", "field", "value"), REFUSED)
def test_unsupported_fields_are_named(kind, field, value, tmp_path):
    config = {**PROCESSORS[kind].to_dict(), field: value}
    if field == "crop_size":
        config["do_center_crop"] = True
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
    with pytest.raises(DataError, match=rf"preprocessor_config\.json: {field} is "):
        kind.from_processor_config(tmp_path)


@pytest.mark.parametrize("kind", KINDS)
def test_padding_is_a_choice_of_llava_alone(kind, tmp_path):
    PROCESSORS[kind].save_pretrained(tmp_path)
    with pytest.raises(DataError, match="pad_to_square is True"):
        kind.from_processor_config(tmp_path, pad_to_square=True)


def test_colours_that_transformers_does_not_pad_with_are_not_exported():
    processing = LlavaOnevisionProcessing(pad_colour=(0, 0, 0))
    with pytest.raises(DataError, match=r"\(127, 127, 127\)"):
        processing.to_processor_config()
