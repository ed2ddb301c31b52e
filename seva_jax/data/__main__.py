"""`python -m seva_jax.data check|show|convert|build`: data before a run, and out of one."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

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

DESCRIPTION = """Data of a run: look at it before, check it, convert it, build a fast copy. Options
of seva_jax.train, such as --prompts.path, change the config. The sources that a config can name
are listed in seva_jax/data/README.md."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Config:
    """What to read.

    Attributes:
        config: config file; its `prompts` are the data.
    """

    config: Path = config_directory() / "tiny.py"


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Source(_Config):
    """What to read.

    Attributes:
        run: work directory of a run; its pairs are taken instead of a config's `prompts`.
    """

    run: Path | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Check(_Config):
    """Looks at all data of a config before a run does.

    Counts examples, missing files and images that do not decode, tokens against text.max_length,
    and what is left out, by reason, with the places of the first. The status is 1 if nothing is
    usable or, with --strict, if anything is not.
    """


@dataclasses.dataclass(frozen=True, kw_only=True)
class Show(_Source):
    """Prints a few examples.

    Attributes:
        num: how many, spread evenly over the data.
    """

    num: int = 5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Convert(_Source):
    """Writes the data in another format.

    "seva" is SeVa's JSON of pairs; "trl" is parquet with images inside, for TRL's DPOTrainer and
    `datasets`; "jsonl" has questions, or pairs with TRL's field names, without images. In "seva"
    and "jsonl" images keep the names they have in the source unless --images is given.

    Attributes:
        out: the new file.
        to: its format.
        images: folder to write the images to, for "seva" and "jsonl".
    """

    out: tyro.conf.Positional[Path]
    to: Format = "trl"
    images: Path | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Build(_Source):
    """Writes the data with its images to ArrayRecord, which is quick to read at random.

    Read it with ArrayRecordPrompts(OUT), or ArrayRecordPairs(OUT) if it holds pairs. Images are
    stored as they are; examples whose images do not decode are left out and counted.

    Attributes:
        out: the new folder.
    """

    out: tyro.conf.Positional[Path]


def _open(source: _Source, rest: Sequence[str]) -> tuple[PromptSet, str]:
    """The data, and where it is from in words."""
    if source.run is None:
        experiment = _experiment(source, rest)
        return experiment.prompts.open(), _words(experiment)
    if rest:
        raise DataError(f"--run takes the config of the run; unknown: {' '.join(rest)}")
    experiment = read_config(source.run / "config.py")
    data = experiment.prompts.open()
    pairs = json_records.read_comparisons(source.run / "pairs.array_record")
    prompts = [c.prompt for c in pairs]
    found = PreferenceSet(prompts, data.load_image, read_image=data.read_image, comparisons=pairs)
    return found, f"pairs of {source.run}"


def _experiment(options: _Config, rest: Sequence[str]) -> Experiment:
    return load_experiment(DESCRIPTION, ["--config", str(options.config), *rest])[0]


def _words(experiment: Experiment) -> str:
    fields = flatten(experiment.prompts)
    return f"{type(experiment.prompts).__name__} {fields}"


def _check(command: Check, rest: Sequence[str]) -> None:
    experiment = _experiment(command, rest)
    data = experiment.prompts.open()
    max_length = experiment.text.max_length
    encoder = experiment.base.assets().encoder(experiment.prompt_template, max_length)
    found = check(data, encoder, Progress)
    print(hide_home(found.describe()))
    if not found.num_usable:
        sys.exit("error: nothing is usable")
    if experiment.strict:
        found.require_all()


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
        f"{index['bytes'] / 2**20:,.1f} MiB; left out: {index['drops'] or 'none'}"
    )


@one_line_errors()
def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    kind: Any = (
        Annotated[Check, tyro.conf.subcommand("check")]
        | Annotated[Show, tyro.conf.subcommand("show")]
        | Annotated[Convert, tyro.conf.subcommand("convert")]
        | Annotated[Build, tyro.conf.subcommand("build")]
    )
    command, rest = tyro.cli(
        kind, prog="python -m seva_jax.data", description=DESCRIPTION, args=argv,
        return_unknown_args=True,
    )  # fmt: skip
    match command:
        case Check():
            _check(command, rest)
        case Show():
            _show(command, rest)
        case Convert():
            _convert(command, rest)
        case Build():
            _build(command, rest)


if __name__ == "__main__":
    main()
