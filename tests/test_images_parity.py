"""Preprocessing against transformers' Pillow processors, which need no torch."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from transformers import CLIPImageProcessorPil, LlavaImageProcessorPil, LlavaProcessor

from seva_jax.images import preprocess
from seva_jax.images.load import decode_image
from seva_jax.images.preprocess import CLIP_MEAN, ImageProcessing
from seva_jax.text.tokenizer import word_tokenizer
from seva_jax.types import DataError, ExampleError


def encoded(image: Image.Image, format_: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format_, **options)
    return buffer.getvalue()


def noise(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)


# --- preprocessing

SIZES = [
    (1, 1),
    (1, 47),
    (53, 1),
    (2, 3),
    (337, 111),
    (111, 337),
    (2000, 30),
    (30, 2000),
    (336, 336),
]


def reference(processor, image: np.ndarray | Image.Image) -> np.ndarray:
    if isinstance(image, np.ndarray):  # of a one-row array transformers takes rows for channels
        image = Image.fromarray(image)
    return processor(image, return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)


def assert_close_in_pixels(ours: np.ndarray, theirs: np.ndarray, processing: ImageProcessing):
    """Asserts a difference of at most 1/255 on average and 4/255 anywhere, before normalising."""
    assert ours.dtype == np.float32
    assert ours.shape == theirs.shape
    difference = np.abs(ours - theirs) * np.float32(processing.std)
    assert difference.mean() <= 1 / 255
    assert difference.max() <= 4 / 255


def hf_processor(pad: bool, size: int = 336, edge: int | None = None, **options):
    kind = LlavaImageProcessorPil if pad else CLIPImageProcessorPil
    extra = {"do_pad": True} if pad else {}
    return kind(
        size={"shortest_edge": edge or size},
        crop_size={"height": size, "width": size},
        **extra,
        **options,
    )


@pytest.mark.parametrize("pad", [True, False])
@pytest.mark.parametrize("size", SIZES)
def test_equals_transformers_on_odd_sizes(pad, size):
    processing, image = ImageProcessing(pad_to_square=pad), noise(*size)
    theirs = reference(hf_processor(pad), image)
    assert_close_in_pixels(processing(image), theirs, processing)


def test_equals_transformers_on_random_settings():
    rng = np.random.default_rng(3)
    for trial in range(60):
        height, width = rng.integers(1, 90, 2)
        size = int(rng.integers(5, 40))
        edge = size + int(rng.integers(0, 9))
        pad = bool(rng.integers(2))
        resample = Image.Resampling(int(rng.integers(0, 6)))
        mean, std = tuple(rng.uniform(0.1, 0.9, 3)), tuple(rng.uniform(0.1, 0.9, 3))
        processing = ImageProcessing(
            size=size,
            pad_to_square=pad,
            pad_colour=tuple(int(255 * value) for value in mean),
            mean=mean,
            std=std,
            shortest_edge=edge,
            resample=resample,
        )
        options = {"resample": resample, "image_mean": list(mean), "image_std": list(std)}
        image = noise(int(height), int(width), seed=trial)
        theirs = reference(hf_processor(pad, size, edge, **options), image)
        assert_close_in_pixels(processing(image), theirs, processing)


@pytest.mark.parametrize("pad", [True, False])
@pytest.mark.parametrize("name", ["astronaut", "coffee", "chelsea", "rocket", "logo", "coins"])
def test_equals_transformers_on_photographs(pad, name):
    data = pytest.importorskip("skimage.data")
    image = decode_image(encoded(Image.fromarray(getattr(data, name)())))
    processing = ImageProcessing(pad_to_square=pad)
    ours = processing(image)
    assert_close_in_pixels(ours, reference(hf_processor(pad), image), processing)
    assert ours.std() > 0.2  # a photograph, not a blank


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK"])
def test_file_to_pixels_equals_transformers(mode):
    image = Image.fromarray(noise(31, 45)).convert(mode)
    data = encoded(image, "TIFF")
    processing = ImageProcessing()
    with Image.open(io.BytesIO(data)) as opened:
        theirs = reference(hf_processor(pad=True), opened)
    assert_close_in_pixels(processing(decode_image(data)), theirs, processing)


@pytest.mark.parametrize("size", [(200, 900), (900, 200), (1, 3000), (3000, 1)])
@pytest.mark.parametrize("pad", [True, False])
def test_long_images_take_little_memory_and_look_the_same(size, pad, monkeypatch):
    yy, xx = np.mgrid[: size[0], : size[1]]
    image = np.stack([yy % 256, xx % 256, (xx + yy) // 2 % 256], -1).astype(np.uint8)
    processing, limit = ImageProcessing(size=28, pad_to_square=pad), 200_000 if pad else 3_000
    expected = processing(image)

    monkeypatch.setattr(preprocess, "_DIRECT_PIXELS", limit)
    made = []
    new, resize = Image.new, Image.Image.resize
    # Only canvases are given a colour; Pillow calls `new` itself for the input.
    monkeypatch.setattr(Image, "new", lambda *args: made.extend(args[1:-1]) or new(*args))
    monkeypatch.setattr(
        Image.Image, "resize", lambda *args, **kw: made.append(args[1]) or resize(*args, **kw)
    )
    difference = np.abs(processing(image) - expected) * np.float32(processing.std)
    assert difference.mean() <= 1 / 255
    assert difference.max() <= 4 / 255
    assert 0 < max(width * height for width, height in made) <= limit


def test_endless_images_are_refused():
    image = np.zeros((1, 200_000, 3), np.uint8)
    with pytest.raises(ExampleError, match="200000 pixels") as info:
        ImageProcessing()(image)
    assert info.value.reason == "image too elongated"
    assert ImageProcessing(pad_to_square=False)(image).shape == (336, 336, 3)


def test_padding_is_centred_and_has_the_mean_colour():
    processing = ImageProcessing(size=30)
    picture = processing.denormalise(processing(np.full((10, 30, 3), 255, np.uint8)))
    assert processing.pad_colour == tuple(int(255 * value) for value in CLIP_MEAN)
    assert (picture[:8] == processing.pad_colour).all()
    assert (picture[22:] == processing.pad_colour).all()
    assert (picture[13:17] == 255).all()


def test_denormalise_inverts_and_clips():
    processing, image = ImageProcessing(size=24), noise(24, 24)
    np.testing.assert_array_equal(processing.denormalise(processing(image)), image)
    extremes = processing.denormalise(np.float32([[[-9, 9, 0]]]))
    assert extremes.tolist() == [[[0, 255, round(255 * CLIP_MEAN[2])]]]


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((4, 4, 3), np.float32),
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
    ],
)
def test_wrong_arrays_are_refused(image):
    with pytest.raises(DataError):
        ImageProcessing()(image)


def test_wrong_settings_are_refused():
    for settings in ({"size": 0}, {"shortest_edge": 300}, {"std": (0.2, 0.0, 0.2)}):
        with pytest.raises(DataError, match=next(iter(settings))):
            ImageProcessing(**settings)


# --- processor files


def test_reads_what_transformers_writes(tmp_path):
    image = noise(50, 80)
    tokenizer = word_tokenizer(["a"])
    for number, processor in enumerate(
        [
            hf_processor(pad=True, size=28),
            hf_processor(pad=False, size=28, edge=32, resample=2),
            hf_processor(pad=False, size=28, do_normalize=False),
            CLIPImageProcessorPil(size={"height": 28, "width": 28}, do_center_crop=False),
            LlavaImageProcessorPil(size=28, do_pad=True, do_center_crop=False),
        ]
    ):
        alone, nested = tmp_path / f"{number}" / "alone", tmp_path / f"{number}" / "nested"
        processor.save_pretrained(alone)
        assert (alone / "preprocessor_config.json").exists()
        LlavaProcessor(processor, tokenizer, patch_size=14).save_pretrained(nested)
        assert not (nested / "preprocessor_config.json").exists()
        for directory in (alone, nested):
            processing = ImageProcessing.from_processor_config(directory)
            assert_close_in_pixels(processing(image), reference(processor, image), processing)


def write(directory: Path, name: str, config) -> None:
    (directory / name).write_text(config if isinstance(config, str) else json.dumps(config))


OLD = {
    "crop_size": 336,
    "do_center_crop": True,
    "do_normalize": True,
    "do_resize": True,
    "feature_extractor_type": "CLIPFeatureExtractor",
    "image_mean": list(CLIP_MEAN),
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "resample": 3,
    "size": 336,
}


def test_reads_the_oldest_layout_and_lets_the_caller_pad(tmp_path):
    write(tmp_path, "preprocessor_config.json", OLD)
    write(tmp_path, "processor_config.json", {"processor_class": "LlavaProcessor"})
    assert ImageProcessing.from_processor_config(tmp_path) == ImageProcessing(pad_to_square=False)
    assert ImageProcessing.from_processor_config(tmp_path, pad_to_square=True) == ImageProcessing()


def test_nested_file_wins_as_in_transformers(tmp_path):
    write(tmp_path, "preprocessor_config.json", OLD)
    nested = {**OLD, "size": 28, "crop_size": 28}
    write(tmp_path, "processor_config.json", {"image_processor": nested})
    assert ImageProcessing.from_processor_config(tmp_path).size == 28


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("image_processor_type", "SiglipImageProcessor"),
        ("do_resize", False),
        ("do_rescale", False),
        ("do_rescale", "yes"),
        ("rescale_factor", 1.0),
        ("do_pad", True),
        ("do_center_crop", False),
        ("size", None),
        ("size", 0),
        ("size", True),
        ("size", {"height": 336, "width": 224}),
        ("size", {"shortest_edge": 336, "longest_edge": 400}),
        ("size", {"shortest_edge": 224}),
        ("crop_size", {"height": 336}),
        ("crop_size", "big"),
        ("resample", 17),
        ("resample", "bicubic"),
        ("image_mean", [0.5, 0.5]),
        ("image_mean", 0.5),
        ("image_std", [0.5, 0.5, 0]),
        ("image_std", ["a", "b", "c"]),
    ],
)
def test_unsupported_fields_are_named(field, value, tmp_path):
    write(tmp_path, "preprocessor_config.json", {**OLD, field: value})
    # An edge shorter than the crop is reported under the crop's name.
    named = "crop_size" if value == {"shortest_edge": 224} else field
    with pytest.raises(DataError, match=rf"preprocessor_config\.json: {named} is "):
        ImageProcessing.from_processor_config(tmp_path)


def test_missing_and_broken_files_are_named(tmp_path):
    with pytest.raises(DataError, match=r"preprocessor_config\.json: no such file"):
        ImageProcessing.from_processor_config(tmp_path)
    for content in ("{", "[]", "3"):
        write(tmp_path, "preprocessor_config.json", content)
        with pytest.raises(DataError, match=r"preprocessor_config\.json: "):
            ImageProcessing.from_processor_config(tmp_path)
