"""`python -m seva_jax.convert COMMAND SOURCE OUT`: results out, for other tools."""

from __future__ import annotations

import dataclasses
import functools
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import numpy as np
import tyro

from seva_jax.base_model import Checkpoint
from seva_jax.checkpoint import read_trained
from seva_jax.cli import read_config
from seva_jax.convert.export import to_hf
from seva_jax.convert.hf_config import read_llava_config
from seva_jax.convert.peft import to_peft
from seva_jax.convert.source import Source
from seva_jax.models import Llava, abstract_variables
from seva_jax.types import DataError


@dataclasses.dataclass(frozen=True)
class ToHF:
    """The whole model, adapters merged, in the layout of the checkpoint the run started from.

    Loads with transformers' LlavaForConditionalGeneration.from_pretrained(OUT), vLLM, lmms-eval.

    Attributes:
        source: work directory of a finished run.
        out: the new directory.
    """

    source: tyro.conf.Positional[Path]
    out: tyro.conf.Positional[Path]


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


def open_source(path: Path) -> Source:
    """A work directory of `seva_jax.train`, or a checkpoint directory as it is.

    Raises:
        DataError: neither, or a run that is not finished or did not start from a checkpoint.
    """
    if not path.is_dir():
        raise DataError(f"{path} is not a directory; give a work directory or a checkpoint")
    if not (path / "stages.json").exists():
        return Source(path, read_llava_config(path))
    stages = json.loads((path / "stages.json").read_text(encoding="utf-8"))
    if "align" not in stages:
        raise DataError(f"{path}: alignment has not finished; run seva_jax.train again")
    experiment = read_config(path / "config.py")
    if not isinstance(experiment.base, Checkpoint):
        raise DataError(
            f"{path}: this run trained its base model itself and has no checkpoint directory to "
            "write the result into; export runs whose base is a Checkpoint"
        )
    directory = Path(experiment.base.path)
    config = read_llava_config(directory)
    model = Llava(config, lora=experiment.lora if experiment.lora.rank else None)
    shapes = {name: leaf.shape for name, leaf in _flat(abstract_variables(model)).items()}
    parts = ["lora/" if p == "lora" else f"params/{p}/" for p in experiment.train.trained]
    trained = {n: shape for n, shape in shapes.items() if any(n.startswith(p) for p in parts)}
    stage = path / "checkpoints" / "align"
    read = functools.partial(_read, stage, trained)
    return Source(directory, config, experiment.lora, trained, read)


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


def main() -> None:
    """The command line."""
    command = tyro.extras.subcommand_cli_from_dict({"to-hf": ToHF, "to-peft": ToPeft})
    write = {ToHF: to_hf, ToPeft: to_peft}[type(command)]
    try:
        print(write(open_source(command.source), command.out))
    except DataError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
