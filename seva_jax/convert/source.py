"""What an export starts from: a checkpoint directory, and what a run has changed in it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from seva_jax.base_model import Checkpoint
from seva_jax.checkpoint import read_trained
from seva_jax.cli import read_config
from seva_jax.convert.hf_config import read_llava_config
from seva_jax.models import Llava, LlavaConfig, LoraConfig, abstract_variables
from seva_jax.types import DataError


@dataclasses.dataclass(frozen=True)
class Source:
    """A checkpoint directory, perhaps with a finished run that was trained from it.

    Attributes:
        directory: the Hugging Face directory.
        config: its architecture.
        lora: the run's adapters.
        trained: shapes of the run's trained variables, float32, by collection and path joined by
            "/" ("lora/language/layers/q_proj/a"); empty without a run.
        stage: directory of the run's training checkpoints.
    """

    directory: Path
    config: LlavaConfig
    lora: LoraConfig = LoraConfig(rank=0)
    trained: dict[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    stage: Path = Path()

    def read(self, names: Sequence[str]) -> list[np.ndarray]:
        """Some of the trained variables, on the host."""
        here = jax.sharding.SingleDeviceSharding(jax.local_devices(backend="cpu")[0])
        tree: dict = {}
        for name in names:
            *parents, leaf = name.split("/")
            at = tree
            for parent in parents:
                at = at.setdefault(parent, {})
            at[leaf] = jax.ShapeDtypeStruct(self.trained[name], np.float32, sharding=here)
        flat = _flat(read_trained(self.stage, tree))
        return [np.asarray(flat[name]) for name in names]


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
    return Source(directory, config, experiment.lora, trained, path / "checkpoints" / "align")


def _flat(tree: dict) -> dict:
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {
        "/".join(str(k.key) for k in path if isinstance(k, jax.tree_util.DictKey)): leaf
        for path, leaf in leaves
    }
