"""`python -m seva_jax.report` writes a page that compares several runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from seva_jax.report.closing import how_to_open
from seva_jax.report.compare import compare
from seva_jax.report.figures import write_figures
from seva_jax.runtime.paths import hide_home
from seva_jax.runtime.processes import one_line_errors
from seva_jax.runtime.stores import as_path, is_remote
from seva_jax.types import DataError


@dataclasses.dataclass(frozen=True)
class ReportOptions:
    """Draws loss and reward margin of several runs against pairs seen and chip-seconds.

    The page of a single run, WORKDIR/report.html, is written by the run itself.

    Attributes:
        runs: work directories, finished or still running. In a bucket, where a shell does not know
            the names, "gs://bucket/runs/*" stands for all of them.
        out: the HTML page to write.
    """

    runs: Annotated[tuple[str, ...], tyro.conf.arg(metavar="WORKDIR ...")]
    out: str = "runs.html"


@one_line_errors()
def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    options = tyro.cli(ReportOptions, args=argv)
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
