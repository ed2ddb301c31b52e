"""Records in a work directory: its finished stages, its metrics, summaries of its traces."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from seva_jax.runtime.files import read_json, read_lines
from seva_jax.runtime.trace_summary import Summary
from seva_jax.types import DataError

PROFILES, SUMMARY = "profiles", "summary.json"  # of traces, and in the folder of each


def read_stages(path: Path) -> dict[str, dict[str, Any]]:
    """Returns the finished stages by name: fingerprint, seconds, devices, summary.

    A stage that was copied from another run also has "source", that run's directory.
    """
    file = path / "stages.json"
    return read_json(file) if file.exists() else {}


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Returns all rows of metrics.jsonl; of a repeated step, the last row."""
    rows = {(r["stage"], r["step"]): r for r in read_lines(path / "metrics.jsonl")}
    return [rows[key] for key in sorted(rows)]


def read_profiles(path: Path) -> dict[str, Summary]:
    """Returns the summaries of traces by the names of their folders.

    Raises:
        DataError: one is damaged or of another version.
    """
    summaries = {}
    for file in sorted((path / PROFILES).glob(f"*/{SUMMARY}")):
        try:
            summaries[file.parent.name] = Summary.from_json(read_json(file))
        except (TypeError, KeyError):
            raise DataError(f"{file} is not a summary of this version; delete it") from None
    return summaries
