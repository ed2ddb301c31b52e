"""What alignment keeps on the devices, as shapes with shardings: nothing is allocated.

What lives here: the base's parameters and the training state of a run. What does not: compiling
programs with them (`seva_jax/plan/program.py`), comparing them with the memory of devices
(`preflight.py`).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from seva_jax.config import Checkpoint, Experiment, make_model
from seva_jax.models import Llava, LlavaConfig, abstract_stored, abstract_variables
from seva_jax.sharding import placed, variable_shardings
from seva_jax.training.loop import state_like
from seva_jax.training.step import TrainState, Variables, split_params


class AbstractTraining(NamedTuple):
    """Alignment before its first step, without values.

    Attributes:
        model: the module, with adapters if there are any.
        optimizer: the optimiser.
        state: training state.
        frozen: variables that do not change.
        reference_in_step: whether the step computes the reference.
    """

    model: Llava
    optimizer: optax.GradientTransformation
    state: TrainState
    frozen: Variables
    reference_in_step: bool


def abstract_base(experiment: Experiment, config: LlavaConfig, mesh: jax.sharding.Mesh) -> Any:
    """Returns the abstract "params" collection, in the dtype it is stored in, with shardings."""
    compute = experiment.compute
    boxed = abstract_variables(Llava(config))["params"]
    stored = abstract_stored(boxed, compute.base_weights, compute.param_dtype)
    return placed(stored, variable_shardings(mesh, stored))


def abstract_training(
    experiment: Experiment, config: LlavaConfig, mesh: jax.sharding.Mesh
) -> AbstractTraining:
    """Returns what the alignment of a run keeps on the devices.

    Args:
        experiment: the run.
        config: architecture.
        mesh: real or described devices.

    Raises:
        DataError: the parameters cannot be split over the mesh.
    """
    train = experiment.train
    adapted = experiment.lora if experiment.lora.rank else None
    model = make_model(config, experiment.compute, adapted)
    in_step = experiment.objective.needs_reference and train.reference == "in_step"
    stays, parts = split_params(abstract_base(experiment, config, mesh), train.trained, in_step)
    frozen: dict[str, Any] = {"params": stays}
    trainable: dict[str, Any] = {
        "params": jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, jnp.float32, sharding=x.sharding), parts
        )
    }
    if adapted:
        boxed = abstract_variables(model)["lora"]
        trainable["lora"] = placed(boxed, variable_shardings(mesh, boxed))
        base = experiment.base
        if in_step and isinstance(base, Checkpoint) and not base.merge:
            frozen["lora"] = trainable["lora"]  # the adapters as they were loaded
    optimizer = experiment.optim.make(1000)
    state = state_like(optimizer, mesh, trainable)
    return AbstractTraining(model, optimizer, state, frozen, in_step)
