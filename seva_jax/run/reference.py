"""Reference log-probs: computed once, kept with a fingerprint of everything they depend on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from seva_jax.batches.pipeline import ComparisonRows
from seva_jax.config import fingerprint
from seva_jax.data.json_records import fields
from seva_jax.inference.answer_logps import answer_logps
from seva_jax.run.context import RunContext
from seva_jax.runtime.files import read_records, write_records
from seva_jax.runtime.journal import Journal
from seva_jax.text.tokenizer import tokenizer_facts
from seva_jax.training.checkpoint import checksum
from seva_jax.training.step import Variables
from seva_jax.types import Comparison, DataError

RECORDS, LINES = "reference.array_record", "reference.jsonl"

Logps = Sequence[Sequence[np.ndarray]]  # per token, of every branch of every comparison


def compute_reference(ctx: RunContext, policy: Variables, rows: ComparisonRows) -> Logps:
    """Computes per-token log-probs of every answer under the reference policy, and keeps them.

    Args:
        ctx: the run.
        policy: variables of the reference policy.
        rows: the comparisons.
    """
    key, layout = _key(ctx, policy, rows.comparisons), ctx.pass_layout  # on all processes
    header = {"fingerprint": key, "batch_size": layout.batch_size}
    with ctx.workdir.bar("reference", len(rows), "pair") as bar:
        logps = answer_logps(
            ctx.model_of(policy), policy, rows, layout, ctx.step_options, bar.update,
            Journal(ctx.workdir.path / LINES, header),
        )  # fmt: skip
    if ctx.workdir.writes:
        ids = [c.prompt.id for c in rows.comparisons]
        write_logps(ctx.workdir.path / RECORDS, ids, logps, key)
    return logps


def read_reference(
    ctx: RunContext, policy: Variables, comparisons: Sequence[Comparison]
) -> list[tuple[np.ndarray, ...]]:
    """Reads what `compute_reference` kept.

    Raises:
        DataError: it was computed for other pairs, weights, templates or images.
    """
    ids = [c.prompt.id for c in comparisons]
    return read_logps(ctx.workdir.path / RECORDS, ids, _key(ctx, policy, comparisons))


def _key(ctx: RunContext, policy: Variables, comparisons: Sequence[Comparison]) -> str:
    """Returns a fingerprint of everything that reference log-probs depend on."""
    return fingerprint(
        checksum(policy),
        *([ctx.config.lora.finished] if "lora" in policy else []),
        ctx.config.text.train,
        ctx.assets.processing,
        *tokenizer_facts(ctx.assets.tokenizer),
        map(fields, comparisons),
        ctx.config.compute.dtype,
    )


def write_logps(path: Path, ids: Sequence[str], logps: Logps, fingerprint: str) -> None:
    """Writes log-probs behind a header that says what they depend on.

    float32 survives JSON exactly: it is written as the shortest decimal of its double.
    """
    header = [{"fingerprint": fingerprint, "num": len(ids)}]
    rows = (
        {"id": id_, "logps": [[float(x) for x in branch] for branch in branches]}
        for id_, branches in zip(ids, logps, strict=True)
    )
    write_records(path, [*header, *rows])


def read_logps(path: Path, ids: Sequence[str], fingerprint: str) -> list[tuple[np.ndarray, ...]]:
    """Reads what `write_logps` wrote.

    Raises:
        DataError: it belongs to other ids or has another fingerprint.
    """
    header, *rows = read_records(path)
    if header["fingerprint"] != fingerprint or [r["id"] for r in rows] != list(ids):
        raise DataError(
            f"{path} belongs to other pairs, weights, templates or images "
            f"({header['fingerprint']} instead of {fingerprint}); delete it and run again"
        )
    return [tuple(np.array(b, np.float32) for b in r["logps"]) for r in rows]
