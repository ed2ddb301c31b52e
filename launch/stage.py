"""Copies data from an object store to this machine's disk, once: python launch/stage.py URL...

gs://BUCKET/PATH, an object or all objects below it, lands in ~/staged/BUCKET/PATH. What is there
already is not copied again: a list beside the copy, ~/staged/BUCKET/PATH.staged.json, names the
source and every object's size and generation. Objects that have changed in the bucket are copied
again, and those that are gone from it are removed.
"""

from __future__ import annotations

import concurrent.futures
import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

THREADS = 16
SPARE = 2 * 2**30  # bytes to leave free


def copy_of(url: str) -> Path:
    """Returns where the copy of a URL lies on this machine."""
    return Path.home() / "staged" / url.partition("://")[2].strip("/")


def stage(url: str) -> str:
    """Copies what is below a URL, or one object, and returns what was done in a line.

    Raises:
        SystemExit: there is nothing below the URL, or it does not fit on the disk.
    """
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from seva_jax.runtime.stores import as_path

    url = url.rstrip("/")
    source: Any = as_path(url)
    target = copy_of(url)
    note = target.with_name(target.name + ".staged.json")
    whole = source.is_file()
    listed = {"": source.stat()} if whole else source.below()
    if not listed:
        raise SystemExit(f"error: {url}: there is no object of this name or below it")
    for name in listed:
        if ".." in name.split("/") or name.startswith("/"):
            raise SystemExit(f"error: {url}: the name {name!r} leads out of its folder")
    now = {name: [x.st_size, x.generation or x.digest or x.st_mtime] for name, x in listed.items()}
    before = _read_note(note, url)
    missing = [x for x in now if before.get(x) != now[x] or not _has(target / x, now[x][0])]
    total = sum(size for size, _ in now.values())
    if not missing and before == now:
        return f"{url} ({total / 2**30:.2f} GiB) is in {target} already"
    target.parent.mkdir(parents=True, exist_ok=True)
    needed = sum(now[x][0] for x in missing)
    free = shutil.disk_usage(target.parent).free
    if needed + SPARE > free:
        raise SystemExit(
            f"error: {url} needs {needed / 2**30:.1f} GiB, and {free / 2**30:.1f} GiB of the disk "
            f"of {target.parent} are free (2 GiB stay so): leave out --stage, and it is read from "
            "the bucket"
        )
    # Copied objects are noted although others fail, so the next call copies only those.
    kept = {name: size for name, size in before.items() if name not in missing and name in now}
    for name in set(before) - set(now):
        (target / name).unlink(missing_ok=True)
    start = time.monotonic()

    def copy(name: str) -> str:
        aside = Path(f"{target / name}.part")
        (source / name if name else source).download(aside)
        if aside.stat().st_size != now[name][0]:
            raise OSError(f"{url}/{name} changed while it was copied")
        aside.replace(target / name)
        return name

    try:
        with concurrent.futures.ThreadPoolExecutor(THREADS) as threads:
            for name in concurrent.futures.as_completed([threads.submit(copy, x) for x in missing]):
                kept[name.result()] = now[name.result()]
    finally:
        note.write_text(json.dumps({"source": url, "objects": kept}))
    seconds = time.monotonic() - start
    return f"{url} is in {target}: {needed / 2**30:.2f} GiB copied in {seconds:.0f} s"


def _read_note(note: Path, url: str) -> dict[str, Any]:
    try:
        read = json.loads(note.read_text())
        return read["objects"] if read["source"] == url else {}
    except (OSError, ValueError, KeyError):
        return {}


def _has(file: Path, size: int) -> bool:
    return file.is_file() and file.stat().st_size == size


if __name__ == "__main__":
    for given in sys.argv[1:]:
        try:
            print(stage(given), flush=True)
        except Exception as error:
            sys.exit(f"error: {given} cannot be staged: {error}")
