"""The weights of a run, read from its files and those of the runs it started from.

What lives here: reading what a run started from and what it trained. What does not: which runs
follow each other (`seva_jax/config/rounds.py`), merging adapters (`seva_jax/models/merge.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from seva_jax.config import Checkpoint, Experiment, PriorRun, TrainedBase, make_model
from seva_jax.convert import load_params, read_lora, tower_directory
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


def reference_params(config: Experiment, model: LlavaConfig, mesh: jax.sharding.Mesh) -> Any:
    """Reads the parameters of a run's reference policy, sharded, as the run stores them.

    Args:
        config: the run's config.
        model: architecture.
        mesh: where they go.

    Raises:
        DataError: a run it started from is not finished, or files cannot be read.
    """
    base, compute = config.base, config.compute
    boxed = abstract_variables(make_model(model, compute))["params"]
    stored = variable_shardings(
        mesh, abstract_stored(boxed, compute.base_weights, compute.param_dtype)
    )
    if isinstance(base, Checkpoint):
        tower = tower_directory(Path(base.path), base.vision_tower)
        adapter = base.open_adapter(model)
        if adapter and not base.merge:
            adapter = adapter.without_low_rank()
        return load_params(
            base.path, model, compute.param_dtype, stored, tower, compute.base_weights,
            adapter=adapter,
        )  # fmt: skip
    if isinstance(base, TrainedBase):
        like = {"params": placed(boxed, variable_shardings(mesh, boxed))}
        trained = read_trained(Path(config.workdir) / "checkpoints" / "base", like)["params"]
        return quantise_all(trained, compute.base_weights, stored)
    assert isinstance(base, PriorRun), base
    base.aligned()
    earlier = base.earlier()
    params = reference_params(earlier, model, mesh)
    if not base.merge:
        return params
    trained = trained_variables(earlier, model, mesh)
    return merge_adapters(
        {**params, **trained.get("params", {})}, trained.get("lora", {}), earlier.lora,
        jnp.dtype(compute.param_dtype), stored,
    )  # fmt: skip


def reference_adapters(config: Experiment, model: LlavaConfig, mesh: jax.sharding.Mesh) -> Any:
    """Reads the "lora" collection of a run's reference policy; {} if that has no adapters.

    It has some where the adapters of a `Checkpoint` are trained further, in this run or in one that
    it continues: the adapters as they were loaded, float32.

    Args:
        config: the run's config.
        model: architecture.
        mesh: where they go.
    """
    base = config.base
    if isinstance(base, PriorRun) and not base.merge:
        return reference_adapters(base.earlier(), model, mesh)
    if not isinstance(base, Checkpoint) or base.merge:
        return {}
    adapter = base.open_adapter(model)
    assert adapter is not None, "`Checkpoint.assets` refuses it"
    boxed = abstract_variables(make_model(model, config.compute, config.lora))["lora"]
    return read_lora(adapter, placed(boxed, variable_shardings(mesh, boxed)))


def trained_variables(
    config: Experiment,
    model: LlavaConfig,
    mesh: jax.sharding.Mesh,
    steps: int | None = None,
    facts: Mapping[str, Any] | None = None,
) -> Variables:
    """Reads what a run has trained from its last checkpoint: float32, sharded.

    Args:
        config: the run's config.
        model: architecture.
        mesh: where they go.
        steps: the step that the checkpoint must be of; None takes the newest intact one.
        facts: what the checkpoint must share with the run; None compares nothing.

    Raises:
        DataError: there is no such checkpoint, or it is damaged.
    """
    trained = config.train.trained
    lora = config.lora if config.lora.rank else None
    boxed = abstract_variables(make_model(model, config.compute, lora))
    parts = {"params": {p: x for p, x in boxed["params"].items() if p in trained}}
    if "lora" in trained:
        parts["lora"] = boxed["lora"]
    like = {
        name: placed(part, variable_shardings(mesh, part)) for name, part in parts.items() if part
    }
    folder = Path(config.workdir) / "checkpoints" / "align"
    return read_trained(folder, like, steps, facts)
