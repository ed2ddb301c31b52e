"""Sizes of images without decoding them: those that decoding gives, or the same error."""

from __future__ import annotations

import json

import numpy as np
import pytest
from helpers_formats import pair_sources, prompt_sources
from PIL import Image
from test_images import encoded, noise, png_header

from seva_jax.config.experiment import Evaluation
from seva_jax.corrupt import Compose, Pad, RandomResizedCrop
from seva_jax.corrupt.base import snapped_size
from seva_jax.data import (
    AnsweredPrompts,
    ChangedImages,
    Composed,
    Concatenated,
    ImageFolder,
    MapFolder,
    Mixture,
    NoisedRegions,
    QuestionsJsonl,
    TrlPairs,
)
from seva_jax.data.sources import PromptSet
from seva_jax.evals import ExactAnswer
from seva_jax.evals.suite import Benchmark
from seva_jax.images.folder import ImageFiles
from seva_jax.images.load import decode_image, image_size
from seva_jax.types import DataError, ExampleError, Prompt
from seva_jax.worlds import WorldPrompts

FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM", "JPEG2000", "AVIF")
MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "I;16", "I", "F")


def test_sizes_of_every_format_and_mode():
    kinds = set()
    for format_ in FORMATS:
        for mode in MODES:
            image = Image.fromarray(noise(31, 45))
            try:
                data = encoded(image.convert("I" if mode == "I;16" else mode), format_)
            except (OSError, ValueError, KeyError):
                continue  # this format has no such mode
            assert image_size(data) == decode_image(data).shape[:2] == (31, 45)
            kinds.add((format_, mode))
    assert {format_ for format_, _ in kinds} == set(FORMATS)
    assert len(kinds) > 25


@pytest.mark.parametrize("orientation", range(9))
@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_rotated_images_have_the_size_that_they_are_decoded_with(format_, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(noise(31, 45)), format_, exif=exif)
    assert image_size(data) == decode_image(data).shape[:2]


@pytest.mark.parametrize("format_", ["GIF", "PNG", "WEBP", "TIFF", "AVIF"])
def test_animations_have_the_size_of_their_first_frame(format_):
    frames = [Image.fromarray(noise(31, 45, seed=seed)) for seed in range(3)]
    data = encoded(frames[0], format_, save_all=True, append_images=frames[1:])
    assert image_size(data) == decode_image(data).shape[:2] == (31, 45)


@pytest.mark.parametrize("data", [b"", b"<html>", b"\xff\xd8\xff", png_header(60_000, 60_000)])
def test_bad_images_raise_the_error_of_decoding(data, tmp_path):
    (tmp_path / "a.png").write_bytes(data)
    for source in (data, tmp_path / "a.png", tmp_path / "none.png"):
        errors = []
        for read in (image_size, decode_image):
            with pytest.raises(ExampleError) as caught:
                read(source, name="a")
            errors.append((str(caught.value), caught.value.reason))
        assert errors[0] == errors[1]


def test_only_the_beginning_of_a_file_is_read(tmp_path, monkeypatch):
    data = encoded(Image.fromarray(noise(1500, 2000)), "JPEG")
    path = tmp_path / "a.jpg"
    path.write_bytes(data[:1000])
    assert image_size(path) == (1500, 2000)
    with pytest.raises(ExampleError, match="not a readable"):
        decode_image(path)

    path.write_bytes(data)
    monkeypatch.setattr(ImageFiles, "read", None)
    monkeypatch.setattr(Image.Image, "load", None)
    assert ImageFiles(tmp_path).size("a.jpg") == (1500, 2000)
    assert ImageFiles(tmp_path).size("a.png") == (1500, 2000)  # found under its own extension


def names_of(data: PromptSet) -> set[str]:
    examples = getattr(data, "comparisons", None) or data.prompts
    return {name for example in examples for name in example.images}


def assert_sizes(data: PromptSet) -> set[tuple[int, int]]:
    """Asserts that sizes are those of decoded images, and returns them."""
    sizes = {name: data.image_size(name) for name in names_of(data)}
    assert sizes
    for name, size in sizes.items():
        assert size == data.load_image(name).shape[:2]
        assert all(type(x) is int for x in size)
    return set(sizes.values())


