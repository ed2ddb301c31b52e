"""The rollouts of a run: JSON lines while they come, then ArrayRecord with an index for people.

What lives here: which of the files is there, and the index. What does not: asking the model
(`rollout/run.py`); how a record looks (`files.py`).

A process that may be killed can append to `rollouts.jsonl`. When all prompts are answered,
`rollouts.array_record` (which checks its own hashes) takes its place, and `rollouts.json` tells
what is in it.
"""

from __future__ import annotations

import collections
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from seva_jax.runtime import files

LINES, RECORDS, INDEX = "rollouts.jsonl", "rollouts.array_record", "rollouts.json"


def read_rollouts(directory: Path) -> list[dict[str, Any]]:
    """All records of a finished stage, of drops too; also those of runs that kept lines only.

    Raises:
        DataError: the file is missing or damaged.
    """
    if not (directory / RECORDS).exists() and (directory / LINES).exists():
        return files.read_lines(directory / LINES)
    return files.read_records(directory / RECORDS)


def write_rollouts(
    directory: Path, records: Sequence[dict[str, Any]], corruptions: Sequence[str]
) -> None:
    """Writes records and index of a finished stage.

    Args:
        directory: the work directory.
        records: see `json_records.rollout_record`; {"id", "dropped"} for a prompt that was not answered.
        corruptions: each in words, in the order of the answers.
    """
    files.write_records(directory / RECORDS, records)
    answered = [r for r in records if "dropped" not in r]
    index = {
        "prompts": len(records),
        "answered": len(answered),
        "drops": dict(collections.Counter(r["dropped"] for r in records if "dropped" in r)),
        "clean": _answers([r["clean"] for r in answered]),
        "corrupted": [
            {"corruption": name}
            | _answers([r["corrupted"][i] for r in answered])
            | {"equal to clean": sum(r["corrupted"][i] == r["clean"] for r in answered)}
            for i, name in enumerate(corruptions)
        ],
    }
    files.write_json(directory / INDEX, index)


def _answers(texts: Sequence[str]) -> dict[str, Any]:
    """How long answers are, in words, and how many differ."""
    words = [len(text.split()) for text in texts] or [0]
    low, middle, high = np.percentile(words, (0, 50, 100)).tolist()
    return {
        "different answers": len(set(texts)),
        "empty": sum(not text.strip() for text in texts),
        "words": {"least": low, "median": middle, "most": high},
    }
