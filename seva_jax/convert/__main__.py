"""`python -m seva_jax.convert COMMAND SOURCE OUT`: results out, for other tools; pickles in."""

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
    """What both layouts take.

    Attributes:
        source: work directory of a finished run, or a checkpoint.
        out: the new directory.
        vision_tower: CLIP directory, for a checkpoint in the original layout that needs one.
    """

    source: tyro.conf.Positional[Path]
    out: tyro.conf.Positional[Path]
    vision_tower: str = ""


@dataclasses.dataclass(frozen=True)
class ToHF(_WholeModel):
    """The whole model, adapters merged, as a Hugging Face directory.

    Loads with transformers' LlavaForConditionalGeneration.from_pretrained(OUT), vLLM, lmms-eval.
    Keeps names, sharding and untouched bytes of a checkpoint that already has this layout.
    """


@dataclasses.dataclass(frozen=True)
class ToLlava(_WholeModel):
    """The whole model, adapters merged, in the original LLaVA's layout.

    Keeps names, sharding and untouched bytes of a checkpoint that already has this layout.
    """


@dataclasses.dataclass(frozen=True)
class ToPeft:
    """The adapters (and the projector, if it was trained) as a PEFT directory.

    Loads with PeftModel.from_pretrained(base, OUT), where base is the checkpoint the run started
    from, opened with transformers.

    Attributes:
        source: work directory of a finished run.
        out: the new directory.
    """

    source: tyro.conf.Positional[Path]
    out: tyro.conf.Positional[Path]


@dataclasses.dataclass(frozen=True)
class FromBin:
    """A checkpoint or CLIP directory with pytorch_model*.bin files, as safetensors. Needs torch.

    Nothing in the pickles is run: files that hold more than tensors are refused.

    Attributes:
        source: the directory.
        out: the new directory.
    """

    source: tyro.conf.Positional[Path]
    out: tyro.conf.Positional[Path]


def open_source(path: Path, vision_tower: str = "") -> Source:
    """A work directory of `seva_jax.train`, or a checkpoint directory as it is.

    A run that trained its base model itself gets a checkpoint to start from, base-hf in its work
    directory.

    Args:
        path: the directory.
        vision_tower: CLIP directory of an original LLaVA; a run has its own.

    Raises:
        DataError: neither, or a run that is not finished.
    """
    if not path.is_dir():
        raise DataError(f"{path} is not a directory; give a work directory or a checkpoint")
    if not (path / "stages.json").exists():
        if several := instead_of(path):
            raise DataError(f"{path} is no run{several}")
        config = read_llava_config(path, vision_tower)
        return Source(path, tower_directory(path, vision_tower), config)
    if "align" not in read_stages(path):
        raise DataError(f"{path}: alignment has not finished; run seva_jax.train again")
    experiment = dataclasses.replace(read_config(path / "config.py"), workdir=str(path))
    runs = [experiment]  # newest first: those whose results are parts of this one's
    while isinstance(base := experiment.base, PriorRun):
        base.aligned()
        experiment = base.earlier()
        runs += [experiment] * base.merge
    if isinstance(experiment.base, Checkpoint):
        directory, vision_tower = Path(experiment.base.path), experiment.base.vision_tower
    else:
        directory, vision_tower = Path(experiment.workdir) / "base-hf", ""
    if not isinstance(experiment.base, Checkpoint) and not directory.exists():
        assets = experiment.base.assets()
        trained_here = Path(experiment.workdir) / "checkpoints" / "base"
        read = functools.partial(_read, trained_here, _shapes(Llava(assets.config)))
        write_new(directory, assets.config, assets.tokenizer, assets.processing, read)
    config = read_llava_config(directory, vision_tower)
    tower = tower_directory(directory, vision_tower)

    def result(run: Experiment) -> Source:
        shapes = _shapes(Llava(config, lora=run.lora if run.lora.rank else None))
        parts = ["lora/" if p == "lora" else f"params/{p}/" for p in run.train.trained]
        trained = {n: shape for n, shape in shapes.items() if any(n.startswith(p) for p in parts)}
        read = functools.partial(_read, Path(run.workdir) / "checkpoints" / "align", trained)
        return Source(directory, tower, config, run.lora, trained, read)

    last, *before = map(result, runs)
    return dataclasses.replace(last, before=tuple(before[::-1]))


def _shapes(model: Llava) -> dict[str, tuple[int, ...]]:
    return {name: leaf.shape for name, leaf in _flat(abstract_variables(model)).items()}


def _read(
    stage: Path, trained: Mapping[str, tuple[int, ...]], names: Sequence[str]
) -> list[np.ndarray]:
    """Variables from a training checkpoint, on the host; nothing else is read."""
    here = jax.sharding.SingleDeviceSharding(jax.local_devices(backend="cpu")[0])
    tree: dict = {}
    for name in names:
        *parents, leaf = name.split("/")
        at = tree
        for parent in parents:
            at = at.setdefault(parent, {})
        at[leaf] = jax.ShapeDtypeStruct(trained[name], np.float32, sharding=here)
    flat = _flat(read_trained(stage, tree))
    return [np.asarray(flat[name]) for name in names]


def _flat(tree: dict) -> dict:
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {
        "/".join(str(k.key) for k in path if isinstance(k, jax.tree_util.DictKey)): leaf
        for path, leaf in leaves
    }


@one_line_errors()
def main() -> None:
    """The command line."""
    command = tyro.extras.subcommand_cli_from_dict(
        {"to-hf": ToHF, "to-llava": ToLlava, "to-peft": ToPeft, "from-bin": FromBin}
    )
    match command:
        case ToHF():
            done = to_hf(open_source(command.source, command.vision_tower), command.out)
        case ToLlava():
            done = to_llava(open_source(command.source, command.vision_tower), command.out)
        case ToPeft():
            done = to_peft(open_source(command.source), command.out)
        case FromBin():
            done = from_bin(command.source, command.out)
    print(hide_home(done))


if __name__ == "__main__":
    main()
