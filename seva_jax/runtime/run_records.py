"""What a run has written of itself: its finished stages and its metrics."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from seva_jax.runtime.files import read_json, read_lines


def read_stages(path: Path) -> dict[str, dict[str, Any]]:
    """See `Workdir.stages`."""
    file = path / "stages.json"
    return read_json(file) if file.exists() else {}


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All rows of a run's metrics.jsonl, later rows of a repeated step replacing earlier ones."""
    rows = {(r["stage"], r["step"]): r for r in read_lines(path / "metrics.jsonl")}
    return [rows[key] for key in sorted(rows)]
