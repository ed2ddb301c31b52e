"""Finds image files and decodes them, however broken or hostile a data set is.

What lives here: path resolution inside a root folder, the only rule for which image files may be
read, decoding to uint8 RGB, and sizes without decoding. What does not: image folders in object
stores (`folder.py`); padding, resizing and normalising (`preprocess.py`). Read next:
`preprocess.py`.
"""

from __future__ import annotations

import dataclasses
import io
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePath
from typing import IO, TypeVar, cast

import numpy as np
from PIL import Image

from seva_jax.runtime.stores import StorePath, as_path, is_remote
from seva_jax.types import DataError, ExampleError, Size

_Result = TypeVar("_Result")

# Raster formats with decoders inside Pillow. Others are refused: some start programs (EPS runs
# Ghostscript), and some accept any bytes (TGA has no signature).
_FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM", "JPEG2000", "AVIF")
IMAGE_EXTENSIONS = tuple(
    f".{x}"
    for x in ("jpg", "jpeg", "png", "gif", "bmp", "webp", "tif", "tiff", "ppm", "avif", "jp2")
)
_STRIP_PIXELS = 2**18
_ADDRESS = re.compile(r" <\S+ object at 0x[0-9a-f]+>")
MAX_PIXELS = 30_000_000


def decode_image(
    data: bytes | str | Path, *, max_pixels: int = MAX_PIXELS, name: str | None = None
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
    return _use(data, max_pixels, name, _to_rgb)


def image_size(
    data: bytes | str | Path, *, max_pixels: int = MAX_PIXELS, name: str | None = None
) -> Size:
    """Returns the height and width of what `decode_image` returns, without decoding it.

    Only the first bytes of a file on a disk are read, for most formats. Damage after them is not
    noticed.

    Args:
        data: see `decode_image`.
        max_pixels: see `decode_image`.
        name: see `decode_image`.

    Raises:
        ExampleError: see `decode_image`.
    """
    return _use(data, max_pixels, name, lambda image: (image.height, image.width))


def _use(
    data: bytes | str | Path,
    max_pixels: int,
    name: str | None,
    use: Callable[[Image.Image], _Result],
) -> _Result:
    """Opens an image, and returns what a function makes of it."""
    if isinstance(data, bytes):
        name = name or f"<{len(data)} bytes>"
        return _open(io.BytesIO(data), max_pixels, name, use)
    name, path = name or str(data), as_path(data)
    try:
        # Closed below, where other errors are meant. An object is read whole, here, because an
        # error of its store is not one of the image.
        file = io.BytesIO(path.read_bytes()) if is_remote(path) else path.open("rb")
    except FileNotFoundError as error:
        raise ExampleError(f"{name}: no such image; check the path", "missing image") from error
    except (OSError, ValueError) as error:
        raise _unreadable(name, error) from error
    with file:
        return _open(file, max_pixels, name, use)


def as_rgb(image: str | os.PathLike[str] | Image.Image | np.ndarray) -> np.ndarray:
    """Returns an image of a caller, in any of the usual forms, as `decode_image` returns a file.

    Args:
        image: path of a file on a disk or in a bucket; a PIL image; or uint8 [H, W, 3], RGB.
            Grey [H, W] and RGBA [H, W, 4] are converted.

    Raises:
        ExampleError: see `decode_image`.
        DataError: it is something else.
    """
    if isinstance(image, str | os.PathLike):
        return decode_image(as_path(image).expanduser(), name=str(image))
    if isinstance(image, Image.Image):
        return _to_rgb(image.copy())
    kind = f"{type(image).__name__}"
    if isinstance(image, np.ndarray):
        if image.dtype == np.uint8 and image.size:
            if image.ndim == 2:
                return np.repeat(image[..., None], 3, axis=-1)
            if image.ndim == 3 and image.shape[-1] in (3, 4):
                return image[..., :3]
        kind = f"an array {image.dtype}{list(image.shape)}"
    raise DataError(
        f"the image is {kind}; give a path, a PIL image, or an array of uint8 [height, width, 3]"
    )


def _open(
    file: IO[bytes], max_pixels: int, name: str, use: Callable[[Image.Image], _Result]
) -> _Result:
    Image.init()
    formats = [format_ for format_ in _FORMATS if format_ in Image.OPEN]
    try:
        with Image.open(file, formats=formats) as image:
            if image.width * image.height <= max_pixels:
                return use(image)
            size = f"{image.width} x {image.height}"
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        size = f"over {Image.MAX_IMAGE_PIXELS:,}"
    # On damaged files Pillow's decoders raise nearly any exception (OSError, SyntaxError,
    # struct.error, IndexError, ...), and all mean the same.
    except Exception as error:
        raise _unreadable(name, error) from error
    raise ExampleError(
        f"{name}: the image is too large ({size}, limit {max_pixels:,} pixels); shrink it",
        "image too large",
    )


def _unreadable(name: str, error: Exception) -> ExampleError:
    # Pillow names the object that it reads from, with an address that means nothing to users.
    reason = _ADDRESS.sub("", str(error))
    return ExampleError(
        f"{name}: not a readable image ({type(error).__name__}: {reason}); it may be cut short, or "
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
    return _pixels(image if image.mode == "RGB" else image.convert("RGB"))


def _pixels(image: Image.Image) -> np.ndarray:
    """Copies an RGB image in strips, because Pillow would hold two more copies of what it copies.

    For 12 megapixels this takes 13 ms instead of 41.
    """
    pixels_HWC = np.empty((image.height, image.width, 3), np.uint8)
    rows = max(_STRIP_PIXELS // image.width, 1)
    for top in range(0, image.height, rows):
        bottom = min(top + rows, image.height)
        pixels_HWC[top:bottom] = np.asarray(image.crop((0, top, image.width, bottom)))
    return pixels_HWC


def _grey(values_HW: np.ndarray, top: float) -> np.ndarray:
    """Scales 0..top to 0..255; values below 0 become black."""
    scaled_HW = np.rint(np.clip(values_HW.astype(np.float64), 0, top) * (255 / top))
    return np.repeat(scaled_HW.astype(np.uint8)[..., None], 3, axis=-1)


@dataclasses.dataclass(frozen=True)
class FollowsLinks:
    """The field of configs that read image files: where symbolic links may lead.

    Attributes:
        link_roots: folders outside of the image folder whose files may be read through symbolic
            links in it, such as ("/mnt/coco",), or the folder `blobs` of a data set in the Hub's
            cache. Images behind other links that lead out are left out and counted.
    """

    link_roots: tuple[str, ...] = dataclasses.field(default=(), kw_only=True)


def require_link_roots(link_roots: Sequence[str]) -> None:
    """Raises `DataError` unless every root that links may lead to is a folder."""
    for root in link_roots:
        if not root or not Path(root).is_dir():
            raise DataError(f"link_roots: {root!r} is not a folder; give the folder links lead to")


def resolve_image(root: Path, name: str, link_roots: Sequence[str] = ()) -> Path:
    """Finds an image inside a local folder by a name that need not be trusted.

    If no file has the exact name, one in the same folder that differs in the extension is taken:
    another extension, an added or a removed one. OCR-VQA has 901 GIFs among its JPEGs, and SeVa
    appends ".jpg" to every name.

    Args:
        root: the image folder. It may itself be a symbolic link.
        name: path relative to `root`.
        link_roots: folders outside of `root` that symbolic links below it may lead to.

    Returns:
        The path of an existing file below the resolved `root`; links below it are not resolved, so
        that the extension stays (the Hub's cache links to files without one).

    Raises:
        ExampleError: "unsafe image path" if the name leads outside `root` (absolute, "..", NUL,
            symbolic link), "missing image" if no such file exists.
    """
    parts = inside(root, name)
    top = Path(root).resolve()
    for candidate in spellings(parts):
        path = top / candidate
        try:
            if not _may_read(path.resolve(), top, link_roots):
                raise _leads_out(root, name, candidate, link_roots)
            if path.is_file():
                return path
        # Loops of links, names that are too long, characters that the file system refuses.
        except (OSError, RuntimeError, UnicodeError):
            continue
    raise no_such_image(root, name)


def files_of(root: Path, name: str, link_roots: Sequence[str] = ()) -> list[str]:
    """Returns the names of the files of a folder inside a local folder; empty if there is none.

    Args:
        root: the image folder.
        name: of the folder, relative to `root`; it need not be trusted.
        link_roots: see `resolve_image`.

    Raises:
        ExampleError: "unsafe image path", see `resolve_image`; or the folder cannot be read.
    """
    parts, top = inside(root, name), Path(root).resolve()
    try:
        if not _may_read((top / parts).resolve(), top, link_roots):
            raise _leads_out(root, name, parts, link_roots)
        if not (top / parts).is_dir():
            return []
        return [path.name for path in (top / parts).iterdir()]
    except (OSError, RuntimeError, UnicodeError) as error:
        raise ExampleError(
            f"{_shown(name)}: cannot be read ({error})", "unreadable image"
        ) from error


def inside(root: Path, name: str) -> PurePath:
    """Returns the name of an image as a path that does not lead out of its folder.

    Raises:
        ExampleError: "unsafe image path": it does.
    """
    parts = PurePath(name)
    if parts.is_absolute() or ".." in parts.parts or "\0" in name:
        raise ExampleError(
            f"{_shown(name)}: image names must stay inside {root}: no absolute path, '..' or NUL; "
            "fix the data file, or point the image folder higher",
            "unsafe image path",
        )
    return parts


def no_such_image(root: Path, name: str) -> ExampleError:
    """Returns the error for an image that is not there."""
    return ExampleError(
        f"{_shown(name)}: no such image in {root}, under any extension; check the image folder",
        "missing image",
    )


def image_names(root: Path, link_roots: Sequence[str] = ()) -> list[str]:
    """Returns the names of all image files below a local folder, sorted.

    Links to folders inside `link_roots` are followed. Links to other folders outside of `root` are
    returned like images: `resolve_image` refuses them with the reason.

    Raises:
        DataError: a folder cannot be read.
    """
    top = Path(root).resolve()
    files = files_below(top, lambda target: _may_read(target, top, link_roots))
    images = (path for path in files if path.is_dir() or path.suffix.lower() in IMAGE_EXTENSIONS)
    return sorted(path.relative_to(top).as_posix() for path in images)


def files_below(folder: Path, follow: Callable[[Path], bool]) -> Iterator[Path]:
    """Yields the files below a folder, each folder once however many links lead to it.

    Args:
        folder: the folder.
        follow: whether to follow a symbolic link to a folder, given the resolved path of that
            folder. If not, the link itself is yielded.

    Raises:
        DataError: a folder cannot be read.
    """
    if is_remote(folder):
        yield from (folder / name for name in cast(StorePath, folder).below())
        return
    seen, folders, links = set[Path](), [folder], list[Path]()
    while folders or links:
        here = folders.pop() if folders else links.pop(0)  # no link stands in for a real folder
        if here.resolve() in seen:
            continue
        seen.add(here.resolve())
        try:
            entries = sorted(here.iterdir())
        except OSError as error:
            raise DataError(f"{here}: cannot be read ({error}); check its permissions") from error
        for path in entries:
            if not path.is_dir():
                yield path
            elif not path.is_symlink():
                folders.append(path)
            elif follow(path.resolve()):
                links.append(path)
            else:
                yield path


def _shown(name: str) -> str:
    """Returns a name for messages; some data has whole images in place of names."""
    return repr(name) if len(name) <= 300 else f"{name[:100]!r}... ({len(name):,} characters)"


def _may_read(target: Path, top: Path, link_roots: Sequence[str]) -> bool:
    """Returns whether a resolved path is in the image folder or where its links may lead."""
    return any(target.is_relative_to(a) for a in (top, *(Path(x).resolve() for x in link_roots)))


def _leads_out(
    root: Path, name: str, candidate: PurePath, link_roots: Sequence[str]
) -> ExampleError:
    """Returns the error for a name behind a link that must not be followed; it names the link."""
    top = link = Path(root).resolve()
    for part in candidate.parts:
        link /= part
        if link.is_symlink() and not _may_read(link.resolve(), top, link_roots):
            break
    target = link.resolve()
    allowed = (*link_roots, str(target if target.is_dir() else target.parent))
    return ExampleError(
        f"{_shown(name)}: image names must stay inside {root}, but {link.relative_to(top)} is a "
        f"symbolic link to {target}; if files there may be read, set link_roots={allowed}",
        "unsafe image path",
    )


def spellings(name: PurePath) -> Iterator[PurePath]:
    """Yields the name itself, then its variants with other extensions, in a fixed order."""
    if not name.name:
        return
    yield name
    stem = name.with_suffix("") if name.suffix.lower() in IMAGE_EXTENSIONS else name
    extensions = (*IMAGE_EXTENSIONS, *(extension.upper() for extension in IMAGE_EXTENSIONS))
    yield from (stem.with_name(stem.name + extension) for extension in extensions)
    yield stem
