"""The summary of a trace as text, for the terminal."""

from __future__ import annotations

from seva_jax.runtime.trace_summary import COLLECTIVES, MATMULS, Summary

_LABELS = {COLLECTIVES: "collectives alone", MATMULS: "matrix products"}
_BAR = 30  # characters of a share of 1
_NAME, _ORIGIN = 34, 40  # characters of an operation and its origin


def trace_table(summary: Summary) -> str:
    """Returns a block of at most 20 lines: shares of the time, then the top operations."""
    per_step = summary.seconds / max(summary.steps, 1)
    lines = [_title(summary)]
    for part, share in summary.shares.items():
        lines.append(
            f"  {_LABELS.get(part, part):<18}{share:7.1%} {_ms(share * per_step):>10} "
            f"{'█' * round(share * _BAR)}".rstrip()
        )
        if part == COLLECTIVES and summary.collectives:
            kinds = ", ".join(f"{k} {share:.1%}" for k, share in summary.collectives.items())
            lines[-1] += f" (and {summary.hidden:.1%} behind computation; {kinds})"
    lines.append(
        f"  waiting for input {summary.waiting:7.1%} {_ms(summary.waiting * per_step):>10} "
        f"of the loop's time; {summary.waiting_idle:.1%} with idle devices"
    )
    if summary.ops:
        lines.append(f"  {'top operations':<{_NAME}} {'a step':>10} {'times':>7}  share  from")
    for op in summary.ops:
        lines.append(
            f"  {_printable(op.name, _NAME):<{_NAME}} "
            f"{_ms(op.seconds / max(summary.steps, 1)):>10} {op.count:7,} {op.share:6.1%}  "
            f"{_printable(op.origin, _ORIGIN, end=True)}".rstrip()
        )
    return "\n".join(lines)


def _title(summary: Summary) -> str:
    what = "the whole trace"
    if summary.steps:
        what = f"{_printable(summary.loop, _NAME)}, steps {summary.first:,} to {summary.last:,}"
    count = f"{summary.devices:,} device{'' if summary.devices == 1 else 's'}"
    if summary.processes > 1:
        count += f" of {summary.processes:,} processes"
    per_step = _ms(summary.seconds / max(summary.steps, 1))
    return f"profile of {what}: {per_step}{' a step' if summary.steps else ''}, {count}"


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:,.2f} ms"


def _printable(text: str, limit: int, end: bool = False) -> str:
    """Shortens text to some characters, of its beginning or its end, without control characters."""
    plain = "".join(c if c.isprintable() else "?" for c in text)
    if len(plain) <= limit:
        return plain
    return f"…{plain[1 - limit :]}" if end else f"{plain[: limit - 1]}…"
