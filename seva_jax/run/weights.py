"""The weights of a run, read from its files and those of the runs it started from.

What lives here: reading what a run started from and what it trained, and checking that the former
has not changed since. What does not: which runs follow each other (`seva_jax/config/rounds.py`),
merging adapters (`seva_jax/models/merge.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp

from seva_jax.config import (
    Checkpoint,
    ComputeOptions,
    Experiment,
    PriorRun,
    ReducedBase,
    TrainedBase,
    fingerprint,
    make_model,
)
from seva_jax.config.prior_run import base_fingerprint
from seva_jax.convert import load_params, read_lora, tower_directory
from seva_jax.models import (
    LlavaConfig,
    abstract_params,
    abstract_stored,
    abstract_variables,
    init_variables,
    merge_adapters,
    quantise_all,
)
from seva_jax.runtime.progress import Progress
from seva_jax.runtime.run_records import read_stages
from seva_jax.runtime.stores import as_path
from seva_jax.sharding import placed, variable_shardings
from seva_jax.training.checkpoint import (
    checkpoint_of,
    checksum,
    last_checkpoint,
    read_facts,
    read_trained,
    read_variables,
)
from seva_jax.training.held_out import HeldOutResult, read_held_out
from seva_jax.training.step import Variables, merge, split_params
from seva_jax.types import DataError

Step = int | Literal["best", "last"]  # of an alignment


def reference_params(config: Experiment, model: LlavaConfig, mesh: jax.sharding.Mesh) -> Any:
    """Reads the parameters of a run's reference policy, sharded, as the run stores them.

    Args:
        config: the run's config.
        model: architecture.
        mesh: where they go.

    Raises:
        DataError: a run it started from is not finished, or had another base than is there now,
            or files cannot be read.
    """
    base, compute = config.base, config.compute
    boxed = abstract_variables(make_model(model, compute))["params"]
    stored = variable_shardings(
        mesh, abstract_stored(boxed, compute.base_weights, compute.param_dtype)
    )
    if isinstance(base, Checkpoint):
        return _read_base(base, compute, model, stored)
    if isinstance(base, TrainedBase):
        like = {"params": placed(boxed, variable_shardings(mesh, boxed))}
        trained = read_trained(as_path(config.workdir) / "checkpoints" / "base", like)["params"]
        return quantise_all(trained, compute.base_weights, stored)
    if isinstance(base, ReducedBase):
        full = variable_shardings(mesh, boxed)
        random = init_variables(make_model(model, compute), "params", full, config.seed)
        kind = jnp.dtype(compute.param_dtype)
        random = jax.tree.map(lambda leaf: leaf.astype(kind), random)
        return quantise_all(random, compute.base_weights, stored)
    assert isinstance(base, PriorRun), base
    base.aligned()
    earlier = base.earlier()
    params = reference_params(earlier, model, mesh)
    checked = isinstance(earlier.base, Checkpoint) and earlier.compute.base_weights == "float"
    if not checked and not base.merge:
        return params
    checkpoint = aligned_checkpoint(earlier)
    if checked:
        _refuse_other_base(earlier, checkpoint, jax.tree.map(checksum, params))
    if not base.merge:
        return params
    trained = read_variables(checkpoint, _trained_like(earlier, model, mesh))
    return merge_adapters(
        {**params, **trained.get("params", {})}, trained.get("lora", {}), earlier.lora,
        jnp.dtype(compute.param_dtype), stored,
    )  # fmt: skip


def _read_base(
    base: Checkpoint,
    compute: ComputeOptions,
    model: LlavaConfig,
    shardings: Any = None,
    each: Callable[[Any], Any] = lambda leaf: leaf,
) -> Any:
    """Reads a checkpoint as a run stores it; see `load_params` for the last two arguments."""
    tower = tower_directory(as_path(base.path), base.vision_tower)
    return load_params(
        base.path, model, compute.param_dtype, shardings, tower, compute.base_weights, each,
        base.merged_adapter(model),
    )  # fmt: skip


def require_same_base(config: Experiment, model: LlavaConfig, checkpoint: Path) -> None:
    """Checks that a run's base checkpoint is the one that the run was trained on.

    It is read one parameter at a time.

    Args:
        config: the run's config; its base is a `Checkpoint`.
        model: architecture.
        checkpoint: one of the training checkpoints of the run's alignment, which record the frozen
            weights.

    Raises:
        DataError: the directory holds other weights now.
    """
    assert isinstance(config.base, Checkpoint), config.base
    num = len(jax.tree.leaves(abstract_params(make_model(model, config.compute))))
    with Progress("compare the base", num, "parameter") as bar:

        def one(leaf: Any) -> list[int]:
            bar.update()
            return checksum(leaf)

        numbers = _read_base(config.base, config.compute, model, each=one)
    _refuse_other_base(config, checkpoint, numbers)


def _refuse_other_base(config: Experiment, checkpoint: Path, numbers: Any) -> None:
    """Compares `checksum`s of a base's parameters, in a tree, with those that a run recorded."""
    base, train = config.base, config.train
    recorded = read_facts(checkpoint).get("frozen weights")
    in_step = config.objective.needs_reference and train.reference == "in_step"
    frozen, _ = split_params(numbers, train.trained, in_step)
    if recorded in (None, "none"):
        return
    if fingerprint(jax.tree.leaves({"params": frozen})) != recorded:
        if not isinstance(base, Checkpoint):
            raise DataError(
                f"the base of {config.workdir} has other weights than when it was trained on; run "
                "seva_jax.train there again, or put the earlier files back"
            )
        quantised = config.compute.base_weights != "float"
        adapter = f" with the adapter {base.adapter}" if base.adapter else ""
        raise DataError(
            f"{base.path}{adapter} holds other weights than when {config.workdir} was trained on "
            "it: put the files back, or give their new place in the run's config.py, as base.path"
            + " or base.adapter" * bool(adapter)
            + quantised * (
                ". Another kind of processor may also have quantised the same weights with other "
                "rounding; if you know that they are the same, give --same-base"
            )
        )  # fmt: skip


