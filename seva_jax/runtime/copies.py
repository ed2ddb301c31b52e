"""Copies between disks and object stores, and local copies for libraries that need a file.

What does not live here: paths and single objects (`stores.py`).
"""

from __future__ import annotations

import atexit
import hashlib
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from seva_jax.runtime.store_client import StoreError
from seva_jax.runtime.stores import ObjectStat, StorePath, deepest_first, is_remote, remove

STAGED = "SEVA_JAX_STAGED"


def upload(source: Path, target: Path) -> None:
    """Copies a local file, or a folder with all its content, to an object store.

    Files in deeper folders come first, so those that tell a complete folder from a partial one
    come last.
    """
    if not source.is_dir():
        cast(StorePath, target).upload(source)
        return
    names = [p.relative_to(source).as_posix() for p in source.rglob("*") if p.is_file()]
    for name in deepest_first(names):
        cast(StorePath, target / name).upload(source / name)


def copy_whole(source: Path, target: Path) -> None:
    """Copies a file, or a folder with all its content, between any two places.

    On a local disk the target appears whole or not at all; in a store, see `upload`.
    """
    if is_remote(target):
        if is_remote(source):
            cast(StorePath, source).copy(target)
        else:
            upload(source, target)
        return
    aside = target.with_name(f".{target.name}.tmp")
    target.parent.mkdir(parents=True, exist_ok=True)
    remove(aside)  # of a copy that was killed
    if is_remote(source):
        names = list(cast(StorePath, source).below()) if source.is_dir() else [""]
        for name in names:
            cast(StorePath, source / name if name else source).download(aside / name)
    else:
        copy = shutil.copytree if source.is_dir() else shutil.copy
        copy(source, aside)
    aside.rename(target)


def local_copy(path: Path) -> Path:
    """Returns a local file with the content of a path: itself, or a copy that is made once.

    Copies are kept in ~/.cache/seva_jax/staged (or in the folder that SEVA_JAX_STAGED names), by
    the digest of their content, so a new object of the same name is copied again.

    Raises:
        FileNotFoundError: there is no such object.
    """
    if not is_remote(path):
        return path
    remote = cast(StorePath, path)
    facts: ObjectStat = remote.stat()
    kept = (facts.st_size, facts.digest) if facts.digest else (str(path), *facts)
    key = hashlib.sha256(repr(kept).encode()).hexdigest()[:32]
    copy = staging_folder() / key / path.name
    if not copy.is_file() or copy.stat().st_size != facts.st_size:
        aside = copy.with_name(f"{copy.name}.{os.getpid()}.tmp")
        try:
            remote.download(aside)
            if aside.stat().st_size != facts.st_size:
                raise StoreError(f"{path}: was replaced while it was copied; run it again")
            aside.replace(copy)
        finally:
            aside.unlink(missing_ok=True)
    return copy


def staging_folder() -> Path:
    """Returns the folder on this machine that keeps copies of objects."""
    return Path(os.environ.get(STAGED) or Path.home() / ".cache" / "seva_jax" / "staged")


def scratch_folder(name: str) -> Path:
    """Returns a new folder on this machine, which is removed when Python ends.

    Args:
        name: what it is for; its name begins with it.
    """
    folder = Path(tempfile.mkdtemp(prefix=f"seva_jax_{name}_")).resolve()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def local_folder(path: Path, endings: Sequence[str]) -> Path:
    """Returns a local folder with some files of a folder: itself, or a copy that is made once.

    Copies are kept where `local_copy` keeps its own, by the names and digests of the files,
    so a folder with a new file is copied again.

    Args:
        path: the folder.
        endings: how the names of the wanted files end; files in folders below are left out, and so
            are indices of weights.

    Returns:
        The folder; it does not exist if the store has no object there.
    """
    if not is_remote(path):
        return path
    folder = cast(StorePath, path)
    files = {
        name: stat
        for name, stat in folder.below().items()
        if name.endswith(tuple(endings)) and "/" not in name and not name.endswith(".index.json")
    }
    # Stores without digests have times or generations.
    facts = [(n, s.st_size, s.digest) if s.digest else (n, str(path), *s) for n, s in files.items()]
    key = hashlib.sha256(repr(facts).encode()).hexdigest()[:32]
    root = staging_folder()
    copy = root / key
    if not files or copy.is_dir():
        return copy
    root.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f"{key}.", dir=root))
    try:
        for name, content in zip(files, folder.read_below(list(files)), strict=True):
            (aside / name).write_bytes(content)
        if not copy.is_dir():
            aside.rename(copy)
    except FileExistsError:
        pass  # another process was faster
    except OSError:
        if not copy.is_dir():
            raise
    finally:
        remove(aside)
    return copy
