"""`python -m seva_jax.report WORKDIR` writes the page of a run again; with several, compares them.

`python -m seva_jax.report profile FOLDER` summarises a trace of JAX's profiler, a run's or another.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from seva_jax.config import read_config
from seva_jax.config.command_line import parse_options
from seva_jax.report.closing import how_to_open
from seva_jax.report.compare import compare
from seva_jax.report.figures import write_figures
from seva_jax.report.run_report import results_and_verdict, write_run_report
from seva_jax.run.workdir import instead_of
from seva_jax.runtime.paths import hide_home
from seva_jax.runtime.processes import one_line_errors
from seva_jax.runtime.stores import as_path, is_remote
from seva_jax.runtime.trace_events import read_trace, trace_files
from seva_jax.runtime.trace_summary import summarise
from seva_jax.runtime.trace_table import trace_table
from seva_jax.types import DataError

_Workdirs = Annotated[tuple[str, ...], tyro.conf.arg(metavar="WORKDIR ...")]


@dataclasses.dataclass(frozen=True)
class ReportOptions:
    """Writes the page of a run again, or a page that compares several runs.

    With one WORKDIR, its report.html is written again from what is in the directory, with the
    evaluations that `seva_jax.evaluate` has added since; no model is loaded. With several, or with
    --runs, a page shows their losses, reward margins and evaluations side by side. To summarise a
    trace of JAX's profiler: python -m seva_jax.report profile FOLDER

    Attributes:
        workdirs: work directories, finished or still running. In a bucket, where a shell does not
            know the names, "gs://bucket/runs/*" stands for all of them.
        runs: work directories to compare, also a single one.
        out: the HTML page to write; by default WORKDIR/report.html, or runs.html where runs are
            compared.
    """

    workdirs: Annotated[
        tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[WORKDIR ...]")
    ] = ()
    runs: Annotated[tuple[str, ...], tyro.conf.arg(metavar="WORKDIR ...")] = ()
    out: str = ""


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
    named = (*options.workdirs, *options.runs)
    if not named:
        raise DataError(
            "which run? Give the work directory of one, such as runs/mine, or of several to compare"
        )
    paths = [path for text in named for path in _work_directories(text)]
    if len(paths) == 1 and not options.runs:
        page = _write_again(paths[0], options.out)
    else:
        page = write_figures(compare(paths), options.out or "runs.html")
    print(hide_home(f"{page}{how_to_open(page)}"))


def _write_again(path: Path, out: str) -> Path:
    """Writes the page of one run from what is in its work directory, and prints its verdict."""
    file = path / "config.py"
    if not file.is_file():
        raise DataError(
            f"{path} is not the work directory of a run: it has no config.py{instead_of(path)}"
        )
    config = read_config(file)
    page = write_run_report(path, config, as_path(out) if out else None)
    print(hide_home(f"{results_and_verdict(path, config)}\n"))
    return page


def _work_directories(text: str) -> list[Path]:
    """Returns the directories that an argument means: itself, or those that its pattern matches."""
    path = as_path(text)
    if not is_remote(path) or "*" not in text:
        return [path]
    folders = [file.parent for file in path.parent.glob(f"{path.name}/config.json")]
    if not folders:
        raise DataError(f"{text}: no work directory matches; check the pattern")
    return folders


if __name__ == "__main__":
    main()
