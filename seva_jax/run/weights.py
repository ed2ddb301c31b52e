"""A base model that an earlier run made: its config, and its weights from its work directory.

What lives here: `PriorRun`, and reading what a run ended with without repeating any of it. What
does not: which runs follow each other (`stages.py`), adding adapters to weights
(`models/merge.py`). Read next: `Run.start` in `train.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from seva_jax.config.base_models import Checkpoint, TrainedBase
from seva_jax.config.experiment import Experiment
from seva_jax.config.options import make_model
from seva_jax.config.prior_run import PriorRun
from seva_jax.convert import load_params, tower_directory
from seva_jax.models import (
    LlavaConfig,
    abstract_stored,
    abstract_variables,
    merge_adapters,
    quantise_all,
)
from seva_jax.sharding import placed, variable_shardings
from seva_jax.training.checkpoint import read_trained
from seva_jax.training.step import Variables


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
