"""Digests of every file of a checkpoint, and the newest checkpoint that is intact by them.

Orbax restores a file with a flipped byte without an error, and takes any directory whose name is
a number for a checkpoint. So every checkpoint has a `digests.json`, and is used only if each file
listed there has the size and digest that it was written with. On a disk the digest is a SHA-256; in
an object store it is the checksum that the store itself computed from the bytes it received and
shows in listings, so a checkpoint there is compared without being read. Saving and restoring are in
`checkpoint.py`.
"""

from __future__ import annotations

import base64
import concurrent.futures
import hashlib
import json
import re
from pathlib import Path
from typing import NamedTuple, cast

import jax

from seva_jax.runtime.files import write_json
from seva_jax.runtime.processes import gather
from seva_jax.runtime.stores import ObjectStat, StorePath, is_remote
from seva_jax.types import DataError

NAME = "digests.json"
_COMMITTED = "commit_success.txt"  # the last file that Orbax writes
_SHA256 = 64  # digits
_CHUNK = 2**20  # bytes read at a time
_THREADS = 4  # SHA-256 does 1 to 2 GB/s on a core; hashing releases Python's lock


class PassedOver(NamedTuple):
    """A directory whose name is a number but that is not used.

    Attributes:
        name: name of the directory.
        why: what is wrong; names the file.
    """

    name: str
    why: str


def write_digests(step: Path) -> None:
    """Writes size and SHA-256 of every file of a checkpoint that Orbax is about to publish.

    Args:
        step: the directory, which nothing else writes to meanwhile. `_CHECKPOINT_METADATA` is
            left out: Orbax changes it afterwards, and restoring does not need it.
    """
    if is_remote(step):
        below = cast(StorePath, step).below()
        digests = {n: [x.st_size, x.digest] for n, x in below.items() if "/" in n}
    else:
        files = sorted(p for p in step.rglob("*") if p.is_file() and p.parent != step)
        with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
            names = (str(file.relative_to(step)) for file in files)
            digests = dict(zip(names, pool.map(_facts, files), strict=True))
    write_json(step / NAME, digests)


def _facts(file: Path) -> list[int | str]:
    """Returns the size and the SHA-256 of a file."""
    with file.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    return [file.stat().st_size, digest]


def _checksum_as_in_store(file: Path) -> str:
    import google_crc32c  # comes with gcsfs; a checkpoint of a store, copied to a disk, needs it

    checksum = google_crc32c.Checksum()
    with file.open("rb") as opened:
        while data := opened.read(_CHUNK):
            checksum.update(data)
    return base64.b64encode(checksum.digest()).decode()


def damage(step: Path, share: tuple[int, int] = (0, 1)) -> str | None:
    """Returns what is wrong with a checkpoint, or None.

    Args:
        step: its directory.
        share: index of the share of the files to read, and the number of shares.
    """
    listed = _listed(step)
    if isinstance(listed, str):
        return listed
    below = cast(StorePath, step).below() if is_remote(step) else {}
    mine = sorted(listed)[share[0] :: share[1]]
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        checked = pool.map(
            lambda name: _difference(step / name, listed[name], below.get(name)), mine
        )
        problems = [
            f"{name} {problem}" for name, problem in zip(mine, checked, strict=True) if problem
        ]
    if not problems:
        return None
    return problems[0] + f" (and {len(problems) - 1} more)" * (len(problems) > 1)


def is_unfinished(step: Path) -> bool:
    """Returns whether a save into an object store was interrupted.

    On a disk Orbax writes to a folder of another name, which it removes at the next start.
    """
    return is_remote(step) and not (step / _COMMITTED).is_file()


def _listed(step: Path) -> dict[str, list[int | str]] | str:
    """Returns the content of digests.json, or why there is nothing to compare."""
    if not step.is_dir():
        return "not a directory"
    if not any(step.iterdir()):
        return "an empty directory"
    for name in (_COMMITTED, NAME):
        if not (step / name).is_file():
            return f"{name} is missing: not a finished checkpoint"
    try:
        listed = json.loads((step / NAME).read_text(encoding="utf-8"))
        if not listed or any(len(facts) != 2 for facts in listed.values()):
            raise ValueError("it lists no files")
    except (OSError, ValueError, AttributeError, TypeError) as error:
        return f"{NAME} is damaged ({error})"
    return listed


def _difference(file: Path, facts: list[int | str], seen: ObjectStat | None) -> str | None:
    """Returns how a file differs from its digest.

    Args:
        file: the file.
        facts: its size and digest when it was written.
        seen: what the store's listing says of it; None if the file is not in a store, or missing.
    """
    try:
        stat = seen or file.stat()
        if stat.st_size != facts[0]:
            return f"has {stat.st_size} bytes instead of {facts[0]}"
        if len(str(facts[1])) == _SHA256:  # of a disk, and perhaps copied into a store
            digest = _facts(file)[1]
        else:
            digest = seen.digest if seen else _checksum_as_in_store(file)
        return None if digest == facts[1] else "has another digest than when it was written"
    except (OSError, ImportError) as error:
        return f"cannot be read ({getattr(error, 'strerror', None) or error})"


def newest(directory: Path) -> tuple[int | None, list[PassedOver]]:
    """Finds the newest intact checkpoint, and the directories that cannot be used.

    Digests are compared from the newest checkpoint down to the first intact one; older ones are
    only checked for being finished. Every process reads a share of the files, and all agree on the
    result.

    Args:
        directory: the checkpoints of one stage.

    Returns:
        The step, or None if there is no checkpoint; and the directories that cannot be used.

    Raises:
        DataError: there are directories with numbers, but none is an intact checkpoint. Unfinished
            ones in a store do not count: what they hold was never a checkpoint.
    """
    paths = directory.iterdir() if directory.is_dir() else ()
    numbers = [int(p.name) for p in paths if re.fullmatch("0|[1-9][0-9]*", p.name)]
    numbers = gather(sorted(numbers, reverse=True))[0]  # those that process 0 sees
    share = jax.process_index(), jax.process_count()
    step, passed_over = None, []
    for number in numbers:
        path = directory / str(number)
        if step is None:
            why = next(filter(None, gather(damage(path, share))), None)
        else:
            listed = gather(_listed(path))[0]
            why = listed if isinstance(listed, str) else None
        if why:
            passed_over.append(PassedOver(str(number), why))
        elif step is None:
            step = number
    finished = [n for n in numbers if not gather(is_unfinished(directory / str(n)))[0]]
    if finished and step is None:
        reasons = "; ".join(f"{name}: {why}" for name, why in passed_over)
        raise DataError(
            f"{directory} has no intact checkpoint ({reasons}); put back a copy of one, or delete "
            f"{directory} to train this stage from the start"
        )
    return step, passed_over
