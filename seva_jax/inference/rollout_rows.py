"""How rollouts are laid out in rows, and which prompt takes which row."""

from __future__ import annotations

from typing import NamedTuple

import jax
import numpy as np

from seva_jax.sharding import row_multiple


class RolloutRows(NamedTuple):
    """How rollouts are laid out on one process's share of the devices.

    Attributes:
        rows: rows that are answered together.
        fresh: rows that are started together.
        parts: devices, or groups of them, that the rows are split over.
        group: prompts that the rows hold.
    """

    rows: int
    fresh: int
    parts: int
    group: int


def rollout_rows(
    batch_size: int, refill: int, variants: int, mesh: jax.sharding.Mesh, num_shares: int
) -> RolloutRows:
    """Returns the layout of rollouts.

    Args:
        batch_size: rows wanted over all devices.
        refill: one in this many rows is started together.
        variants: rows of a prompt, clean and corrupted.
        mesh: the mesh that rows are split over; their number is rounded up to divide evenly.
        num_shares: see `seva_jax.sharding.process_row_share`.
    """
    group = max(batch_size // variants // num_shares, 1)
    parts = row_multiple(mesh) // num_shares
    rows = -(-group * variants // parts) * parts
    fresh = -(-max(rows // refill, variants) // parts) * parts
    return RolloutRows(rows, fresh, parts, group)


def row_pairs(free: np.ndarray, layout: RolloutRows) -> list[tuple[int, int]]:
    """Returns pairs of a fresh row and a free row of the same part: a row stays on its device."""
    per_part, fresh_per_part = layout.rows // layout.parts, layout.fresh // layout.parts
    pairs = []
    for part in range(layout.parts):
        here = free[free // per_part == part][:fresh_per_part].tolist()
        pairs += [(part * fresh_per_part + i, row) for i, row in enumerate(here)]
    return pairs
