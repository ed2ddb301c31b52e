"""Image files in a folder, on a disk or in an object store.

What lives here: finding, reading and measuring an image by its name, and listing all of them. What
does not: the rule for files on a disk, and decoding (`load.py`).
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, cast

from typing_extensions import override

from seva_jax.images.load import (
    IMAGE_EXTENSIONS,
    files_of,
    image_names,
    image_size,
    inside,
    no_such_image,
    resolve_image,
    spellings,
)
from seva_jax.runtime.stores import StorePath, is_remote
from seva_jax.types import ExampleError, Size

_MOST_LISTINGS = 16


class ImageFiles:
    """The image files in a folder, by names that need not be trusted.

    In a store, the folder of an image is listed once, with all that is below it, instead of asking
    for every image: the names of data are compared with the listing and never sent to the store.
    After 16 folders, the whole image folder is listed. Listings travel with a pickled object.

    Args:
        root: the image folder.
        link_roots: see `FollowsLinks`; a store has no links.
    """

    def __init__(self, root: Path, link_roots: Sequence[str] = ()) -> None:
        self._root, self._link_roots = root, tuple(link_roots)
        self._listed, self._names = set[str](), set[str]()
        self._checked = set[str]()
        self._lock = threading.Lock()

    @override
    def __getstate__(self) -> dict[str, Any]:
        with self._lock:
            names = {"_listed": self._listed.copy(), "_names": self._names.copy()}
        names["_checked"] = set()
        return {name: value for name, value in self.__dict__.items() if name != "_lock"} | names

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())

    @property
    def remote(self) -> bool:
        """Whether the folder is in an object store."""
        return is_remote(self._root)

    def check(self, name: str) -> None:
        """Raises the error of `path` for an image that is not there; looks once for each name."""
        if name not in self._checked:
            self.path(name)
            self._checked.add(name)

    def find(self, name: str) -> str:
        """Returns the name of the file, relative to the folder, that the name of an image means.

        Raises:
            ExampleError: see `resolve_image`.
            StoreError: the store does not answer.
        """
        if not self.remote:
            return self.path(name).relative_to(self._root.resolve()).as_posix()
        for spelling in spellings(inside(self._root, name)):
            candidate = spelling.as_posix()
            self._list(candidate.rpartition("/")[0])
            if candidate in self._names:
                return candidate
        raise no_such_image(self._root, name)

    def path(self, name: str) -> Path:
        """Returns the path of the file that the name of an image means.

        Raises:
            ExampleError: see `resolve_image`.
            StoreError: the store does not answer.
        """
        if self.remote:
            return self._root / self.find(name)
        return resolve_image(self._root, name, self._link_roots)

    def read(self, name: str) -> bytes:
        """Returns an encoded image.

        Raises:
            ExampleError: see `resolve_image`; or "unreadable image" for a file that cannot be read.
            StoreError: the store does not answer.
        """
        try:
            return self.path(name).read_bytes()
        except OSError as error:
            if self.remote:  # it was removed after it was listed
                raise no_such_image(self._root, name) from error
            raise ExampleError(f"{name}: cannot be read ({error})", "unreadable image") from error

    def size(self, name: str) -> Size:
        """Returns the height and width of a decoded image; see `image_size`.

        Raises:
            ExampleError: see `read` and `image_size`.
            StoreError: the store does not answer.
        """
        return image_size(self.read(name) if self.remote else self.path(name), name=name)

    def frames(self, name: str) -> tuple[str, ...]:
        """Returns the names of the images in a folder of the image folder, in natural order.

        Those in folders of that folder are left out.

        Args:
            name: of the folder, relative to the image folder.

        Raises:
            ExampleError: "unsafe image path" if it leads out of the image folder, "missing image"
                if there is no such folder or no image in it, "unreadable image" if it cannot be
                read.
            StoreError: the store does not answer.
        """
        folder = inside(self._root, name).as_posix()
        if self.remote:
            self._list(folder)
            files = [x for x in self._names if x.rpartition("/")[0] == folder]
        else:
            files = [f"{folder}/{x}" for x in files_of(self._root, name, self._link_roots)]
        images = [x for x in files if PurePosixPath(x).suffix.lower() in IMAGE_EXTENSIONS]
        if not images:
            raise ExampleError(
                f"{name}: no folder of {self._root} with images; check the image folder",
                "missing image",
            )
        return tuple(sorted(images, key=_natural))

    def names(self) -> list[str]:
        """Returns the names of all image files below the folder, sorted.

        Raises:
            DataError: a folder cannot be read.
            StoreError: the store does not answer.
        """
        if not self.remote:
            return image_names(self._root, self._link_roots)
        self._list("")
        return sorted(x for x in self._names if PurePosixPath(x).suffix.lower() in IMAGE_EXTENSIONS)

    def _list(self, folder: str) -> None:
        """Lists a folder and all that is below it, unless this has been done."""
        if not self._listed.isdisjoint(_with_parents(folder)):
            return
        with self._lock:
            if not self._listed.isdisjoint(_with_parents(folder)):
                return
            folder = folder if len(self._listed) < _MOST_LISTINGS else ""
            below = cast(StorePath, self._root / folder if folder else self._root).below()
            prefix = f"{folder}/" if folder else ""
            self._names |= {prefix + name for name in below}
            self._listed.add(folder)


def _natural(name: str) -> tuple[list[str | int], str]:
    """Returns a key that puts frame_2.png before frame_10.png."""
    parts = re.split(r"([0-9]+)", name)
    return [int(x) if i % 2 else x for i, x in enumerate(parts)], name


def _with_parents(folder: str) -> Iterator[str]:
    while folder:
        yield folder
        folder = folder.rpartition("/")[0]
    yield ""
