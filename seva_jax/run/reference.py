"""Reference log-probs on disk, with a fingerprint of all they depend on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from seva_jax.runtime.files import read_records, write_records
from seva_jax.types import DataError


def write_reference(
    path: Path, ids: Sequence[str], logps: Sequence[Sequence[np.ndarray]], fingerprint: str
) -> None:
    """Writes per-token reference log-probs of every branch, with what they depend on.

    float32 survives JSON exactly: it is written as the shortest decimal of its double.
    """
    header = [{"fingerprint": fingerprint, "num": len(ids)}]
    rows = (
        {"id": id_, "logps": [[float(x) for x in branch] for branch in branches]}
        for id_, branches in zip(ids, logps, strict=True)
    )
    write_records(path, [*header, *rows])


def read_reference(
    path: Path, ids: Sequence[str], fingerprint: str
) -> list[tuple[np.ndarray, ...]]:
    """Reads reference log-probs.

    Raises:
        DataError: they were computed for other pairs, weights, templates or images.
    """
    header, *rows = read_records(path)
    if header["fingerprint"] != fingerprint or [r["id"] for r in rows] != list(ids):
        raise DataError(
            f"{path} belongs to other pairs, weights, templates or images "
            f"({header['fingerprint']} instead of {fingerprint}); delete it and run again"
        )
    return [tuple(np.array(b, np.float32) for b in r["logps"]) for r in rows]
