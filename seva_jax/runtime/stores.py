"""Paths in object stores (gs://bucket/name), beside local ones.

What lives here: `as_path`, which every path that a user gives goes through, and `StorePath`. What
does not: copies between disks and stores (`copies.py`), how files of a run are kept in a store
(`files.py`), and arrays, which Orbax and tensorstore read and write themselves.

An object store has no folders, no rename and no append; an object appears whole or not at all. So
a `StorePath` writes whole objects only, and `open` reads only. `store_client.py` has retries,
errors and credentials.
"""

from __future__ import annotations

import contextlib
import errno
import fnmatch
import io
import json
import mimetypes
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

from etils.epath import gpath
from typing_extensions import override

from seva_jax.runtime.range_reader import buffered
from seva_jax.runtime.store_client import StoreError, filesystem, has_project, reason_of
from seva_jax.types import DataError

SCHEMES = ("gs", "s3", "az", "hf")
_CONTENT = "application/octet-stream"


class ObjectStat(NamedTuple):
    """What is known of an object without reading it.

    Attributes:
        st_size: bytes.
        st_mtime: when it was written, in seconds since 1970; 0 if the store does not say.
        digest: checksum that the store computed when the object was written; "" if it has none.
        generation: changes whenever the object is written; "" if the store counts none.
    """

    st_size: int
    st_mtime: float
    digest: str
    generation: str


def as_path(text: str | os.PathLike[str]) -> Path:
    """Returns the path that a user's text means; "gs://bucket/x" is a path in an object store.

    A `StorePath` has the methods of `pathlib.Path`, and is annotated as one everywhere.

    Raises:
        DataError: the text has an unknown scheme, or no bucket.
    """
    if isinstance(text, StorePath):
        return cast(Path, text)
    text = os.fspath(text)
    scheme, separator, rest = text.partition("://")
    if not separator or "/" in scheme:
        return Path(text)
    if scheme not in SCHEMES:
        known = ", ".join(f"{name}://" for name in SCHEMES)
        raise DataError(f"{text}: {scheme}:// is not known; give a local path or one of {known}")
    if not rest.strip("/"):
        raise DataError(f"{text} names no bucket; give {scheme}://BUCKET/PATH")
    return cast(Path, StorePath(text))


def is_remote(path: Path) -> bool:
    """Returns whether a path is in an object store."""
    return isinstance(path, StorePath)


def deepest_first(names: Iterable[str]) -> list[str]:
    """Returns names of files with those in deeper folders first."""
    return sorted(names, key=lambda name: (-name.count("/"), name))


def require_bucket(path: Path) -> None:
    """Checks that the bucket of a path is there and may be used; does nothing for local paths.

    Orbax reads the settings of a bucket, which those who may only read and write objects cannot,
    with a client that wants to know a project.

    Raises:
        StoreError: the bucket is missing, these credentials may not read its settings, or no
            project is known.
    """
    if not str(path).startswith("gs://"):
        return
    remote = cast(StorePath, path)
    if not remote._do(has_project):
        raise StoreError(f"{path}: no project is known; set GOOGLE_CLOUD_PROJECT to your own")
    remote.bucket_settings()


def make_folder(path: Path) -> None:
    """Creates a folder and its parents; a store needs none."""
    path.mkdir(parents=True, exist_ok=True)


def remove(path: Path) -> None:
    """Removes a file or a folder with all its content; does nothing if there is none."""
    if path.is_dir() and not path.is_symlink():
        cast(StorePath, path).rmtree() if is_remote(path) else shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