def _refuse_other_adapter(config: Experiment, checkpoint: Path, adapters: Any) -> None:
    """Compares the adapters that a run continued with those that it recorded."""
    assert isinstance(config.base, Checkpoint), config.base
    recorded = read_facts(checkpoint).get("base.adapter")
    if recorded not in (None, fingerprint(checksum(adapters))):
        raise DataError(
            f"{config.base.adapter} holds another adapter than when {config.workdir} continued "
            "it: put the adapter back, or give its new place as base.adapter in the run's config.py"
        )


def require_same_prior(config: Experiment) -> None:
    """Checks that the runs that a run started from have the results that it started from.

    Raises:
        DataError: one of them is not finished, or has another result now.
    """
    while isinstance(base := config.base, PriorRun):
        base.aligned()
        recorded = read_stages(as_path(config.workdir)).get("base", {}).get("fingerprint")
        if recorded not in (None, base_fingerprint(config)):
            raise DataError(
                f"{base.workdir} has another result now than when {config.workdir} started "
                "from it; run seva_jax.train there again, or put the earlier result back"
            )
        config = base.earlier()


def require_trained_on(config: Experiment, checkpoint: Path, reference: Variables) -> None:
    """Checks that a run was trained on a reference policy.

    Args:
        config: the run's config.
        checkpoint: one of the training checkpoints of its alignment.
        reference: the variables of the policy that is the reference now.

    Raises:
        DataError: its weights or adapters are others than those that the checkpoint records.
    """
    _refuse_other_base(config, checkpoint, jax.tree.map(checksum, reference["params"]))
    if "lora" in reference and isinstance(config.base, Checkpoint):
        _refuse_other_adapter(config, checkpoint, reference["lora"])


def reference_adapters(config: Experiment, model: LlavaConfig, mesh: jax.sharding.Mesh) -> Any:
    """Reads the "lora" collection of a run's reference policy; {} if that has no adapters.

    It has some where the adapters of a `Checkpoint` are trained further, in this run or in one that
    it continues: the adapters as they were loaded, float32.

    Args:
        config: the run's config.
        model: architecture.
        mesh: where they go.

    Raises:
        DataError: they cannot be read, or are not those that an earlier run continued.
    """
    base = config.base
    if isinstance(base, PriorRun) and not base.merge:
        earlier = base.earlier()
        adapters = reference_adapters(earlier, model, mesh)
        if adapters and isinstance(earlier.base, Checkpoint):
            _refuse_other_adapter(earlier, aligned_checkpoint(earlier), adapters)
        return adapters
    if not isinstance(base, Checkpoint) or base.merge:
        return {}
    adapter = base.open_adapter(model)
    assert adapter is not None, "`Checkpoint.assets` refuses it"
    boxed = abstract_variables(make_model(model, config.compute, config.lora))["lora"]
    return read_lora(adapter, placed(boxed, variable_shardings(mesh, boxed)))


