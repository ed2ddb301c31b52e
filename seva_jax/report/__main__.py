"""`python -m seva_jax.report` writes a page that compares several runs.

`python -m seva_jax.report profile FOLDER` summarises a trace of JAX's profiler, a run's or another.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from seva_jax.report.compare import compare
from seva_jax.report.figures import write_figures
from seva_jax.runtime.paths import hide_home
from seva_jax.runtime.processes import one_line_errors
from seva_jax.runtime.stores import as_path
from seva_jax.runtime.trace_events import read_trace, trace_files
from seva_jax.runtime.trace_summary import summarise
from seva_jax.runtime.trace_table import trace_table
from seva_jax.types import DataError


@dataclasses.dataclass(frozen=True)
class ReportOptions:
    """Draws loss and reward margin of several runs against pairs seen and chip-seconds.

    The page of a single run, WORKDIR/report.html, is written by the run itself. To summarise a
    trace of JAX's profiler: python -m seva_jax.report profile FOLDER

    Attributes:
        runs: work directories, finished or still running.
        out: the HTML page to write.
    """

    runs: Annotated[tuple[Path, ...], tyro.conf.arg(metavar="WORKDIR ...")]
    out: Path = Path("runs.html")


@dataclasses.dataclass(frozen=True)
class ProfileOptions:
    """Summarises a trace of JAX's profiler: parts of the devices' time, and the top operations.

    Attributes:
        folder: the trace: WORKDIR/profiles/NAME of a run, or any folder with *.xplane.pb files in
            or below it, of which the newest trace is read, with the files of all its processes.
    """

    folder: Annotated[str, tyro.conf.Positional]


@one_line_errors()
def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["profile"]:
        chosen = tyro.cli(ProfileOptions, args=argv[1:], prog="python -m seva_jax.report profile")
        files = trace_files(as_path(chosen.folder))
        print(hide_home(trace_table(summarise([read_trace(file) for file in files]))))
        return
    options = tyro.cli(ReportOptions, args=argv)
    if not options.runs:
        raise DataError("--runs needs at least one work directory")
    print(hide_home(str(write_figures(compare(options.runs), options.out))))


if __name__ == "__main__":
    main()
