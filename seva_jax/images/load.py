"""Finds image files and decodes them, however broken or hostile a data set is.

What lives here: path resolution inside a root folder, and decoding to uint8 RGB. What does not:
padding, resizing and normalising (`preprocess.py`). Read next: `preprocess.py`.
"""

from __future__ import annotations

import io
from pathlib import Path, PurePath
from typing import IO

import numpy as np
from PIL import Image

from seva_jax.types import ExampleError

# Raster formats with decoders inside Pillow. Others are refused: some start programs (EPS runs
# Ghostscript), and some accept any bytes (TGA has no signature).
_FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM", "JPEG2000", "AVIF")
IMAGE_EXTENSIONS = tuple(
    f".{x}"
    for x in ("jpg", "jpeg", "png", "gif", "bmp", "webp", "tif", "tiff", "ppm", "avif", "jp2")
)


def decode_image(
    data: bytes | str | Path, *, max_pixels: int = 30_000_000, name: str | None = None
) -> np.ndarray:
    """Decodes an image by its content; the extension of a file does not matter.

    Transparency is dropped, not blended (as by `Image.convert("RGB")`), and EXIF rotation is
    ignored, both as in LLaVA. The first of several frames is used. 16-bit grey is scaled to 8
    bits. Modes without a declared range ("I", "F") get the first of the ranges 0-1 ("F" only),
    0-255 and 0-65535 that contains their largest value; if none does, 0 to that value.

    Args:
        data: the encoded bytes, or the path of a file.
        max_pixels: larger images are refused before their pixels are decoded.
        name: name of the image in error messages; by default the path.

    Returns:
        uint8 [H, W, 3], RGB.

    Raises:
        ExampleError: "missing image", "unreadable image" or "image too large".
    """
    if isinstance(data, bytes):
        name = name or f"<{len(data)} bytes>"
        return _decode(io.BytesIO(data), max_pixels, name)
    name = name or str(data)
    try:
        file = Path(data).open("rb")  # noqa: SIM115 - closed below, where other errors are meant
    except FileNotFoundError as error:
        raise ExampleError(f"{name}: no such image; check the path", "missing image") from error
    except (OSError, ValueError) as error:
        raise _unreadable(name, error) from error
    with file:
        return _decode(file, max_pixels, name)


def _decode(file: IO[bytes], max_pixels: int, name: str) -> np.ndarray:
    Image.init()
    formats = [format_ for format_ in _FORMATS if format_ in Image.OPEN]
    try:
        with Image.open(file, formats=formats) as image:
            if image.width * image.height <= max_pixels:
                return _to_rgb(image)
            size = f"{image.width} x {image.height}"
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        size = f"over {Image.MAX_IMAGE_PIXELS} pixels"
    # On damaged files Pillow's decoders raise nearly any exception (OSError, SyntaxError,
    # struct.error, IndexError, ...), and all mean the same.
    except Exception as error:
        raise _unreadable(name, error) from error
    raise ExampleError(
        f"{name}: the image is too large ({size}, limit {max_pixels} pixels); shrink it or raise "
        "max_pixels",
        "image too large",
    )


def _unreadable(name: str, error: Exception) -> ExampleError:
    return ExampleError(
        f"{name}: not a readable image ({type(error).__name__}: {error}); it may be cut short, or "
        "an error page saved under the name of an image; fetch it again or drop it",
        "unreadable image",
    )


def _to_rgb(image: Image.Image) -> np.ndarray:
    """Converts any mode to uint8 RGB [H, W, 3]."""
    image.load()
    if image.mode.startswith("I;16"):
        return _grey(np.asarray(image), 65535)
    if image.mode in ("I", "F"):
        values = np.asarray(image, np.float64)
        largest = values[np.isfinite(values)].max(initial=0)
        values = np.nan_to_num(values, nan=0, posinf=largest, neginf=0)
        ranges = (1, 255, 65535) if image.mode == "F" else (255, 65535)
        return _grey(values, next((top for top in ranges if largest <= top), largest))
    # Pillow would warn that a palette's transparency is dropped; that is intended.
    image.info.pop("transparency", None)
    return np.asarray(image.convert("RGB"))


def _grey(values_HW: np.ndarray, top: float) -> np.ndarray:
    """Scales 0..top to 0..255; values below 0 become black."""
    scaled_HW = np.rint(np.clip(values_HW.astype(np.float64), 0, top) * (255 / top))
    return np.repeat(scaled_HW.astype(np.uint8)[..., None], 3, axis=-1)


def resolve_image(root: Path, name: str) -> Path:
    """Finds an image inside a folder by a name that need not be trusted.

    If no file has the exact name, one in the same folder that differs in the extension is taken:
    another extension, an added or a removed one. OCR-VQA has 901 GIFs among its JPEGs, and SeVa
    appends ".jpg" to every name.

    Args:
        root: the image folder. It may itself be a symbolic link.
        name: path relative to `root`.

    Returns:
        The resolved path of an existing file inside `root`.

    Raises:
        ExampleError: "unsafe image path" if the name leads outside `root` (absolute, "..", NUL,
            symbolic link), "missing image" if no such file exists.
    """
    parts = PurePath(name)
    if parts.is_absolute() or ".." in parts.parts or "\0" in name:
        raise _unsafe(root, name)
    top = Path(root).resolve()
    for candidate in _spellings(parts):
        try:
            path = (top / candidate).resolve()
            if not path.is_relative_to(top):
                raise _unsafe(root, name)
            if path.is_file():
                return path
        # Loops of links, names that are too long, characters that the file system refuses.
        except (OSError, RuntimeError, UnicodeError):
            continue
    raise ExampleError(
        f"{name!r}: no such image in {root}, under any extension; check the image folder",
        "missing image",
    )


def _unsafe(root: Path, name: str) -> ExampleError:
    return ExampleError(
        f"{name!r}: image names must stay inside {root}: no absolute path, '..', NUL or symbolic "
        "link to elsewhere; fix the data file, or point the image folder higher",
        "unsafe image path",
    )


def _spellings(name: PurePath) -> list[PurePath]:
    """Returns the name itself, then its variants with other extensions, in a fixed order."""
    if not name.name:
        return []
    stem = name.with_suffix("") if name.suffix.lower() in IMAGE_EXTENSIONS else name
    extensions = (*IMAGE_EXTENSIONS, *(extension.upper() for extension in IMAGE_EXTENSIONS))
    return [name, *(stem.with_name(stem.name + extension) for extension in extensions), stem]
