"""`python -m seva_jax.convert COMMAND SOURCE OUT`: exports results, converts pickles."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import jax
import numpy as np
import tyro

from seva_jax.config.base_models import Checkpoint
from seva_jax.config.command_line import parse_options
from seva_jax.config.config_files import read_config
from seva_jax.config.experiment import Experiment
from seva_jax.config.prior_run import PriorRun
from seva_jax.convert.hf_config import read_llava_config
from seva_jax.convert.load import leaves_by_path, shapes_by_path
from seva_jax.convert.original_config import tower_directory
from seva_jax.convert.peft import to_llava_lora, to_peft
from seva_jax.convert.pickles import from_bin
from seva_jax.convert.processor import image_processing
from seva_jax.convert.rewrite import require_llava_opens, to_hf, to_llava, write_new
from seva_jax.convert.source import Source
from seva_jax.models import Llava, abstract_variables
from seva_jax.run.weights import (
    Step,
    aligned_checkpoint,
    require_same_base,
    require_same_prior,
)
from seva_jax.run.workdir import instead_of
from seva_jax.runtime.paths import hide_home
from seva_jax.runtime.processes import one_line_errors
from seva_jax.runtime.run_records import read_stages
from seva_jax.runtime.stores import as_path
from seva_jax.training.checkpoint import last_checkpoint, read_variables
from seva_jax.types import DataError

DESCRIPTION = "Exports the result of a run for other tools, and converts pickles."

_Source = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")]
_Out = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]


@dataclasses.dataclass(frozen=True)
class _Export:
    """Options of all exports.

    Attributes:
        source: work directory of a finished run, or a checkpoint directory. This one and `out` may
            be in an object store (gs://BUCKET/NAME).
        out: directory to write; must not exist, or be empty.
        vision_tower: CLIP directory, for a checkpoint in the original layout without its own; not
            for a run, whose config names it.
        step: training step to export, of those that the run kept; "best" is the one with the lowest
            held-out loss, "last" the last one. None takes the run's result, which is the last one
            unless train.keep says "best".
        same_base: do not compare the weights of the base with the record that the run made of
            them. For a quantised base, which another kind of processor may round differently.
    """

    source: _Source
    out: _Out
    vision_tower: str = ""
    step: Step | None = None
    same_base: bool = False


@dataclasses.dataclass(frozen=True)
class ToHF(_Export):
    """Writes the whole model, adapters merged, as a Hugging Face directory.

    LlavaForConditionalGeneration.from_pretrained(OUT) of transformers 4 or 5 loads it; vLLM and
    lmms-eval read this layout. Names are spelled as on the Hub. A checkpoint that already has the
    layout keeps its files and every byte that training did not change.
    """


@dataclasses.dataclass(frozen=True)
class ToLlava(_Export):
    """Writes the whole model, adapters merged, in the original LLaVA's layout.

    A checkpoint that already has this layout keeps its tensor names, files and every byte that
    training did not change.
    """


@dataclasses.dataclass(frozen=True)
class ToPeft(_Export):
    """Writes a run's adapters (and the projector, if it was trained) as a PEFT directory.

    PeftModel.from_pretrained(base, OUT) loads it, where base is the checkpoint that the run started
    from, opened with transformers.
    """


@dataclasses.dataclass(frozen=True)
class ToLlavaLora(_Export):
    """Writes a run's adapters as the original LLaVA's training with LoRA does. Needs torch.

    LLaVA loads OUT as --model-path, with the run's checkpoint as --model-base, which must be in the
    original layout.
    """


@dataclasses.dataclass(frozen=True)
class FromBin:
    """Copies a checkpoint or a LoRA adapter, its .bin files as safetensors. Needs torch.

    No code in the pickles is run: files that hold more than tensors are refused.

    Attributes:
        source: a LLaVA checkpoint, a CLIP directory, or a LoRA adapter, peft's or LLaVA's.
        out: directory to write; must not exist, or be empty.
    """

    source: _Source
    out: _Out


def open_source(
    path: Path, vision_tower: str = "", step: Step | None = None, same_base: bool = False
) -> Source:
    """Opens the work directory of a finished run, or a checkpoint directory.

    For a run that trained its base model itself, the base model is written to base-hf in the work
    directory.

    Args:
        path: the directory.
        vision_tower: CLIP directory of an original LLaVA checkpoint; a run's config names its own,
            and none may be given.
        step: training step of a run, see `aligned_checkpoint`.
        same_base: trust that the base is still what the run was trained on.

    Raises:
        DataError: the directory is neither, or the run or one that it started from has not
            finished, or the base or the last training checkpoint is not what it was.
    """
    if not path.is_dir():
        raise DataError(f"{path} is not a directory; give a work directory or a checkpoint")
    if not (path / "stages.json").exists():
        if several := instead_of(path):
            raise DataError(f"{path} is not a run{several}")
        if (path / "config.py").is_file():
            raise DataError(
                f"{path} is a run without stages.json, which says what has finished: put back a "
                "copy, or run seva_jax.train first"
            )
        if step is not None:
            raise DataError(f"{path} is not the work directory of a run: it has no step {step}")
        config = read_llava_config(path, vision_tower)
        return Source(path, tower_directory(path, vision_tower), config)
    if "align" not in read_stages(path):
        raise DataError(f"{path}: alignment has not finished; run seva_jax.train again")
    if vision_tower:
        raise DataError(
            f"{path} is a run, whose config.py says where its vision tower is: leave out "
            "--vision-tower, or change base.vision_tower there"
        )
    experiment = dataclasses.replace(read_config(path / "config.py"), workdir=str(path))
    template = experiment.text.train
    require_same_prior(experiment)
    runs = [experiment]  # newest first: the runs whose results the model consists of
    while isinstance(base := experiment.base, PriorRun):
        experiment = base.earlier()
        runs += [experiment] * base.merge
    directory, vision_tower, pad_to_square = _checkpoint(experiment)
    config = read_llava_config(directory, vision_tower)
    tower = tower_directory(directory, vision_tower)
    processing = image_processing(directory, tower, pad_to_square)
    checkpoints: dict[str, Path] = {}  # by work directory; all files of each are read once
    for run in (*runs, experiment):
        if run.workdir not in checkpoints:
            chosen = step if run is runs[0] else None
            checkpoints[run.workdir] = aligned_checkpoint(run, chosen)
    adapter = None
    if isinstance(base := experiment.base, Checkpoint):
        if not same_base:
            require_same_base(experiment, config, checkpoints[experiment.workdir])
        adapter = base.merged_adapter(config)

    def result(run: Experiment) -> Source:
        model = Llava(config, lora=run.lora if run.lora.rank else None)
        shapes = shapes_by_path(abstract_variables(model))
        parts = tuple("lora/" if p == "lora" else f"params/{p}/" for p in run.train.trained)
        trained = {name: shape for name, shape in shapes.items() if name.startswith(parts)}
        read = functools.partial(_read, checkpoints[run.workdir], trained)
        return Source(
            directory, tower, config, run.lora, trained, read, processing, template, adapter
        )  # fmt: skip

    last, *before = map(result, runs)
    return dataclasses.replace(last, before=tuple(before[::-1]))


def _checkpoint(experiment: Experiment) -> tuple[Path, str, bool | None]:
    """Returns where a run started from: directory, CLIP directory or "", and `pad_to_square`."""
    base, workdir = experiment.base, as_path(experiment.workdir)
    if isinstance(base, Checkpoint):
        return as_path(base.path), base.vision_tower, base.pad_to_square
    directory = workdir / "base-hf"
    if not directory.exists():
        assets = base.assets()
        shapes = shapes_by_path(abstract_variables(Llava(assets.config)))
        read = functools.partial(_read, last_checkpoint(workdir / "checkpoints" / "base"), shapes)
        template = experiment.text.train
        write_new(directory, assets.config, assets.tokenizer, assets.processing, template, read)
    return directory, "", None


def _read(
    checkpoint: Path, trained: Mapping[str, tuple[int, ...]], names: Sequence[str]
) -> list[np.ndarray]:
    """Reads the named variables, and no others, from a training checkpoint to the host."""
    host = jax.sharding.SingleDeviceSharding(jax.local_devices(backend="cpu")[0])
    tree: dict = {}
    for name in names:
        *parents, leaf = name.split("/")
        branch = tree
        for parent in parents:
            branch = branch.setdefault(parent, {})
        branch[leaf] = jax.ShapeDtypeStruct(trained[name], np.float32, sharding=host)
    values = leaves_by_path(read_variables(checkpoint, tree))
    return [np.asarray(values[name]) for name in names]


@one_line_errors()
def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    kind = ToHF | ToLlava | ToPeft | ToLlavaLora | FromBin
    command = parse_options(kind, "convert", argv, DESCRIPTION)
    print(hide_home(_run(command)))


def _run(command: _Export | FromBin) -> str:
    """Runs a command and returns its summary."""
    out, path = as_path(command.out), as_path(command.source)
    if isinstance(command, FromBin):
        return from_bin(path, out)
    source = open_source(path, command.vision_tower, command.step, command.same_base)
    match command:
        case ToHF():
            return to_hf(source, out)
        case ToLlava():
            require_llava_opens(source, out)
            return to_llava(source, out)
        case ToPeft():
            return to_peft(source, out)
        case ToLlavaLora():
            return to_llava_lora(source, out)
        case _:
            raise AssertionError(command)


if __name__ == "__main__":
    main()
