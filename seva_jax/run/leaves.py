"""The files that stages leave: whether those of a finished stage are still there.

Only names and sizes are looked at, so a start does not read what an earlier one wrote; in an object
store one listing of the work directory suffices. Content is verified where it is read: ArrayRecord
checks its own hashes, checkpoints have digests (`seva_jax/training/digests.py`).
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import cast

from seva_jax.runtime.files import read_json, read_records
from seva_jax.runtime.stores import ObjectStat, StorePath, is_remote
from seva_jax.training.digests import damage
from seva_jax.training.held_out import RECORD, read_held_out
from seva_jax.types import DataError

CHECKPOINTS = "checkpoints"  # the folder of what training stages leave
_COMPLETE = ("commit_success.txt", "digests.json")  # in every finished checkpoint


class Leaves:
    """The files in a work directory, as they were when this was first asked.

    Args:
        folder: the work directory.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @functools.cached_property
    def _listed(self) -> dict[str, ObjectStat]:
        return cast(StorePath, self._folder).below()

    @functools.cached_property
    def _folders(self) -> set[str]:
        return {str(parent) for name in self._listed for parent in PurePosixPath(name).parents}

    def has(self, name: str) -> bool:
        """Returns whether there is a file or folder of that name."""
        if is_remote(self._folder):
            return name in self._listed or name in self._folders
        return (self._folder / name).exists()

    def missing(self, names: Sequence[str], step: int | None = None) -> str:
        """Returns which of a stage's files are missing, for people; "" if none is.

        Args:
            names: the files and folders that the stage leaves. A folder of checkpoints must hold
                a complete one.
            step: the step of that checkpoint; None takes the newest. The one whose model is the
                aligned one must be there, too, if the stage leaves the record of held-out pairs.
        """
        lost: list[str] = []
        for name in names:
            if name.startswith(f"{CHECKPOINTS}/"):
                for each in self._needed(names, step):
                    lost += self._missing_of_checkpoint(name, each)
            elif not self.has(name):
                lost.append(name)
        return lost[0] + f" (and {len(lost) - 1} more)" * (len(lost) > 1) if lost else ""

    def _needed(self, names: Sequence[str], step: int | None) -> list[int | None]:
        """Returns the steps whose checkpoints a later stage may read."""
        needed = [step]
        if RECORD in names and self.has(RECORD):
            with contextlib.suppress(DataError):  # damaged, which is said where it is read
                kept = read_held_out(self._folder).kept_step
                needed += [kept] * (kept != step)
        return needed

    def _missing_of_checkpoint(self, name: str, step: int | None) -> list[str]:
        steps = self.steps(name)
        if step is None and not steps:
            return [name]
        folder = f"{name}/{max(steps) if step is None else step}"
        if not self.has(folder):
            return [folder]
        lost = [f"{folder}/{file}" for file in _COMPLETE if not self.has(f"{folder}/{file}")]
        if lost:
            return lost
        listed = read_json(self._folder / folder / _COMPLETE[1])
        return [f"{folder}/{file}" for file in listed if not self.has(f"{folder}/{file}")]

    def steps(self, name: str) -> list[int]:
        """Returns the steps of which a folder of checkpoints holds one."""
        if is_remote(self._folder):
            below = (x.removeprefix(f"{name}/") for x in self._listed if x.startswith(f"{name}/"))
            names = {x.partition("/")[0] for x in below}
        else:
            names = {x.name for x in (self._folder / name).glob("*")}
        return sorted(int(x) for x in names if x.isdecimal())

    def damage(self, names: Sequence[str], step: int | None = None) -> str:
        """Reads files and returns what is wrong with one of them; "" if they are intact.

        Args:
            names: see `missing`; none may be missing.
            step: see `missing`.
        """
        try:
            for name in names:
                path = self._folder / name
                if name.startswith(f"{CHECKPOINTS}/"):
                    for each in self._needed(names, step):
                        folder = path / str(max(self.steps(name)) if each is None else each)
                        if why := damage(folder):
                            return f"{folder} is damaged: {why}"
                elif name == RECORD:
                    read_held_out(self._folder)
                elif name.endswith(".array_record"):
                    read_records(path)
                elif name.endswith(".json"):
                    read_json(path)
        except DataError as error:
            return str(error)
        return ""
