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
from pathlib import Path
from typing import Any, NamedTuple

from seva_jax.data.answered import AnsweredPrompts
from seva_jax.data.captions import CaptionedPrompts
from seva_jax.data.collect import Unread
from seva_jax.data.columns import Columns, guess_columns, open_columns
from seva_jax.data.embedded import HfParquet, TfdsPrompts
from seva_jax.data.files import ImageFolder, LlavaJson, QuestionsJsonl, SevaJson
from seva_jax.data.llamafactory import LlamaFactoryPairs, described_pairs
from seva_jax.data.marked import OPEN, MarkedPhrases
from seva_jax.data.messages import SwiftPairs, TrlPairs
from seva_jax.data.preferences import (
    HaDpoPairs,
    PovidPairs,
    RlaifVPairs,
    SevaPairs,
    VLFeedbackPairs,
)
from seva_jax.data.records import INDEX, ArrayRecordPairs, ArrayRecordPrompts
from seva_jax.data.scores import ScoredPairs
from seva_jax.data.sources import PromptSource
from seva_jax.data.trajectories import TrajectoryPairs
from seva_jax.images.load import IMAGE_EXTENSIONS
from seva_jax.runtime.files import read_json
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


def detect(path: str, image_root: str = "", split: str = "") -> Detected:
    """Finds the sources that read a file or a folder.

    Args:
        path: the file or folder.
        image_root: folder the image names are relative to; empty for the file's own folder.
        split: the split of a folder that holds several.

    Raises:
        DataError: it cannot be read, or no format has its fields; the message names them.
    """
    if Path(path).is_dir():
        return _folder(Path(path), image_root, split)
    return _file(path, image_root, split)


# --- folders --------------------------------------------------------------------------------------


def _folder(folder: Path, image_root: str, split: str) -> Detected:
    if (folder / INDEX).is_file():
        is_pairs = read_json(folder / INDEX).get("kind") == "pairs"
        return Detected(((ArrayRecordPairs if is_pairs else ArrayRecordPrompts)(str(folder)),))
    for depth in ("", "*/", "*/*/", "*/*/*/"):  # a version, its data set, or a folder of those
        if prepared := sorted(folder.glob(f"{depth}features.json")):
            splits = (s for path in prepared for s in _tfds(path.parent))
            return Detected(tuple(s for s in splits if split in ("", s.split)))
    if any(folder.rglob("*.parquet")):
        return _file(str(folder), image_root, split)
    files = sorted(p for p in folder.iterdir() if p.suffix in (".json", ".jsonl", ".csv", ".tsv"))
    files = [p for p in files if p.name not in ("dataset_info.json", "dataset_infos.json")]
    if len(files) == 1:
        return detect(str(files[0]), image_root, split)
    if files:
        names = ", ".join(p.name for p in files[:10]) + ", ..." * (len(files) > 10)
        raise DataError(f"{folder}: holds {len(files)} files of records; give one ({names})")
    if any(p.suffix.lower() in IMAGE_EXTENSIONS for p in folder.rglob("*")):
        return Detected((ImageFolder(str(folder), split=split),))
    if any(folder.rglob("*.npy")):
        raise DataError(
            f"{folder}: holds arrays; masks of images belong to pairs, as in "
            f"NoisedRegions(TrlPairs(...), MapFolder({str(folder)!r}))"
        )
    if any(folder.rglob("*.arrow")):
        raise DataError(
            f"{folder}: holds Arrow files, which are not read; write parquet: "
            'datasets.load_from_disk(...).to_parquet("data.parquet")'
        )
    raise DataError(f"{folder}: holds no data that is read here; give a file")


def _tfds(version: Path) -> Iterator[TfdsPrompts]:
    """Yields the sources of a prepared TFDS data set, one for each split."""
    info, features = read_json(version / "dataset_info.json"), read_json(version / "features.json")
    kinds = {
        name: str(feature.get("pythonClassName", "")).rpartition(".")[2]
        for name, feature in features.get("featuresDict", {}).get("features", {}).items()
    }
    images = [name for name, kind in kinds.items() if kind == "Image"]
    if not images:
        raise DataError(f"{version}: the data set has no image feature ({', '.join(kinds)})")
    config = info.get("configName", "")
    name = "/".join(filter(None, (info["name"], config))) + f":{info['version']}"
    asked = ["question"] if kinds.get("question") in ("Text", "Sequence") else [""]
    for split in info.get("splits", []):
        yield TfdsPrompts(
            name, split["name"], str(version.parents[2 if config else 1]), images[0], asked[0]
        )


# --- records --------------------------------------------------------------------------------------


def _file(path: str, image_root: str, split: str) -> Detected:
    folder = image_root or str(Path(path) if Path(path).is_dir() else Path(path).parent)
    records = list(itertools.islice(open_columns(path, folder, split).records, _SAMPLE))
    rows = [row for _, row in records if isinstance(row, dict)]
    if not rows:
        first = f"; the first: {records[0][0]}: {records[0][1]}" if records else ""
        raise DataError(f"{path}: has no records that are objects{first}")
    fields = tuple(dict.fromkeys(str(name) for row in rows for name in row))
    root = folder if image_root or not _embeds(rows) else ""
    described = described_pairs(path, root)
    if described:
        return Detected(_marked((described,), rows), fields)
    fitting = [
        _of_split(make(path, root), split)
        for make in FORMATS
        if 2 * sum(make.recognizes(row) for row in rows) > len(rows)
    ]
    sources = tuple(fitting) or (_of_split(_by_columns(path, root, fields, rows), split),)
    marked = _marked(sources, rows)
    return Detected(marked, fields, tuple(_also(sources[0], rows)))


def _of_split(source: Any, split: str) -> Any:
    return dataclasses.replace(source, split=split) if split else source


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
    parquet = Path(path).is_dir() or path.endswith(".parquet")
    if {"image", "question"} <= names.keys():
        if "chosen" not in names and parquet:
            return HfParquet(path, names["image"], names["question"], image_root=root)
        return Columns(path, root, **names)
    if "image" in names and parquet:
        asked = ImageFolder().questions
        return HfParquet(path, names["image"], "", asked, image_root=root)
    message = f"{path}: no format has its fields ({', '.join(fields[:20])}). Write a reader, as "
    message += "seva_jax/data/README.md explains"
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
    if not source.has_answers and isinstance(row.get("answer"), str):
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
        for field in dataclasses.fields(value)
        if getattr(value, field.name) != field.default
    ]
    return f"{type(value).__name__}({', '.join(given)})"
