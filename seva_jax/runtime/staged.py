"""Local copies of the small files of a folder in an object store, for libraries that open folders.

What does not live here: a copy of one large file (`stores.local_copy`).
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from seva_jax.runtime.stores import StorePath, is_remote, remove, staging_folder


def local_folder(path: Path, endings: Sequence[str]) -> Path:
    """Returns a local folder with some files of a folder: itself, or a copy that is made once.

    Copies are kept where `stores.local_copy` keeps its own, by the names and digests of the files,
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
