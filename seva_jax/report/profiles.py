"""The page's section about traces of JAX's profiler: what devices did with their time."""

from __future__ import annotations

from collections.abc import Sequence

from seva_jax.report.charts import stacked_bar
from seva_jax.report.data import Profile
from seva_jax.report.document import data_table
from seva_jax.report.markup import count_of, esc, number, percent
from seva_jax.runtime.trace_summary import Summary


def profiles_section(profiles: Sequence[Profile]) -> str:
    """Returns HTML of the traces, each with a bar of the parts of its time and two tables."""
    return (
        "<p>What devices did while some steps were traced. Every moment counts once: collectives "
        "and copies that ran behind computation count as computation.</p>"
        + "".join(_profile(profile.name, profile.summary) for profile in profiles)
    )


def _profile(name: str, summary: Summary) -> str:
    per_step = summary.seconds / max(summary.steps, 1)
    steps = f"{summary.loop} {summary.first:,} to {summary.last:,}, " if summary.steps else ""
    facts = (
        f"{steps}{_ms(per_step)} {'a step' if summary.steps else 'in all'}, "
        f"{count_of(summary.devices, 'device')} of {count_of(summary.processes, 'process', 'es')}. "
        f"The loop waited for input {percent(summary.waiting, 1)} of the time, "
        f"{percent(summary.waiting_idle, 1)} with idle devices."
    )
    if summary.collectives:
        kinds = ", ".join(f"{kind} {percent(x, 1)}" for kind, x in summary.collectives.items())
        facts += (
            f" Collectives ran behind computation {percent(summary.hidden, 1)} of the time; in all "
            f"they took: {kinds}."
        )
    parts = [(part, percent(x, 1), _ms(x * per_step)) for part, x in summary.shares.items()]
    ops = [
        (op.name, op.part, percent(op.share, 1), _ms(op.seconds / max(summary.steps, 1)),
         f"{op.count:,}", op.origin)
        for op in summary.ops
    ]  # fmt: skip
    return (
        f'<h3 dir="auto">{esc(name)}</h3><p dir="auto">{esc(facts)}</p>'
        + stacked_bar(tuple(summary.shares.items()), f"{name}: parts of the time")
        + data_table(f"{name}: time by part", ("Part", "Share", "A step"), parts,
                     ("Share", "A step"))
        + data_table(
            f"{name}: operations that took most time",
            ("Operation", "Part", "Share", "A step", "Times", "From"), ops,
            ("Share", "A step", "Times"),
        )
    )  # fmt: skip


def _ms(seconds: float) -> str:
    return f"{number(1000 * seconds, 2)} ms"