def start_variables(
    config: Experiment, model: LlavaConfig, mesh: jax.sharding.Mesh, reference: Variables
) -> Variables:
    """Returns the policy before alignment, which answers prompts and is evaluated as base.

    These are the reference's variables, unless the adapters of an earlier run are trained further.

    Args:
        config: the run's config.
        model: architecture.
        mesh: where they go.
        reference: variables of the reference policy.
    """
    if not isinstance(config.base, PriorRun) or config.base.merge:
        return reference
    return merge(reference, trained_variables(config.base.earlier(), model, mesh))


def variables_of(
    config: Experiment, model: LlavaConfig, mesh: jax.sharding.Mesh, checkpoint: Path
) -> Variables:
    """Reads what a run has trained from one of its checkpoints, found intact: float32, sharded.

    Args:
        config: the run's config.
        model: architecture.
        mesh: where they go.
        checkpoint: one of the training checkpoints of its alignment.

    Raises:
        DataError: the checkpoint is of another model.
    """
    return read_variables(checkpoint, _trained_like(config, model, mesh))


def trained_variables(
    config: Experiment,
    model: LlavaConfig,
    mesh: jax.sharding.Mesh,
    step: Step | None = None,
    steps: int | None = None,
    facts: Mapping[str, Any] | None = None,
) -> Variables:
    """Reads what a run has trained from one of its checkpoints: float32, sharded.

    Args:
        config: the run's config.
        model: architecture.
        mesh: where they go.
        step: see `aligned_checkpoint`.
        steps: see `aligned_checkpoint`.
        facts: see `aligned_checkpoint`.

    Raises:
        DataError: there is no such checkpoint, or it is damaged.
    """
    return variables_of(config, model, mesh, aligned_checkpoint(config, step, steps, facts))


def aligned_checkpoint(
    config: Experiment,
    step: Step | None = None,
    steps: int | None = None,
    facts: Mapping[str, Any] | None = None,
) -> Path:
    """Returns a checkpoint of a finished alignment, after comparing its files with their digests.

    Args:
        config: the run's config.
        step: a number, the "last" step, or the "best" by held-out loss; None takes the one whose
            model is the aligned one, see `TrainOptions.keep`.
        steps: planned steps of the alignment; None takes what its checkpoints record.
        facts: what the checkpoint must share with the run; None compares nothing.

    Raises:
        DataError: there is no such checkpoint, or it is damaged or of another run.
    """
    directory = alignment_checkpoints(config)
    if isinstance(step, int):
        return checkpoint_of(directory, step, facts)  # also while the run is training
    result = held_out_result(config)
    if step == "best":
        if result is None or result.best_step is None:
            why = "its loss was never finite" if result else "it held out no pairs"
            raise DataError(
                f"{config.workdir}: no step is known to be the best ({why}, train.eval_fraction "
                f"{config.train.eval_fraction:g}); give a number, or last"
            )
        return checkpoint_of(directory, result.best_step, facts)
    if result is None or step == "last" or result.kept_step == result.last_step:
        return last_checkpoint(directory, result.last_step if result else steps, facts)
    return checkpoint_of(directory, result.kept_step, facts)


def held_out_result(config: Experiment) -> HeldOutResult | None:
    """Returns what held-out pairs said about a finished alignment; None if there are none.

    Raises:
        DataError: its record is missing or damaged.
    """
    return read_held_out(as_path(config.workdir)) if config.train.eval_fraction else None


def alignment_checkpoints(config: Experiment) -> Path:
    """Returns the folder of a run's alignment checkpoints."""
    return as_path(config.workdir) / "checkpoints" / "align"


def _trained_like(config: Experiment, model: LlavaConfig, mesh: jax.sharding.Mesh) -> Variables:
    """Returns shapes and shardings of what a run trains."""
    trained = config.train.trained
    lora = config.lora if config.lora.rank else None
    boxed = abstract_variables(make_model(model, config.compute, lora))
    parts = {"params": {p: x for p, x in boxed["params"].items() if p in trained}}
    if "lora" in trained:
        parts["lora"] = boxed["lora"]
    return {
        name: placed(part, variable_shardings(mesh, part)) for name, part in parts.items() if part
    }
