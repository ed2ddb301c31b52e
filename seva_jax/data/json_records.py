"""Prompts, rollouts and comparisons as JSON, and back."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from seva_jax.runtime.files import read_records, write_records
from seva_jax.types import Comparison, Prompt, Rollout, View


def rollout_record(rollout: Rollout) -> dict[str, Any]:
    """A rollout as JSON; the inverse of `rollout_from`."""
    return {
        **plain(rollout.prompt),
        "clean": rollout.clean,
        "corrupted": list(rollout.corrupted),
    }


def plain(value: Prompt | Comparison) -> dict[str, Any]:
    """A prompt or comparison as JSON, without `Prompt.start` where it is empty."""
    return dataclasses.asdict(value, dict_factory=_without_empty_start)


def _without_empty_start(items: list[tuple[str, Any]]) -> dict[str, Any]:
    return {name: value for name, value in items if (name, value) != ("start", "")}


def prompt_from(record: dict[str, Any]) -> Prompt:
    """A prompt from its JSON."""
    return Prompt(
        record["id"],
        record["question"],
        tuple(record["images"]),
        record["meta"],
        record.get("start", ""),
    )


def rollout_from(record: dict[str, Any]) -> Rollout:
    """A rollout from its JSON."""
    return Rollout(prompt_from(record), record["clean"], tuple(record["corrupted"]))


def write_comparisons(path: Path, comparisons: Sequence[Comparison]) -> None:
    """Writes comparisons to an ArrayRecord file."""
    write_records(path, map(plain, comparisons))


def comparison_from(record: dict[str, Any]) -> Comparison:
    """A comparison from its JSON."""
    return Comparison(
        prompt_from(record["prompt"]),
        tuple(record["answers"]),
        record["weight"],
        tuple(record["corruptions"]),
        # Files of earlier versions lack these.
        tuple(record.get("scores", ())),
        tuple(View(prompt_from(v["prompt"]), tuple(v["answers"])) for v in record.get("more", ())),
        tuple(tuple((a, b) for a, b in marked) for marked in record.get("spans", ())),
    )


def read_comparisons(path: Path) -> list[Comparison]:
    """Reads what `write_comparisons` wrote."""
    return [comparison_from(record) for record in read_records(path)]
