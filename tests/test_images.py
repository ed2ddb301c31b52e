"""Decoding images of any kind, and finding their files."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from seva_jax.images.load import decode_image, resolve_image
from seva_jax.types import ExampleError


def encoded(image: Image.Image, format_: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format_, **options)
    return buffer.getvalue()


def noise(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)


def png_header(width: int, height: int) -> bytes:
    """Makes a PNG that claims a size and has no usable pixels."""

    def chunk(name: bytes, body: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(name + body))
        return struct.pack(">I", len(body)) + name + body + checksum

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(b"\0" * 1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + pixels + chunk(b"IEND", b"")


# --- decoding


@pytest.mark.parametrize(
    ("mode", "format_"),
    [
        ("1", "PNG"),
        ("L", "PNG"),
        ("LA", "PNG"),
        ("P", "GIF"),
        ("RGB", "PNG"),
        ("RGB", "WEBP"),
        ("RGBA", "PNG"),
        ("CMYK", "TIFF"),
        ("CMYK", "JPEG"),
        ("YCbCr", "JPEG"),
        ("LAB", "TIFF"),
    ],
)
@pytest.mark.parametrize("size", [(1, 1), (7, 5), (1, 9)])
def test_every_mode_decodes_as_pillow_converts_it(mode, format_, size):
    image = Image.fromarray(noise(size[1], size[0])).convert(mode)
    data = encoded(image, format_)
    with Image.open(io.BytesIO(data)) as again:
        expected = np.asarray(again.convert("RGB"))
    decoded = decode_image(data)
    assert decoded.dtype == np.uint8
    assert decoded.shape == (size[1], size[0], 3)
    np.testing.assert_array_equal(decoded, expected)


def test_transparency_is_dropped_not_blended():
    colours = noise(4, 6, 4)
    np.testing.assert_array_equal(decode_image(encoded(Image.fromarray(colours))), colours[..., :3])
    palette = Image.fromarray(colours[..., :3]).quantize(16)
    expected = np.asarray(palette.convert("RGB"))
    for transparency in (bytes(range(16)), 3):
        data = encoded(palette, transparency=transparency)
        np.testing.assert_array_equal(decode_image(data), expected)


def test_sixteen_bits_are_scaled_not_saturated():
    values = np.array([[0, 1, 255, 256], [257, 32768, 65000, 65535]], np.uint16)
    expected = np.rint(values / 257.0).astype(np.uint8)
    for image, format_ in [
        (Image.fromarray(values), "PNG"),
        (Image.fromarray(values), "TIFF"),
        (Image.fromarray(values.astype(np.int32)), "TIFF"),
        (Image.fromarray(values.astype(np.float32)), "TIFF"),
    ]:
        decoded = decode_image(encoded(image, format_))
        for channel in range(3):
            np.testing.assert_array_equal(decoded[..., channel], expected)
    ppm = b"P5 4 2 65535\n" + values.astype(">u2").tobytes()
    np.testing.assert_array_equal(decode_image(ppm)[..., 0], expected)
    big_endian = encoded(Image.fromarray(values.astype(">u2")), "TIFF")
    np.testing.assert_array_equal(decode_image(big_endian)[..., 0], expected)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[-1, 0, 255]], np.int32), [0, 0, 255]),
        (np.array([[0, 1 << 20, 1 << 21]], np.int32), [0, 128, 255]),
        (np.array([[0.0, 0.5, 1.0]], np.float32), [0, 128, 255]),
        (np.array([[0.0, 51.0, 255.0]], np.float32), [0, 51, 255]),
        (np.array([[np.nan, np.inf, 1.0]], np.float32), [0, 255, 255]),
        (np.array([[-np.inf, np.nan, -3.0]], np.float32), [0, 0, 0]),
    ],
)
def test_modes_without_a_declared_range(values, expected):
    decoded = decode_image(encoded(Image.fromarray(values), "TIFF"))
    assert decoded[0, :, 1].tolist() == expected


def test_exif_rotation_is_ignored():
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: rotate by 90 degrees to view
    data = encoded(Image.fromarray(noise(4, 9)), "JPEG", exif=exif)
    assert decode_image(data).shape == (4, 9, 3)


def test_first_frame_counts():
    frames = [Image.fromarray(np.full((3, 3), value, np.uint8)) for value in (10, 200)]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert (decode_image(data) == 10).all()


def test_bytes_and_paths_give_the_same_and_the_extension_means_nothing(tmp_path):
    data = encoded(Image.fromarray(noise(5, 6)), "PNG")
    path = tmp_path / "photo.jpg"
    path.write_bytes(data)
    for source in (path, str(path)):
        np.testing.assert_array_equal(decode_image(source), decode_image(data))


JPEG = encoded(Image.fromarray(noise(64, 64)), "JPEG")
PNG = encoded(Image.fromarray(noise(64, 64)), "PNG")
EPS = encoded(Image.fromarray(noise(4, 4)), "EPS")
TGA = encoded(Image.fromarray(noise(4, 4)), "TGA")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"<!DOCTYPE html><html><body>404</body></html>",
        b"just text",
        JPEG[: len(JPEG) // 2],
        PNG[: len(PNG) // 2],
        PNG[:30],
        b"\0" * 1000,
        EPS,
        TGA,
    ],
    ids=["empty", "html", "text", "cut jpeg", "cut png", "cut header", "zeros", "eps", "tga"],
)
def test_unreadable_files_are_named(data, tmp_path):
    path = tmp_path / "bad.jpg"
    path.write_bytes(data)
    with pytest.raises(ExampleError, match=r"bad\.jpg: not a readable image") as info:
        decode_image(path)
    assert info.value.reason == "unreadable image"
    with pytest.raises(ExampleError, match="row 7: not a readable image"):
        decode_image(data, name="row 7")


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(ExampleError, match=r"gone\.jpg") as info:
        decode_image(tmp_path / "gone.jpg")
    assert info.value.reason == "missing image"
    with pytest.raises(ExampleError) as info:
        decode_image(tmp_path)
    assert info.value.reason == "unreadable image"


@pytest.mark.parametrize("size", [(9000, 9000), (20000, 20000), (2**31 - 1, 2**31 - 1)])
def test_large_images_are_refused_before_decoding(size, monkeypatch):
    monkeypatch.setattr("seva_jax.images.load._to_rgb", lambda image: pytest.fail("decoded"))
    with pytest.raises(ExampleError, match=r"limit 30,000,000 pixels\); shrink it") as info:
        decode_image(png_header(*size))
    assert info.value.reason == "image too large"


def test_max_pixels_counts_pixels():
    data = encoded(Image.fromarray(noise(10, 10)))
    assert decode_image(data, max_pixels=100).shape == (10, 10, 3)
    with pytest.raises(ExampleError, match="10 x 10, limit 99"):
        decode_image(data, max_pixels=99)


def test_damaged_bytes_never_raise_anything_else():
    rng = np.random.default_rng(1)
    small = Image.fromarray(noise(16, 16))
    for format_ in ("JPEG", "PNG", "GIF", "TIFF", "WEBP", "BMP", "PPM", "JPEG2000"):
        good = encoded(small, format_)
        for _ in range(40):
            damaged = bytearray(good[: rng.integers(1, len(good) + 1)])
            for position in rng.integers(0, len(damaged), rng.integers(0, 6)):
                damaged[position] = rng.integers(0, 256)
            try:
                decoded = decode_image(bytes(damaged))
            except ExampleError:
                continue
            assert decoded.dtype == np.uint8
            assert decoded.shape[-1] == 3


# --- finding files


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "images"
    (root / "sub").mkdir(parents=True)
    for name in ("a.jpg", "b.gif", "c.PNG", "d", "sub/e.v2.jpeg", "photo.jpg", "f.gif"):
        (root / name).write_bytes(b"x")
    (tmp_path / "secret.jpg").write_bytes(b"x")
    (root / "inside.jpg").symlink_to(root / "a.jpg")
    (root / "outside.jpg").symlink_to(tmp_path / "secret.jpg")
    (root / "parent").symlink_to(tmp_path)
    (root / "loop.jpg").symlink_to(root / "loop.jpg")
    (root / "dir.jpg").mkdir()
    return root


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("a.jpg", "a.jpg"),
        ("./a.jpg", "a.jpg"),
        ("b.jpg", "b.gif"),
        ("c.jpg", "c.PNG"),
        ("d.jpg", "d"),
        ("d", "d"),
        ("f.gif.jpg", "f.gif"),
        ("a", "a.jpg"),
        ("sub/e.v2.jpg", "sub/e.v2.jpeg"),
        ("sub/e.v2", "sub/e.v2.jpeg"),
        ("inside.jpg", "a.jpg"),
    ],
)
def test_resolve_finds(folder, name, found):
    assert resolve_image(folder, name).resolve() == (folder / found).resolve()


def test_resolve_prefers_the_exact_name(folder):
    (folder / "b.jpg").write_bytes(b"x")
    assert resolve_image(folder, "b.jpg").name == "b.jpg"


def test_root_may_be_a_link(folder, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(folder)
    assert resolve_image(link, "a.jpg") == folder.resolve() / "a.jpg"


@pytest.mark.parametrize(
    "name",
    [
        "/etc/passwd",
        "../secret.jpg",
        "sub/../a.jpg",
        "sub/../../secret.jpg",
        "outside.jpg",
        "outside",
        "parent/secret.jpg",
        "a.jpg\0.png",
        "..",
    ],
)
def test_resolve_refuses_ways_out(folder, name):
    with pytest.raises(ExampleError, match="must stay inside") as info:
        resolve_image(folder, name)
    assert info.value.reason == "unsafe image path"


@pytest.mark.parametrize(
    "name",
    ["", ".", "gone.jpg", "photo.v2", "loop.jpg", "dir.jpg", "a.jpg/x", "x" * 5000, "\ud800.jpg"],
)
def test_resolve_reports_missing(folder, name):
    with pytest.raises(ExampleError, match="no such image") as info:
        resolve_image(folder, name)
    assert info.value.reason == "missing image"


@pytest.mark.parametrize("size", [(700, 801), (2**18 + 5, 3), (3, 2**18 + 5), (512, 1024)])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_large_images_are_copied_in_strips(size, mode):
    """The pixels are those that Pillow gives in one piece."""
    levels = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3)[: 2 + (mode == "RGB")])
    file = io.BytesIO()
    Image.fromarray(levels.astype(np.uint8)).save(file, "PNG", compress_level=0)
    expected = levels if mode == "RGB" else np.repeat(levels[..., None], 3, axis=2)
    np.testing.assert_array_equal(decode_image(file.getvalue()), expected)
