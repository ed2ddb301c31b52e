"""`python -m seva_jax.report` writes a page that compares several runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from seva_jax.report.compare import compare
from seva_jax.report.figures import write_figures
from seva_jax.runtime.paths import hide_home
from seva_jax.runtime.processes import one_line_errors
from seva_jax.types import DataError


@dataclasses.dataclass(frozen=True)
class ReportOptions:
    """Draws loss and reward margin of several runs against pairs seen and chip-seconds.

    The page of a single run, WORKDIR/report.html, is written by the run itself.

    Attributes:
        runs: work directories, finished or still running.
        out: the HTML page to write.
    """

    runs: Annotated[tuple[Path, ...], tyro.conf.arg(metavar="WORKDIR ...")]
    out: Path = Path("runs.html")


@one_line_errors()
def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    options = tyro.cli(ReportOptions, args=argv)
    if not options.runs:
        raise DataError("--runs needs at least one work directory")
    print(hide_home(str(write_figures(compare(options.runs), options.out))))


if __name__ == "__main__":
    main()