class StorePath(gpath.PosixGPath):
    """A path in an object store, with the methods of `pathlib.Path` that make sense there.

    A folder exists while there is an object below it.
    """

    @property
    def _fs(self) -> Any:
        return filesystem(str(self).partition("://")[0])

    def _do(self, what: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        try:
            return what(*args, **kwargs)
        except FileNotFoundError:
            raise FileNotFoundError(errno.ENOENT, "no such object or bucket", str(self)) from None
        except FileExistsError:
            raise
        except Exception as error:  # OSError, HttpError, errors of aiohttp, google.auth, requests
            raise StoreError(f"{self}: {reason_of(error, str(self))}") from error

    def _info(self) -> dict[str, Any] | None:
        try:
            return self._do(self._fs.info, str(self))
        except FileNotFoundError:
            return None

    @override
    def exists(self) -> bool:
        return self._info() is not None

    @override
    def is_dir(self) -> bool:
        return (self._info() or {}).get("type") == "directory"

    @override
    def is_file(self) -> bool:
        return (self._info() or {}).get("type") == "file"

    def is_symlink(self) -> bool:
        """Returns False: a store has no links."""
        return False

    @override
    def absolute(self) -> StorePath:
        return self

    @override
    def resolve(self, strict: bool = False) -> StorePath:
        return self

    @override
    def expanduser(self) -> StorePath:
        return self

    @override
    def stat(self) -> Any:
        info = self._info()
        if info is None:
            raise FileNotFoundError(errno.ENOENT, "no such object or bucket", str(self))
        return _stat(info)

    @override
    def iterdir(self) -> Iterator[StorePath]:
        own = str(self).partition("://")[2]
        for info in self._do(self._fs.ls, str(self), detail=True):
            name = info["name"].rstrip("/")
            if name != own:  # not the folder's own marker
                yield self / name.rpartition("/")[2]

    def below(self) -> dict[str, ObjectStat]:
        """Returns all objects below this folder, by name relative to it, from one listing.

        Raises:
            StoreError: there is no such bucket.
        """
        prefix = str(self).partition("://")[2].rstrip("/") + "/"
        with self._into_bucket():
            listed = self._do(self._fs.find, str(self), detail=True)
        return {
            name.removeprefix(prefix): _stat(info)
            for name, info in sorted(listed.items())
            if name.startswith(prefix) and not name.endswith("/")
        }

    def read_below(self, names: Sequence[str]) -> list[bytes]:
        """Returns the content of objects below this folder, read concurrently.

        Raises:
            FileNotFoundError: one is missing.
        """
        # Not `cat`, which takes "[" in a name for the beginning of a pattern.
        urls, every = [f"{self}/{name}" for name in names], [None] * len(names)
        return self._do(self._fs.cat_ranges, urls, every, every, on_error="raise") if urls else []

    @override
    def rglob(self, pattern: str) -> Iterator[StorePath]:
        for name in self.below():
            if fnmatch.fnmatchcase(name.rpartition("/")[2], pattern):
                yield self / name

    @override
    def glob(self, pattern: str) -> Iterator[StorePath]:
        first, _, rest = pattern.partition("/")
        entries = sorted(self.iterdir()) if self.is_dir() else []
        for path in (x for x in entries if fnmatch.fnmatchcase(x.name, first)):
            if rest:
                yield from path.glob(rest)
            else:
                yield path

    @override
    def open(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, mode: str = "r", encoding: str | None = None, newline: str | None = None
    ) -> IO[Any]:
        if mode not in ("r", "rb"):
            raise StoreError(f"{self}: an object is written whole, not opened with mode {mode!r}")
        size = self.stat().st_size
        file = buffered(self.read_range, size)
        return file if mode == "rb" else io.TextIOWrapper(file, encoding or "utf-8", None, newline)

    def read_range(self, start: int, stop: int) -> bytes:
        """Returns the bytes from `start` up to `stop`, or all up to the end if it comes first."""
        return self._do(self._fs.cat_file, str(self), start=start, end=stop)

    @override
    def read_bytes(self) -> bytes:
        return self._do(self._fs.cat_file, str(self))

    @override
    def read_text(self, encoding: str | None = None) -> str:
        return self.read_bytes().decode(encoding or "utf-8")

    @override
    def write_bytes(self, data: bytes) -> int:
        more = {}
        if str(self).startswith("gs://"):  # so that a browser shows a page
            more = {"content_type": mimetypes.guess_type(self.name)[0] or _CONTENT}
        with self._into_bucket():
            self._do(self._fs.pipe_file, str(self), bytes(data), **more)
        return len(data)

    @contextlib.contextmanager
    def _into_bucket(self) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise StoreError(
                f"{self}: there is no bucket {self.parts[2]}; check its name, or make it"
            ) from None

    @override
    def write_text(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, data: str, encoding: str | None = None, newline: str | None = None
    ) -> int:
        return self.write_bytes(data.encode(encoding or "utf-8"))

    def create(self, data: bytes, generation: str = "0") -> bool:
        """Writes an object if its generation is the given one; "0" means that there is none.

        The store decides, so of several processes that try one succeeds.

        Args:
            data: the content. It must differ from what any other process may write.
            generation: see `ObjectStat`.

        Returns:
            Whether the object now holds this content.
        """
        fs, (bucket, key, _) = self._fs, self._fs.split_path(str(self))
        head = b'--sep\r\nContent-Type: application/json\r\n\r\n{"name": %s}\r\n--sep\r\n'
        head %= json.dumps(key).encode()
        body = head + b"Content-Type: application/json\r\n\r\n" + data + b"\r\n--sep--\r\n"
        try:
            with self._into_bucket():
                self._do(
                    fs.call, "POST", f"{fs._location}/upload/storage/v1/b/{bucket}/o",
                    headers={"Content-Type": "multipart/related; boundary=sep"}, data=body,
                    uploadType="multipart", ifGenerationMatch=generation,
                )  # fmt: skip
        except FileExistsError:  # or the answer to an attempt that succeeded was lost
            return self.exists() and self.read_bytes() == data
        return True

    def bucket_settings(self) -> dict[str, Any]:
        """Returns what Cloud Storage says of the bucket; see `require_bucket`."""
        with self._into_bucket():
            return self._do(self._fs.call, "GET", "b/{}", self.parts[2], json_out=True)

    @override
    def mkdir(self, mode: int | None = None, parents: bool = False, exist_ok: bool = False) -> None:
        pass

    @override
    def unlink(self, missing_ok: bool = False) -> None:
        try:
            self._do(self._fs.rm_file, str(self))
        except FileNotFoundError:
            if not missing_ok:
                raise

    @override
    def rmdir(self) -> None:
        pass

    @override
    def rmtree(self, missing_ok: bool = True) -> None:
        """Removes all objects below this folder, the last one first."""
        listed = self._do(self._fs.find, str(self), detail=True)
        scheme = str(self).partition("://")[0]
        for name in sorted(listed, reverse=True):  # with the markers of empty folders, "x/"
            with contextlib.suppress(FileNotFoundError):
                self._do(self._fs.rm_file, f"{scheme}://{name}")

    @override
    def rename(self, target: str | os.PathLike[str]) -> StorePath:  # pyright: ignore
        """Copies an object or folder and removes it; a kill may leave both."""
        there = cast(StorePath, as_path(target))
        self.copy(there)
        remove(cast(Path, self))
        return there

    @override
    def replace(self, target: str | os.PathLike[str]) -> StorePath:  # pyright: ignore
        return self.rename(target)

    @override
    def copy(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, dst: str | os.PathLike[str], overwrite: bool = True
    ) -> StorePath:
        """Copies an object or a whole folder within the store, in `deepest_first` order."""
        there = cast(StorePath, as_path(dst))
        if self.is_dir():
            for name in deepest_first(self.below()):
                self._do(self._fs.cp_file, f"{self}/{name}", f"{there}/{name}")
        else:
            self._do(self._fs.cp_file, str(self), str(there))
        return there

    def download(self, target: Path) -> None:
        """Copies an object to a local file."""
        target.parent.mkdir(parents=True, exist_ok=True)
        self._do(self._fs.get_file, str(self), str(target))

    def upload(self, source: Path) -> None:
        """Copies a local file to this object; readers see the old object or the new one."""
        with self._into_bucket():
            self._do(self._fs.put_file, str(source), str(self))


def _stat(info: dict[str, Any]) -> ObjectStat:
    modified = info.get("mtime") or info.get("LastModified")
    return ObjectStat(
        info.get("size") or 0,
        modified.timestamp() if modified else 0.0,
        info.get("crc32c") or info.get("ETag") or "",
        str(info.get("generation") or ""),
    )
