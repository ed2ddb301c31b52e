"""Records in a work directory: its finished stages and its metrics."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from seva_jax.runtime.files import read_json, read_lines


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
