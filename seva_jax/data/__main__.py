"""`python -m seva_jax.data`: looks at the data of a run, copies it, and previews corruptions."""

from __future__ import annotations

import dataclasses
import inspect
import sys
import textwrap
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

import tyro

from seva_jax.config.command_line import load_experiment, plain_errors, program
from seva_jax.config.config_files import read_config
from seva_jax.config.experiment import Experiment
from seva_jax.config.source import flatten
from seva_jax.corrupt import preview
from seva_jax.corrupt.previews import num_pictures
from seva_jax.data import json_records
from seva_jax.data.check import check
from seva_jax.data.collect import counted
from seva_jax.data.detect import Detected, config_line, detect
from seva_jax.data.export import Export, Format, pairs_of
from seva_jax.data.records import build
from seva_jax.data.show import describe, spread
from seva_jax.data.sources import PreferenceSet, PromptSet, PromptSource
from seva_jax.evals import Questions
from seva_jax.report.closing import how_to_open
from seva_jax.report.corruptions import corruptions_page
from seva_jax.report.document import write_html
from seva_jax.run.own_template import template_warnings, used_templates
from seva_jax.run.used_data import truth_errors, used_data
from seva_jax.runtime.paths import hide_home
from seva_jax.runtime.processes import one_line_errors
from seva_jax.runtime.progress import Progress
from seva_jax.runtime.stores import as_path
from seva_jax.types import DataError

