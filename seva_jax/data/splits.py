"""The splits of a folder of data, by the names of its files: "train", "validation", "test", ...

What lives here: which split a file belongs to, and the refusal to read several splits as one data
set. What does not: reading the files (`tables.py`, `files.py`).

The Hub's folders have `train-00000-of-00002.parquet`, often below `data/`, and its automatic
conversions `CONFIG/train/0000.parquet`. Others have `train.parquet`, `val_3.parquet` or `test/`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import PurePosixPath

from seva_jax.types import DataError

_SHARD = re.compile(r"(.+?)-\d{5}-of-\d{5}.*")
_NUMBER = re.compile(r"\d{4}")  # the file's name below `refs/convert/parquet`
_WORD = "train|training|validation|valid|val|dev|test|testing|eval|evaluation"
# No letter may touch the words: "train2017" and "my_train" are splits, "trains" and "latest" not.
_WORDS = re.compile(rf"(?<![^\W\d_])(?:{_WORD})(?:[\W\d_]+(?:{_WORD}))*(?![^\W\d_])", re.IGNORECASE)


def shard_split(name: str) -> str:
    """Returns the split of a data file, or "" if its name says none.

    >>> [shard_split(f"data/{x}-00000-of-00002.parquet") for x in ("train", "test_sft")]
    ['train', 'test_sft']
    >>> shard_split("default/dev_small/0000.parquet"), shard_split("train.parquet")
    ('dev_small', 'train')
    >>> shard_split("val/part.parquet"), shard_split("RLAIF-V-Dataset_000.parquet")
    ('val', '')
    """
    path = PurePosixPath(name)
    if shard := _SHARD.fullmatch(path.stem):
        return shard.group(1)
    if _NUMBER.fullmatch(path.stem) and path.parent.name:
        return path.parent.name
    words = _WORDS.search(path.stem)
    return words.group() if words else folder_split(name)


def folder_split(name: str) -> str:
    """Returns the split that the innermost folder of a file's name is called after, or "".

    >>> folder_split("coco/train2017/000000000009.jpg"), folder_split("coco/train.jpg")
    ('train', '')
    """
    folders = PurePosixPath(name).parent.parts
    return next((words.group() for each in reversed(folders) if (words := _WORDS.search(each))), "")


def of_split(
    where: str, names: Sequence[str], split: str, split_of: Callable[[str], str]
) -> list[str]:
    """Returns the names that belong to a split; all if none is chosen and there is one at most.

    Args:
        where: what is read, for errors.
        names: names of files.
        split: the split, or several joined by "+"; empty for the only one.
        split_of: returns the split of a file.

    Raises:
        DataError: there are several splits and none is chosen, or there is no such split.
    """
    splits = {name: split_of(name) for name in names}
    there = sorted({each for each in splits.values() if each})
    if not split:
        if len(there) > 1:
            raise DataError(
                f"{where}: holds several splits ({', '.join(there)}); choose one, such as "
                f"split={there[0]!r}, or several, split={'+'.join(there)!r}, or give one file"
            )
        return list(names)
    chosen = split.split("+")
    if lacking := [each for each in chosen if each not in there]:
        raise DataError(
            f"{where}: there is no split {lacking[0]!r}; "
            + (f"it has {', '.join(there)}" if there else "no name says one, so leave split empty")
        )
    return [name for name in names if splits[name] in chosen]
