"""Which source reads a file or a folder, told by the fields of its first records.

What lives here: the list of formats, and the config line of a source. What does not: what a format
needs (`PromptSource.recognizes` beside each reader) and reading (`open`).
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from seva_jax.data.answered import AnsweredPrompts
from seva_jax.data.captions import CaptionedPrompts
from seva_jax.data.collect import Unread
from seva_jax.data.columns import Columns, guess_columns, is_csv, open_columns
from seva_jax.data.embedded import HfParquet, TfdsPrompts
from seva_jax.data.files import ImageFolder, LlavaJson, QuestionsJsonl, SevaJson
from seva_jax.data.llamafactory import LlamaFactoryPairs, described_pairs
from seva_jax.data.marked import OPEN, MarkedPhrases
from seva_jax.data.messages import SwiftPairs, TrlPairs, has_roles
from seva_jax.data.preferences import (
    HaDpoPairs,
    PovidPairs,
    RlaifVPairs,
    SevaPairs,
    VLFeedbackPairs,
)
from seva_jax.data.records import EXAMPLES, INDEX, ArrayRecordPairs, ArrayRecordPrompts
from seva_jax.data.scores import ScoredPairs
from seva_jax.data.sources import PromptSource
from seva_jax.data.splits import of_split
from seva_jax.data.trajectories import TrajectoryPairs
from seva_jax.images.folder import ImageFiles
from seva_jax.images.load import files_below
from seva_jax.runtime.files import read_json
from seva_jax.runtime.stores import as_path
from seva_jax.types import DataError

FORMATS: tuple[type[Any], ...] = (
    *(SevaPairs, HaDpoPairs, RlaifVPairs, PovidPairs, VLFeedbackPairs, TrlPairs, SwiftPairs),
    *(LlamaFactoryPairs, TrajectoryPairs, LlavaJson, QuestionsJsonl, SevaJson),
)
"""Formats made of records, which their fields tell apart; made from path and image folder."""

_SAMPLE = 100  # records
_EMBEDDED = re.compile(r".+/.+/[0-9]+/[0-9]+")  # how `tables.py` names an embedded image


class Detected(NamedTuple):
    """What reads a file or a folder.

    Attributes:
        sources: the sources that fit; more than one if the fields do not tell which.
        fields: the fields of the first record; empty for a folder without records.
        also: sources that use more of it, such as captions or scores.
    """

    sources: tuple[PromptSource, ...]
    fields: tuple[str, ...] = ()
    also: tuple[PromptSource, ...] = ()

    def only(self, path: str) -> PromptSource:
        """Returns the only source that fits.

        Raises:
            DataError: several fit; the message lists them as config lines.
        """
        if len(self.sources) == 1:
            return self.sources[0]
        lines = "\n".join(textwrap.indent(config_line(source), "  ") for source in self.sources)
        raise DataError(
            f"{path} may be in several formats; write the right one into a config, and give "
            f"--config instead:\n{lines}"
        )


def detect(
    path: str, image_root: str = "", split: str = "", link_roots: tuple[str, ...] = ()
) -> Detected:
    """Finds the sources that read a file or a folder.

    Args:
        path: the file or folder.
        image_root: folder the image names are relative to; empty for the file's own folder.
        split: the split of a folder that holds several.
        link_roots: folders that symbolic links in `image_root` may lead to.

    Raises:
        DataError: it cannot be read, or no format has its fields; the message names them.
    """
    if as_path(path).is_dir():
        return _folder(as_path(path), image_root, split, link_roots)
    return _file(path, image_root, split, link_roots)


# --- folders --------------------------------------------------------------------------------------


def _folder(folder: Path, image_root: str, split: str, link_roots: tuple[str, ...]) -> Detected:
    if (folder / EXAMPLES).is_file():
        is_pairs = _object(folder / INDEX).get("kind") == "pairs"
        return Detected(((ArrayRecordPairs if is_pairs else ArrayRecordPrompts)(str(folder)),))
    files = files_below(folder, lambda _: False)
    names = sorted(file.relative_to(folder).as_posix() for file in files)
    if versions := _tfds_versions(names):
        return Detected(tuple(_tfds(folder / version, split) for version in versions))
    if any(name.endswith(".parquet") for name in names):
        return _file(str(folder), image_root, split, link_roots)
    records = [x for x in names if "/" not in x and x.endswith((".json", ".jsonl", ".csv", ".tsv"))]
    records = [x for x in records if x not in ("dataset_info.json", "dataset_infos.json")]
    if len(records) == 1:
        return _file(str(folder / records[0]), image_root, split, link_roots)
    if records:
        some = ", ".join(records[:10]) + ", ..." * (len(records) > 10)
        raise DataError(f"{folder}: holds {len(records)} files of records; give one ({some})")
    if ImageFiles(folder, link_roots).names():
        return Detected((_with(ImageFolder(str(folder)), split, link_roots),))
    if any(name.endswith(".npy") for name in names):
        raise DataError(
            f"{folder}: holds arrays; masks of images belong to pairs, as in "
            f"NoisedRegions(TrlPairs(...), MapFolder({str(folder)!r}))"
        )
    if any(name.endswith(".arrow") for name in names):
        raise DataError(
            f"{folder}: holds Arrow files, which are not read; write parquet: "
            'datasets.load_from_disk(...).to_parquet("data.parquet")'
        )
    raise DataError(f"{folder}: holds no data that is read here; give a file")


def _tfds_versions(names: Sequence[str]) -> list[str]:
    """Returns the folders of prepared TFDS data sets, of those that are least deep.

    A folder is a version, a data set with its versions, or holds data sets.

    Args:
        names: all files below the folder.
    """
    prepared = [PurePosixPath(x).parent for x in names if PurePosixPath(x).name == "features.json"]
    there = set(names)
    prepared = [x for x in prepared if (x / "dataset_info.json").as_posix() in there]
    depth = min((len(x.parts) for x in prepared), default=0)
    return [x.as_posix() for x in prepared if len(x.parts) == depth and depth <= 3]


def _object(path: Path) -> dict[str, Any]:
    value = read_json(path)
    return value if isinstance(value, dict) else {}


def _tfds(version: Path, split: str) -> TfdsPrompts:
    """Returns the source of a prepared TFDS data set."""
    info, features = _object(version / "dataset_info.json"), _object(version / "features.json")
    kinds = {
        name: str(feature.get("pythonClassName", "")).rpartition(".")[2]
        for name, feature in features.get("featuresDict", {}).get("features", {}).items()
    }
    images = [name for name, kind in kinds.items() if kind == "Image"]
    if not images:
        raise DataError(f"{version}: the data set has no image feature ({', '.join(kinds)})")
    config = info.get("configName", "")
    name = "/".join(filter(None, (info.get("name"), config))) + f":{info.get('version')}"
    asked = "question" if kinds.get("question") in ("Text", "Sequence") else ""
    splits = of_split(str(version), [each["name"] for each in info.get("splits", [])], split, str)
    split, folder = split or "".join(splits), version.parents[2 if config else 1]
    return TfdsPrompts(name, split, str(folder), images[0], asked)


# --- records --------------------------------------------------------------------------------------


def _file(path: str, image_root: str, split: str, link_roots: tuple[str, ...]) -> Detected:
    file = as_path(path)
    folder = image_root or str(file if file.is_dir() else file.parent)
    records = list(itertools.islice(open_columns(path, folder, split, link_roots).records, _SAMPLE))
    rows = [row for _, row in records if isinstance(row, dict)]
    if not rows:
        first = f"; the first: {records[0][0]}: {records[0][1]}" if records else ""
        raise DataError(f"{path}: has no records that are objects{first}")
    fields = tuple(dict.fromkeys(str(name) for row in rows for name in row))
    root = folder if image_root or not _embeds(rows) else ""
    fitting: list[PromptSource] = []
    if described := described_pairs(path, root):
        fitting = [described]
    elif not is_csv(path):  # which only `Columns` reads
        fitting = [
            make(path, root)
            for make in FORMATS
            if 2 * sum(make.recognizes(row) for row in rows) > len(rows)
        ]
    fitting = fitting or [_by_columns(path, root, fields, rows)]
    sources = [_with(source, split, link_roots) for source in fitting]
    return Detected(_marked(sources, rows), fields, tuple(_also(sources[0], rows)))


def _with(source: Any, split: str, link_roots: tuple[str, ...]) -> Any:
    """Returns a source that reads a split, and follows links."""
    return dataclasses.replace(source, split=split, link_roots=link_roots)


def _embeds(rows: list[dict[str, Any]]) -> bool:
    """Returns whether a parquet file holds the images themselves, not their names."""
    for cell in (cell for row in rows for cell in row.values() if isinstance(cell, Unread)):
        names = cell.names() if cell.names else None
        if names and isinstance(names[0], str) and _EMBEDDED.fullmatch(names[0]):
            return True
    return False


def _by_columns(
    path: str, root: str, fields: tuple[str, ...], rows: list[dict[str, Any]]
) -> PromptSource:
    """Returns the reader of a table whose columns say by their names what they hold."""
    names: dict[str, Any] = guess_columns(fields)
    chats = [name for name in fields if any(has_roles(row.get(name)) for row in rows)]
    no_format = f"{path}: no format has its fields ({', '.join(fields[:20])}). "
    if chats and names.get("question", chats[0]) in chats:
        raise DataError(
            f"{no_format}{chats[0]} holds chat messages: for pairs, it needs rejected answers, as "
            "TrlPairs and SwiftPairs have them (of LlamaFactoryPairs, options name the columns); "
            "for supervised training, write the fields id, question, answer and images, which "
            "AnsweredPrompts(QuestionsJsonl(...)) reads"
        )
    parquet = as_path(path).is_dir() or path.endswith(".parquet")
    if {"image", "question"} <= names.keys():
        if "chosen" not in names and parquet:
            return HfParquet(path, names["image"], names["question"], image_root=root)
        return Columns(path, root, **names)
    if "image" in names and parquet:
        asked = ImageFolder().questions
        return HfParquet(path, names["image"], "", asked, image_root=root)
    message = f"{no_format}Write a reader, as seva_jax/data/README.md explains"
    if any(isinstance(cell, str) for row in rows for cell in row.values()):
        example = config_line(Columns(path, root, "IMAGE", "QUESTION", "CHOSEN", "REJECTED"))
        message += (
            ", or name the columns in a config (without the last two for prompts):\n"
            + textwrap.indent(example, "  ")
        )
    raise DataError(message)


def _marked(
    sources: Sequence[PromptSource], rows: list[dict[str, Any]]
) -> tuple[PromptSource, ...]:
    """Returns sources that read the marks in answers, if there are any."""
    has_marks = any(OPEN in json.dumps(row, default=str) for row in rows)
    return tuple(MarkedPhrases(s) if has_marks and s.has_answers else s for s in sources)


def _also(source: PromptSource, rows: list[dict[str, Any]]) -> Iterator[PromptSource]:
    """Yields sources that use other fields of the same records."""
    row: Mapping[str, Any] = rows[0]
    for name, value in row.items():
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if source.has_answers and is_number and "score" in str(name).lower():
            yield ScoredPairs(source, str(name))
    if not source.has_answers and isinstance(row.get("captions"), list):
        yield CaptionedPrompts(source)
    if isinstance(source, LlavaJson):
        yield AnsweredPrompts(dataclasses.replace(source, remove=(), answers=True))
    elif not source.has_answers and isinstance(row.get("answer"), str):
        yield AnsweredPrompts(source)


# --- config lines ---------------------------------------------------------------------------------


def config_line(source: PromptSource) -> str:
    """Returns what to write for a source into a config file: an import, and the field `prompts`.

    >>> print(config_line(MarkedPhrases(SevaPairs("step3.json", "images"))))
    from seva_jax.data import MarkedPhrases, SevaPairs
    prompts=MarkedPhrases(source=SevaPairs(path='step3.json', image_root='images'))
    """
    names: set[str] = set()
    expression = _expression(source, names)
    return f"from seva_jax.data import {', '.join(sorted(names))}\nprompts={expression}"


def _expression(value: Any, names: set[str]) -> str:
    """Returns a value as Python, without fields that have their default; collects class names."""
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return repr(value)
    names.add(type(value).__name__)
    given = [
        f"{field.name}={_expression(getattr(value, field.name), names)}"
        for field in sorted(dataclasses.fields(value), key=lambda field: field.kw_only is True)
        if getattr(value, field.name) != field.default
    ]
    return f"{type(value).__name__}({', '.join(given)})"