DESCRIPTION = """Checks, shows, converts or copies data: that of a config, or a file in one of the
formats of seva_jax/data/README.md, recognised by its fields. Options of seva_jax.train, such as
--prompts.path, change the config; they come after the files. `corruptions` shows a photograph under
every corruption."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Source:
    """The options of every command.

    Attributes:
        files: FILE, a file or folder of data; none for the data of --config.
        config: config file; its field `prompts` is the data, unless a file is given.
        image_root: folder that the image names in FILE are relative to; FILE's own by default.
        split: the split to read of a folder FILE that holds several, such as "train".
        link_roots: folders outside of the image folder that symbolic links in it may lead to.
    """

    files: tyro.conf.Positional[tuple[str, ...]] = ()
    config: str = ""
    image_root: str = ""
    split: str = ""
    link_roots: tuple[str, ...] = ()

    num_files: ClassVar[tuple[int, ...]] = (0, 1)

    @property
    def file(self) -> str:
        """The data given as a file; empty for the data of a config."""
        return self.files[0] if len(self.files) == max(self.num_files) else ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Check(_Source):
    """Checks all data of a config, as a run would use it, or a file.

    Of a file, says first which format it is in and what to write into a config. Counts examples,
    images that are missing or do not decode, and what cannot be used by reason, and says where the
    first ones are. With --config, also counts tokens against text.max_length, and words that the
    tokenizer lacks. Without a file, looks at the data of the base model's training and of the
    evaluations, too. The exit status is 1 if nothing can be used, if an evaluation has questions
    that cannot be scored or, with --strict, if anything cannot be used.
    """


@dataclasses.dataclass(frozen=True, kw_only=True)
class _OrRun(_Source):
    """The options of every command that can read the pairs of a run.

    Attributes:
        run: work directory of a run; read its pairs instead of the data of --config.
    """

    run: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Show(_OrRun):
    """Prints some examples as text.

    Attributes:
        num: number of examples, spread evenly over the data.
    """

    num: int = 5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Convert(_OrRun):
    """Writes data in a format of other tools: convert [FILE] OUT.

    Format "seva" is SeVa's JSON of pairs; "trl" is parquet with the images inside, for TRL's
    DPOTrainer and the library `datasets`; "jsonl" has questions, or pairs with TRL's field names,
    as JSON lines. In "seva" and "jsonl", images keep their names in the source, unless --images is
    given.

    Attributes:
        files: FILE, a file or folder of data, none for the data of --config; and OUT, the file to
            write, which must not exist.
        to: format of the file.
        images: folder to write image files to, for "seva" and "jsonl".
    """

    to: Format = "trl"
    images: str = ""

    num_files: ClassVar[tuple[int, ...]] = (1, 2)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Build(_OrRun):
    """Writes data and its images to ArrayRecord, which is fast to read at random: build [FILE] OUT.

    ArrayRecordPrompts(OUT) reads it, or ArrayRecordPairs(OUT) if it holds pairs. Images keep their
    encoding; examples whose images do not decode are left out and counted.

    Attributes:
        files: FILE, a file or folder of data, none for the data of --config; and OUT, the folder to
            write, which must not exist.
    """

    num_files: ClassVar[tuple[int, ...]] = (1, 2)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Corruptions:
    """Shows a photograph under every corruption and strength: corruptions PHOTO.

    The line for a config is under every picture.

    Attributes:
        photo: an image file.
        out: the page to write; or, if the name ends in .jpg or .png, a picture of all in a table,
            in which noise looks weaker because it is smaller.
        config: config file; its corruptions come first, at the image size of its model if that is
            there. Otherwise pictures are those that LLaVA-1.5 sees.
        seed: seed of what is random.
    """

    photo: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="PHOTO")]
    out: str = "corruptions.html"
    config: str = ""
    seed: int = 0


def _open(source: _OrRun, rest: Sequence[str]) -> tuple[PromptSet, str]:
    """Returns the data, and where it is from, in words."""
    if not source.run:
        prompts = _of_file(source, rest) if source.file else _experiment(source, rest).prompts
        return prompts.open(), f"{type(prompts).__name__} {flatten(prompts)}"
    if rest or source.file:
        unknown = " ".join([source.file, *rest]).strip()
        raise DataError(f"--run takes the config of the run; unknown: {unknown}")
    run = as_path(source.run)
    data = read_config(run / "config.py").prompts.open()
    pairs = json_records.read_comparisons(run / "pairs.array_record")
    data = PreferenceSet(
        [pair.prompt for pair in pairs], data.load_image, read_image=data.read_image,
        comparisons=pairs, remote=data.remote, read_size=data.read_size,
    )  # fmt: skip
    return data, f"pairs of {source.run}"


def _experiment(options: _Source | Corruptions, rest: Sequence[str]) -> Experiment:
    own = [field.name.replace("_", "-") for field in dataclasses.fields(options)]
    argv = ["--config", options.config or "tiny", *rest]
    command = f"data {type(options).__name__.lower()}"
    return load_experiment(DESCRIPTION, argv, command, own)[0]


def _detect(options: _Source) -> Detected:
    return detect(options.file, options.image_root, options.split, options.link_roots)


def _of_file(options: _Source, rest: Sequence[str]) -> PromptSource:
    if rest:
        raise DataError(f"options of a config, which a file does not have: {' '.join(rest)}")
    return _detect(options).only(options.file)


def _check(command: Check, rest: Sequence[str]) -> None:
    if command.file:
        _check_file(command, rest)
        return
    experiment = _experiment(command, rest)
    assets, max_length = experiment.base.assets(), experiment.text.max_length
    problems = list[str]()
    templates = used_templates(experiment)
    for warning in template_warnings(experiment.base, assets.tokenizer, templates):
        print(hide_home(f"warning: {warning}"))
    for used in used_data(experiment):
        data = used.open()
        checked = check(data, assets.encoder(used.template, max_length, data.image_size), Progress)
        print(hide_home(f"{used.name}:\n{textwrap.indent(checked.describe(), '  ')}"))
        if not checked.num_usable:
            problems.append(f"{used.name}: nothing is usable")
        if isinstance(data, Questions) and (errors := truth_errors(data)):
            fault = f"{len(errors):,} questions cannot be scored; the first: {errors[0]}"
            problems.append(f"{used.name}: {fault}")
            print(hide_home(f"  truth    {fault}"))
        try:
            if experiment.strict:
                checked.require_all(used.prefix)
        except DataError as error:
            problems.append(str(error))
    if problems:
        sys.exit(hide_home("error: " + "\n  ".join(problems)))


def _check_file(command: Check, rest: Sequence[str]) -> None:
    """Checks one file, without a tokenizer unless a config names one."""
    detected = _detect(command)
    source = detected.only(command.file)
    about = (inspect.getdoc(type(source)) or "").splitlines()[0]
    print(f"format   {type(source).__name__}: {about}")
    print(f"fields   {', '.join(detected.fields) or 'none'}")
    for title, each in (("config", source), *(("also", each) for each in detected.also)):
        lines = textwrap.indent(config_line(each), " " * 9)
        print(f"{title:<9}{lines.removeprefix(' ' * 9)}")
    data, encoder, strict = source.open(), None, False
    if command.config or rest:
        experiment = _experiment(command, rest)
        experiment = dataclasses.replace(experiment, prompts=source)
        template, strict = experiment.prompt_template, experiment.strict
        assets, max_length = experiment.base.assets(), experiment.text.max_length
        encoder = assets.encoder(template, max_length, data.image_size)
    checked = check(data, encoder, Progress)
    print(checked.describe())
    if not checked.num_usable:
        sys.exit("error: nothing is usable")
    if strict:
        checked.require_all()


def _show(command: Show, rest: Sequence[str]) -> None:
    data, _ = _open(command, rest)
    print(describe(data, spread(len(data.prompts), command.num)))


def _convert(command: Convert, rest: Sequence[str]) -> None:
    data, _ = _open(command, rest)
    out, total = as_path(command.files[-1]), sum(1 for _ in pairs_of(data))
    images = as_path(command.images) if command.images else None
    with Progress("convert", total, "example") as bar:
        export = Export(data, images, bar.update)
        export(command.to, out)
    print(f"{out}: {export.num:,} written; left out: {counted(export.drops) or 'none'}")


def _build(command: Build, rest: Sequence[str]) -> None:
    data, source = _open(command, rest)
    out = as_path(command.files[-1])
    with Progress("build", len(data.prompts), "example") as bar:
        index = build(data, out, source, bar.update)
    print(
        f"{out}: {index['examples']:,} {index['kind']}, {index['images']:,} images, "
        f"{index['bytes'] / 2**20:,.1f} MiB; left out: {counted(index['drops']) or 'none'}"
    )


def _corruptions(command: Corruptions, rest: Sequence[str]) -> None:
    own, processing = (), None
    if command.config or rest:
        experiment = _experiment(command, rest)
        own = experiment.corrupt
        try:
            processing = experiment.base.assets().processing
        except DataError as error:
            print(hide_home(f"pictures are those that LLaVA-1.5 sees: {error}"))
    with Progress("corruptions", num_pictures(own), "picture") as bar:
        shown = preview(
            command.photo, own, processing=processing, seed=command.seed,
            tick=lambda: bar.update(1),
        )  # fmt: skip
    out = as_path(command.out)
    if out.suffix.lower() in (".jpg", ".png"):
        shown.save_sheet(out)
    else:
        write_html(corruptions_page(shown, as_path(command.photo).name), out)
    print(f"{out}: {num_pictures(own)} pictures{how_to_open(out)}")


@one_line_errors()
def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    kind: Any = Check | Show | Convert | Build | Corruptions
    with plain_errors(program("data")):
        command, rest = tyro.cli(
            kind, prog=program("data"), description=DESCRIPTION, args=argv,
            return_unknown_args=True,
        )  # fmt: skip
    if isinstance(command, Corruptions):
        return _corruptions(command, rest)
    num = len(command.files)
    if num not in command.num_files:
        raise DataError(f"{num} files given; {type(command).__name__.lower()} --help says which")
    run: Any = {Check: _check, Show: _show, Convert: _convert, Build: _build}[type(command)]
    run(command, rest)


if __name__ == "__main__":
    main()
