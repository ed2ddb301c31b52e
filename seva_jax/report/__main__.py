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

from seva_jax.config.command_line import parse_options
from seva_jax.report.closing import how_to_open
from seva_jax.report.compare import compare
from seva_jax.report.figures import write_figures
from seva_jax.runtime.paths import hide_home
from seva_jax.runtime.processes import one_line_errors
from seva_jax.runtime.stores import as_path, is_remote
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
        runs: work directories, finished or still running. In a bucket, where a shell does not know
            the names, "gs://bucket/runs/*" stands for all of them.
        out: the HTML page to write.
    """

    runs: Annotated[tuple[str, ...], tyro.conf.arg(metavar="WORKDIR ...")]
    out: str = "runs.html"


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
        chosen = parse_options(ProfileOptions, "report profile", argv[1:])
        files = trace_files(as_path(chosen.folder))
        print(hide_home(trace_table(summarise([read_trace(file) for file in files]))))
        return
    options = parse_options(ReportOptions, "report", argv)
    if not options.runs:
        raise DataError("--runs needs at least one work directory")
    paths = [path for text in options.runs for path in _work_directories(text)]
    page = write_figures(compare(paths), options.out)
    print(hide_home(f"{page}{how_to_open(page)}"))


def _work_directories(text: str) -> list[Path]:
    """Returns the directories that an argument means: itself, or those that its pattern matches."""
    path = as_path(text)
    if not is_remote(path) or "*" not in text:
        return [path]
    folders = [file.parent for file in path.parent.glob(f"{path.name}/config.json")]
    if not folders:
        raise DataError(f"--runs {text}: no work directory matches; check the pattern")
    return folders


if __name__ == "__main__":
    main()