def test_every_source_knows_sizes_without_decoding(tmp_path, tiny_pictures, monkeypatch):
    sources = [*pair_sources(tmp_path), *prompt_sources(tmp_path, str(tiny_pictures))]
    opened = [source.open() for source in sources]
    for data in opened:
        assert assert_sizes(data) == {(32, 32)}
    monkeypatch.setattr(Image.Image, "load", None)
    for data in opened:
        for name in names_of(data):
            assert data.image_size(name) == (32, 32)
        errors = []
        for read in (data.image_size, data.load_image):
            with pytest.raises(DataError) as caught:
                read("missing")
            errors.append(str(caught.value))
        assert errors[0] == errors[1]


SHAPES = ((20, 30), (40, 10), (7, 7), (300, 5))


@pytest.fixture
def root(tmp_path):
    """Returns a folder of images of different sizes, and of a map for each."""
    for number, shape in enumerate(SHAPES):
        for folder, format_ in (("images", "PNG"), ("maps", "PNG")):
            (tmp_path / folder).mkdir(exist_ok=True)
            image = Image.fromarray(noise(*shape, seed=number))
            (tmp_path / folder / f"{number}.png").write_bytes(encoded(image, format_))
    return tmp_path


def pairs(root) -> TrlPairs:
    records = [
        {"images": [f"{i}.png"], "prompt": "Q?", "chosen": "yes", "rejected": "no"}
        for i in range(len(SHAPES))
    ]
    path = root / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, records)))
    return TrlPairs(str(path), str(root / "images"))


def questions(root) -> QuestionsJsonl:
    records = [
        {"id": str(i), "image": f"{i}.png", "question": "Q?", "answer": "yes"}
        for i in range(len(SHAPES))
    ]
    path = root / "questions.jsonl"
    path.write_text("\n".join(map(json.dumps, records)))
    return QuestionsJsonl(str(path), str(root / "images"))


def answered(root) -> AnsweredPrompts:
    return AnsweredPrompts(questions(root))


class _Folder(Benchmark):
    """A benchmark with the images of a folder."""

    def open(self):
        prompts = [Prompt(str(i), "Q?", (f"{i}.png",)) for i in range(len(SHAPES))]
        return self.questions(prompts, ExactAnswer(), [])


def test_sources_that_change_others_know_the_sizes_of_changed_images(root):
    regions = NoisedRegions(pairs(root), MapFolder(str(root / "maps")))
    crop = Compose((RandomResizedCrop(size=40), Pad(padding=3)))
    images = str(root / "images")
    for source, expected in (
        (pairs(root), set(SHAPES)),
        (answered(root), set(SHAPES)),
        (regions, set(SHAPES)),
        (Concatenated((pairs(root), Mixture((regions, answered(root)), (1, 1)))), set(SHAPES)),
        (ImageFolder(images, questions=("Q?",)), set(SHAPES)),
        (ChangedImages(pairs(root)), {*SHAPES, *(snapped_size(*shape) for shape in SHAPES)}),
        (ChangedImages(pairs(root), crop), {*SHAPES, (46, 46)}),
        (Evaluation(prompts=questions(root)), set(SHAPES)),
        (_Folder(name="b", image_root=images), set(SHAPES)),
        (WorldPrompts(num=3), {(32, 32)}),
    ):
        assert assert_sizes(source.open()) == expected


def test_sizes_of_composed_images(root):
    composed = Composed(questions(root), sequence_sizes=(2,), grid_sizes=(2, 3), tile=24)
    data = composed.open()
    sizes = assert_sizes(data)
    assert {prompt.meta["arrangement"] for prompt in data.prompts} == {"sequence", "grid", "inset"}
    assert sizes & {(24, 48), (24, 72)}
    assert sizes & set(SHAPES)
    assert (24, 24) in sizes


def test_sets_without_sizes_decode():
    data = PromptSet([], lambda name: np.zeros((5, 4, 3), np.uint8))
    assert data.image_size("any") == (5, 4)
