"""A base model that an earlier run made: its config, and its weights from its work directory.

What lives here: `PriorRun`, and reading what a run ended with without repeating any of it. What
does not: which runs follow each other (`stages.py`), adding adapters to weights
(`models/merge.py`). Read next: `Run.start` in `train.py`.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from seva_jax.base_model import Assets, BaseModel, Checkpoint, TrainedBase
from seva_jax.checkpoint import read_trained
from seva_jax.cli import read_config
from seva_jax.convert import load_params, tower_directory
from seva_jax.experiment import Experiment, make_model
from seva_jax.models import (
    LlavaConfig,
    abstract_stored,
    abstract_variables,
    merge_adapters,
    quantise_all,
)
from seva_jax.sharding import placed, variable_shardings
from seva_jax.step import Variables
from seva_jax.types import DataError
from seva_jax.workdir import fingerprint, read_stages


@dataclasses.dataclass(frozen=True)
class PriorRun(BaseModel):
    """The aligned model of a finished run, which may itself have started from another one.

    The work directories of all of them, and the checkpoint that the first one started from, have
    to stay where they are.

    Attributes:
        workdir: that run's.
        merge: add its adapters to the weights, so that the aligned model becomes the reference
            and adapters start anew. Otherwise the reference stays that of the earlier run, and
            adapters and other trained parts go on from where they were; the optimiser starts anew.
    """

    workdir: str = ""
    merge: bool = True

    def assets(self) -> Assets:
        """See `BaseModel.assets`."""
        return self.earlier().base.assets()

    def earlier(self) -> Experiment:
        """The config of the earlier run, which need not have finished.

        Raises:
            DataError: there is no such run.
        """
        path = Path(self.workdir)
        if not self.workdir or not (path / "config.py").is_file():
            raise DataError(
                f"base.workdir {self.workdir!r} is not the work directory of a run (it has no "
                "config.py); run seva_jax.train there first"
            )
        return dataclasses.replace(read_config(path / "config.py"), workdir=self.workdir)

    def aligned(self) -> str:
        """Fingerprint of the model that the earlier run ended with.

        Raises:
            DataError: it has not ended.
        """
        done = read_stages(Path(self.workdir)).get("align")
        if done is None:
            raise DataError(
                f"{self.workdir}: its alignment is not finished, and this run starts from its "
                "result; run it to its end first"
            )
        return done["fingerprint"]


def base_fingerprint(experiment: Experiment) -> str:
    """Fingerprint of what a run starts from; of an earlier run, not where it lies."""
    base, rest = experiment.base, (experiment.seed, experiment.compute)
    if isinstance(base, PriorRun):
        return fingerprint(base.merge, base.aligned(), *rest)
    return fingerprint(base, *rest)


def answers_of_base(experiment: Experiment) -> Path | None:
    """Where a run finds what its base answered to evaluations before, as the earlier run's result.

    Args:
        experiment: the run. None is found unless the earlier run asked in the same way.
    """
    e, base = experiment, experiment.base
    if not isinstance(base, PriorRun):
        return None
    earlier, path = base.earlier(), Path(base.workdir)
    same = (e.compute, e.text.generate, e.text.max_length, e.rollout.cache) == (
        earlier.compute, earlier.text.generate, earlier.text.max_length, earlier.rollout.cache
    )  # fmt: skip
    return path / "evals" / "aligned" if same and "evaluate aligned" in read_stages(path) else None


def problems(experiment: Experiment, earlier: Experiment) -> list[str]:
    """What keeps a run from going on from another one.

    Args:
        experiment: its base is a `PriorRun`.
        earlier: the run named there.
    """
    e, base, found = experiment, experiment.base, []
    assert isinstance(base, PriorRun)
    weights = {e.compute.base_weights, earlier.compute.base_weights}
    if base.merge and weights != {"float"}:
        found.append(
            "the adapters of the run before cannot be merged into quantised weights, whose steps "
            "are larger than what adapters change; set compute.base_weights to float in both "
            "runs, or let the adapters go on (base.merge False, or refresh False of a stage)"
        )
    if base.merge:
        return found
    if missing := sorted(set(earlier.train.trained) - set(e.train.trained)):
        found.append(
            f"train.trained lacks {', '.join(missing)}, which the run before trained and which "
            "would have to go on from there; add it, or set base.merge (refresh of a stage)"
        )
    if "lora" in earlier.train.trained and e.lora != earlier.lora:
        found.append(
            f"lora is {e.lora}, but the adapters that go on are {earlier.lora}; make them equal, "
            "or set base.merge (refresh of a stage)"
        )
    if len(weights) > 1 or e.compute.param_dtype != earlier.compute.param_dtype:
        found.append(
            "compute.param_dtype and compute.base_weights must be those of the run before, whose "
            "reference stays; or set base.merge (refresh of a stage)"
        )
    return found


def reference_params(experiment: Experiment, config: LlavaConfig, mesh: jax.sharding.Mesh) -> Any:
    """Parameters of a run's reference policy, read from its files, sharded, as they are stored.

    Args:
        experiment: the run.
        config: architecture.
        mesh: where they go.

    Raises:
        DataError: a run it started from has not ended; or files that cannot be read.
    """
    e, base = experiment, experiment.base
    boxed = abstract_variables(make_model(config, e.compute))["params"]
    stored = variable_shardings(
        mesh, abstract_stored(boxed, e.compute.base_weights, e.compute.param_dtype)
    )
    if isinstance(base, Checkpoint):
        tower = tower_directory(Path(base.path), base.vision_tower)
        return load_params(
            base.path, config, e.compute.param_dtype, stored, tower, e.compute.base_weights
        )
    if isinstance(base, TrainedBase):
        like = {"params": placed(boxed, variable_shardings(mesh, boxed))}
        trained = read_trained(Path(e.workdir) / "checkpoints" / "base", like)["params"]
        return quantise_all(trained, e.compute.base_weights, stored)
    assert isinstance(base, PriorRun), base
    base.aligned()
    earlier = base.earlier()
    params = reference_params(earlier, config, mesh)
    if not base.merge:
        return params
    trained = trained_variables(earlier, config, mesh)
    return merge_adapters(
        {**params, **trained.get("params", {})}, trained.get("lora", {}), earlier.lora,
        jnp.dtype(e.compute.param_dtype), stored,
    )  # fmt: skip


def trained_variables(
    experiment: Experiment, config: LlavaConfig, mesh: jax.sharding.Mesh
) -> Variables:
    """What a run has trained, as its last checkpoint has it: float32, sharded.

    Args:
        experiment: the run.
        config: architecture.
        mesh: where they go.

    Raises:
        DataError: there is no intact checkpoint.
    """
    e = experiment
    boxed = abstract_variables(make_model(config, e.compute, e.lora if e.lora.rank else None))
    parts = {"params": {p: x for p, x in boxed["params"].items() if p in e.train.trained}}
    if "lora" in e.train.trained:
        parts["lora"] = boxed["lora"]
    like = {
        name: placed(part, variable_shardings(mesh, part)) for name, part in parts.items() if part
    }
    return read_trained(Path(e.workdir) / "checkpoints" / "align", like)
