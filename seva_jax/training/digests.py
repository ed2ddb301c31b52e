"""Which checkpoint of a directory is intact: digests of every file, written beside the files.

Orbax restores a file with a flipped byte without an error, and takes any directory whose name is
a number for a checkpoint. So every checkpoint has `digests.json`, and one is used only when each
file that it lists is there with the size and the digest it had when it was written. Saving and
restoring themselves are in `checkpoint.py`.
"""

from __future__ import annotations

import concurrent.futures
import hashlib
import json
import os
import re
from pathlib import Path
from typing import NamedTuple

import jax

from seva_jax.runtime.processes import gather
from seva_jax.types import DataError

NAME = "digests.json"
_COMMITTED = "commit_success.txt"  # the last thing Orbax writes
_THREADS = 4  # SHA-256 does 1 to 2 GB/s on a core; hashing lets go of Python's lock


class PassedOver(NamedTuple):
    """A directory whose name is a number and that is not used.

    Attributes:
        name: of the directory.
        why: names the file.
    """

    name: str
    why: str


def write_digests(step: Path) -> None:
    """Writes size and SHA-256 of every file of a checkpoint that Orbax is about to publish.

    Args:
        step: the directory; nothing else writes into it meanwhile. `_CHECKPOINT_METADATA` is left
            out: Orbax changes it afterwards, and restoring does not need it.
    """
    files = sorted(p for p in step.rglob("*") if p.is_file() and p.parent != step)
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        found = dict(
            zip((str(p.relative_to(step)) for p in files), pool.map(_facts, files), strict=True)
        )
    with (step / NAME).open("w", encoding="utf-8") as file:
        file.write(json.dumps(found, indent=1) + "\n")
        file.flush()
        os.fsync(file.fileno())


def _facts(file: Path) -> list[int | str]:
    with file.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    return [file.stat().st_size, digest]


def damage(step: Path, share: tuple[int, int] = (0, 1)) -> str | None:
    """What is wrong with a checkpoint, or None.

    Args:
        step: its directory.
        share: which share of the files is read, of how many.
    """
    listed = _listed(step)
    if isinstance(listed, str):
        return listed
    mine = sorted(listed)[share[0] :: share[1]]
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        found = [x for x in pool.map(lambda name: _differs(step, name, listed[name]), mine) if x]
    return found[0] + f" (and {len(found) - 1} more)" * (len(found) > 1) if found else None


def _listed(step: Path) -> dict[str, list[int | str]] | str:
    """What digests.json says, or why there is nothing to compare."""
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


def _differs(step: Path, name: str, facts: list[int | str]) -> str | None:
    try:
        size = (step / name).stat().st_size
        if size != facts[0]:
            return f"{name} has {size} bytes instead of {facts[0]}"
        if _facts(step / name) != facts:
            return f"{name} has another digest than when it was written"
    except OSError as error:
        return f"{name} cannot be read ({error.strerror})"
    return None


def newest(directory: Path) -> tuple[int | None, list[PassedOver]]:
    """The newest intact checkpoint, and what is there besides checkpoints that look finished.

    Digests are compared from the newest down to the first that is intact; of older ones only
    that they look finished. All processes read a share each and agree on the result.

    Args:
        directory: of the checkpoints of one stage.

    Returns:
        The step, None in a directory without any; and what is not to be used.

    Raises:
        DataError: there are directories with numbers, but none is an intact checkpoint.
    """
    there = directory.iterdir() if directory.is_dir() else ()
    numbers = [int(p.name) for p in there if re.fullmatch("0|[1-9][0-9]*", p.name)]
    numbers = gather(sorted(numbers, reverse=True))[0]  # as process 0 sees them
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
    if numbers and step is None:
        reasons = "; ".join(f"{name}: {why}" for name, why in passed_over)
        raise DataError(
            f"{directory} has no intact checkpoint ({reasons}); put back a copy of one, or delete "
            f"{directory} to train this stage from its start"
        )
    return step, passed_over
