"""`python -m seva_jax.data check|show|convert|build`: looks at the data of a run, and copies it."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from seva_jax.config.command_line import load_experiment
from seva_jax.config.config_files import config_directory, read_config
from seva_jax.config.experiment import Experiment
from seva_jax.config.source import flatten
from seva_jax.data import json_records
from seva_jax.data.check import check
from seva_jax.data.collect import counted
from seva_jax.data.export import Export, Format, pairs_of
from seva_jax.data.records import build
from seva_jax.data.show import describe
from seva_jax.data.sources import PreferenceSet, PromptSet
from seva_jax.runtime.paths import hide_home
from seva_jax.runtime.processes import one_line_errors
from seva_jax.runtime.progress import Progress
from seva_jax.types import DataError

DESCRIPTION = """Checks, shows, converts or copies the data of a run. Options of seva_jax.train,
such as --prompts.path, change the config. seva_jax/data/README.md lists the sources that a config
can name."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Config:
    """The options of every command.

    Attributes:
        config: config file; its field `prompts` is the data.
    """

    config: Path = config_directory() / "tiny.py"


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Source(_Config):
    """The options of every command that can read the pairs of a run.

    Attributes:
        run: work directory of a run; read its pairs instead of the data of --config.
    """

    run: Path | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Check(_Config):
    """Checks all data of a config, as a run would use it.

    Counts examples, images that are missing or do not decode, and tokens against text.max_length;
    counts what cannot be used by reason, and says where the first ones are. The exit status is 1 if
    nothing can be used or, with --strict, if anything cannot.
    """


@dataclasses.dataclass(frozen=True, kw_only=True)
class Show(_Source):
    """Prints some examples as text.

    Attributes:
        num: number of examples, spread evenly over the data.
    """

    num: int = 5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Convert(_Source):
    """Writes the data in a format of other tools.

    Format "seva" is SeVa's JSON of pairs; "trl" is parquet with the images inside, for TRL's
    DPOTrainer and the library `datasets`; "jsonl" has questions, or pairs with TRL's field names,
    as JSON lines. In "seva" and "jsonl", images keep their names in the source, unless --images is
    given.

    Attributes:
        out: file to write; it must not exist.
        to: format of the file.
        images: folder to write image files to, for "seva" and "jsonl".
    """

    out: tyro.conf.Positional[Path]
    to: Format = "trl"
    images: Path | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Build(_Source):
    """Writes the data and its images to ArrayRecord, which is fast to read at random.

    ArrayRecordPrompts(OUT) reads it, or ArrayRecordPairs(OUT) if it holds pairs. Images keep their
    encoding; examples whose images do not decode are left out and counted.

    Attributes:
        out: folder to write; it must not exist.
    """

    out: tyro.conf.Positional[Path]


def _open(source: _Source, rest: Sequence[str]) -> tuple[PromptSet, str]:
    """Returns the data, and where it is from, in words."""
    if source.run is None:
        prompts = _experiment(source, rest).prompts
        return prompts.open(), f"{type(prompts).__name__} {flatten(prompts)}"
    if rest:
        raise DataError(f"--run takes the config of the run; unknown: {' '.join(rest)}")
    data = read_config(source.run / "config.py").prompts.open()
    pairs = json_records.read_comparisons(source.run / "pairs.array_record")
    prompts = [pair.prompt for pair in pairs]
    data = PreferenceSet(prompts, data.load_image, read_image=data.read_image, comparisons=pairs)
    return data, f"pairs of {source.run}"


def _experiment(options: _Config, rest: Sequence[str]) -> Experiment:
    return load_experiment(DESCRIPTION, ["--config", str(options.config), *rest])[0]


def _check(command: Check, rest: Sequence[str]) -> None:
    experiment = _experiment(command, rest)
    data = experiment.prompts.open()
    max_length = experiment.text.max_length
    encoder = experiment.base.assets().encoder(experiment.prompt_template, max_length)
    checked = check(data, encoder, Progress)
    print(hide_home(checked.describe()))
    if not checked.num_usable:
        sys.exit("error: nothing is usable")
    if experiment.strict:
        checked.require_all()


def _show(command: Show, rest: Sequence[str]) -> None:
    data, _ = _open(command, rest)
    last = len(data.prompts) - 1
    indices = np.linspace(0, last, min(command.num, last + 1)).astype(int).tolist()
    print(describe(data, indices))


def _convert(command: Convert, rest: Sequence[str]) -> None:
    data, _ = _open(command, rest)
    total = sum(1 for _ in pairs_of(data))
    with Progress("convert", total, "example") as bar:
        export = Export(data, command.images, bar.update)
        export(command.to, command.out)
    print(f"{command.out}: {export.num:,} written; left out: {counted(export.drops) or 'none'}")


def _build(command: Build, rest: Sequence[str]) -> None:
    data, source = _open(command, rest)
    with Progress("build", len(data.prompts), "example") as bar:
        index = build(data, command.out, source, bar.update)
    print(
        f"{command.out}: {index['examples']:,} {index['kind']}, {index['images']:,} images, "
        f"{index['bytes'] / 2**20:,.1f} MiB; left out: {counted(index['drops']) or 'none'}"
    )


@one_line_errors()
def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    kind: Any = Check | Show | Convert | Build
    command, rest = tyro.cli(
        kind, prog="python -m seva_jax.data", description=DESCRIPTION, args=argv,
        return_unknown_args=True,
    )  # fmt: skip
    run: Any = {Check: _check, Show: _show, Convert: _convert, Build: _build}[type(command)]
    run(command, rest)


if __name__ == "__main__":
    main()
