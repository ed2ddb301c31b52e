"""`python -m seva_jax.convert COMMAND SOURCE OUT`: exports results, converts pickles."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import numpy as np
import tyro

from seva_jax.config.base_models import Checkpoint
from seva_jax.config.config_files import read_config
from seva_jax.config.experiment import Experiment
from seva_jax.config.prior_run import PriorRun
from seva_jax.convert.hf_config import read_llava_config
from seva_jax.convert.load import leaves_by_path, shapes_by_path
from seva_jax.convert.original import tower_directory
from seva_jax.convert.peft import to_peft
from seva_jax.convert.pickles import from_bin
from seva_jax.convert.rewrite import to_hf, to_llava, write_new
from seva_jax.convert.source import Source
from seva_jax.models import Llava, abstract_variables
from seva_jax.run.workdir import instead_of
from seva_jax.runtime.paths import hide_home
from seva_jax.runtime.processes import one_line_errors
from seva_jax.runtime.run_records import read_stages
from seva_jax.training.checkpoint import read_trained
from seva_jax.types import DataError


@dataclasses.dataclass(frozen=True)
class _WholeModel:
    """Options of both layouts.

    Attributes:
        source: work directory of a finished run, or a checkpoint directory.
        out: directory to write; must not exist, or be empty.
        vision_tower: CLIP directory, for a checkpoint in the original layout without its own.
    """

    source: tyro.conf.Positional[Path]
    out: tyro.conf.Positional[Path]
    vision_tower: str = ""


@dataclasses.dataclass(frozen=True)
class ToHF(_WholeModel):
    """Writes the whole model, adapters merged, as a Hugging Face directory.

    LlavaForConditionalGeneration.from_pretrained(OUT) of transformers loads it, and so do vLLM and
    lmms-eval. A checkpoint that already has this layout keeps its tensor names, files and every
    byte that training did not change.
    """


@dataclasses.dataclass(frozen=True)
class ToLlava(_WholeModel):
    """Writes the whole model, adapters merged, in the original LLaVA's layout.

    A checkpoint that already has this layout keeps its tensor names, files and every byte that
    training did not change.
    """


@dataclasses.dataclass(frozen=True)
class ToPeft:
    """Writes the adapters (and the projector, if it was trained) as a PEFT directory.

    PeftModel.from_pretrained(base, OUT) loads it, where base is the checkpoint that the run started
    from, opened with transformers.

    Attributes:
        source: work directory of a finished run.
        out: directory to write; must not exist, or be empty.
    """

    source: tyro.conf.Positional[Path]
    out: tyro.conf.Positional[Path]


@dataclasses.dataclass(frozen=True)
class FromBin:
    """Copies a checkpoint or a LoRA adapter, its .bin files as safetensors. Needs torch.

    No code in the pickles is run: files that hold more than tensors are refused.

    Attributes:
        source: a LLaVA checkpoint, a CLIP directory, or a LoRA adapter, peft's or LLaVA's.
        out: directory to write; must not exist, or be empty.
    """

    source: tyro.conf.Positional[Path]
    out: tyro.conf.Positional[Path]


def open_source(path: Path, vision_tower: str = "") -> Source:
    """Opens the work directory of a finished run, or a checkpoint directory.

    For a run that trained its base model itself, the base model is written to base-hf in the work
    directory.

    Args:
        path: the directory.
        vision_tower: CLIP directory of an original LLaVA checkpoint; a run's config names its own.

    Raises:
        DataError: the directory is neither, or the run or one that it started from has not
            finished.
    """
    if not path.is_dir():
        raise DataError(f"{path} is not a directory; give a work directory or a checkpoint")
    if not (path / "stages.json").exists():
        if several := instead_of(path):
            raise DataError(f"{path} is not a run{several}")
        config = read_llava_config(path, vision_tower)
        return Source(path, tower_directory(path, vision_tower), config)
    if "align" not in read_stages(path):
        raise DataError(f"{path}: alignment has not finished; run seva_jax.train again")
    experiment = dataclasses.replace(read_config(path / "config.py"), workdir=str(path))
    runs = [experiment]  # newest first: the runs whose results the model consists of
    while isinstance(base := experiment.base, PriorRun):
        base.aligned()  # raises if that run has not finished
        experiment = base.earlier()
        runs += [experiment] * base.merge
    directory, vision_tower = _checkpoint(experiment)
    adapter = None
    config = read_llava_config(directory, vision_tower)
    tower = tower_directory(directory, vision_tower)
    if isinstance(base := experiment.base, Checkpoint) and (adapter := base.open_adapter(config)):
        adapter = adapter if base.merge else adapter.without_low_rank()

    def result(run: Experiment) -> Source:
        model = Llava(config, lora=run.lora if run.lora.rank else None)
        shapes = shapes_by_path(abstract_variables(model))
        parts = tuple("lora/" if p == "lora" else f"params/{p}/" for p in run.train.trained)
        trained = {name: shape for name, shape in shapes.items() if name.startswith(parts)}
        read = functools.partial(_read, Path(run.workdir) / "checkpoints" / "align", trained)
        return Source(directory, tower, config, run.lora, trained, read, adapter)

    last, *before = map(result, runs)
    return dataclasses.replace(last, before=tuple(before[::-1]))


def _checkpoint(experiment: Experiment) -> tuple[Path, str]:
    """Returns the checkpoint directory that a run started from, and its CLIP directory or ""."""
    base, workdir = experiment.base, Path(experiment.workdir)
    if isinstance(base, Checkpoint):
        return Path(base.path), base.vision_tower
    directory = workdir / "base-hf"
    if not directory.exists():
        assets = base.assets()
        shapes = shapes_by_path(abstract_variables(Llava(assets.config)))
        read = functools.partial(_read, workdir / "checkpoints" / "base", shapes)
        write_new(directory, assets.config, assets.tokenizer, assets.processing, read)
    return directory, ""


def _read(
    stage: Path, trained: Mapping[str, tuple[int, ...]], names: Sequence[str]
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
    values = leaves_by_path(read_trained(stage, tree))
    return [np.asarray(values[name]) for name in names]


@one_line_errors()
def main() -> None:
    """Runs the command line."""
    command = tyro.extras.subcommand_cli_from_dict(
        {"to-hf": ToHF, "to-llava": ToLlava, "to-peft": ToPeft, "from-bin": FromBin}
    )
    match command:
        case ToHF():
            summary = to_hf(open_source(command.source, command.vision_tower), command.out)
        case ToLlava():
            summary = to_llava(open_source(command.source, command.vision_tower), command.out)
        case ToPeft():
            summary = to_peft(open_source(command.source), command.out)
        case FromBin():
            summary = from_bin(command.source, command.out)
    print(hide_home(summary))


if __name__ == "__main__":
    main()
