"""Prompts, rollouts and comparisons to JSON and back."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from seva_jax.runtime.files import read_records, write_records
from seva_jax.types import Comparison, Prompt, Rollout, View


def rollout_record(rollout: Rollout) -> dict[str, Any]:
    """Returns a rollout as JSON; the inverse of `rollout_from`."""
    return {**plain(rollout.prompt), "clean": rollout.clean, "corrupted": list(rollout.corrupted)}


def plain(value: Prompt | Comparison) -> dict[str, Any]:
    """Returns a prompt or a comparison as JSON, without `Prompt.start` where it is empty.

    It shares their values, like `fields`.
    """
    if isinstance(value, Comparison):
        more = [vars(view) | {"prompt": plain(view.prompt)} for view in value.more]
        return vars(value) | {"prompt": plain(value.prompt), "more": more}
    return {k: v for k, v in vars(value).items() if value.start or k != "start"}


def fields(comparison: Comparison) -> dict[str, Any]:
    """Returns what `dataclasses.asdict` does, but shares the values: for 300,000 pairs, seconds."""
    more = [vars(view) | {"prompt": vars(view.prompt)} for view in comparison.more]
    return vars(comparison) | {"prompt": vars(comparison.prompt), "more": more}


def prompt_from(record: dict[str, Any]) -> Prompt:
    """Returns the prompt of a JSON record."""
    images, start = tuple(record["images"]), record.get("start", "")
    return Prompt(record["id"], record["question"], images, record["meta"], start)


def rollout_from(record: dict[str, Any]) -> Rollout:
    """Returns the rollout of a JSON record."""
    return Rollout(prompt_from(record), record["clean"], tuple(record["corrupted"]))


def write_comparisons(path: Path, comparisons: Sequence[Comparison]) -> None:
    """Writes comparisons to an ArrayRecord file."""
    write_records(path, map(plain, comparisons))


def comparison_from(record: dict[str, Any]) -> Comparison:
    """Returns the comparison of a JSON record."""
    return Comparison(
        prompt_from(record["prompt"]),
        tuple(record["answers"]),
        record["weight"],
        tuple(record["corruptions"]),
        # Files of earlier versions lack the following.
        tuple(record.get("scores", ())),
        tuple(View(prompt_from(v["prompt"]), tuple(v["answers"])) for v in record.get("more", ())),
        tuple(tuple((a, b) for a, b in marked) for marked in record.get("spans", ())),
    )


def read_comparisons(path: Path) -> list[Comparison]:
    """Reads the file that `write_comparisons` wrote."""
    return [comparison_from(record) for record in read_records(path)]
