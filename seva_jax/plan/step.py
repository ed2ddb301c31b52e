"""What the alignment step asks of a chip, counted from shapes.

For TPUs the compiled program says memory and network (`estimate.py`); for GPUs, for which nothing
can be compiled here, they are counted too.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from seva_jax.batches.trees import RowShape
from seva_jax.config import Experiment
from seva_jax.models import LlavaConfig, LoraConfig
from seva_jax.run.abstract_state import abstract_training
from seva_jax.sharding import row_multiple
from seva_jax.training.flops import forward, hardware_flops
from seva_jax.training.memory import bytes_on_a_device, least_bytes, tower_scores


def step_flops(experiment: Experiment, config: LlavaConfig, shape: RowShape) -> float:
    """Returns the operations that a step executes, over all chips."""
    train, compute = experiment.train, experiment.compute
    once = forward(config, experiment.lora, shape)
    assert compute.remat != "auto"
    row = hardware_flops(once, train.trained, compute.remat)
    if experiment.objective.needs_reference and train.reference == "in_step":
        # The frozen copy; it shares the features of a tower that is not trained with the policy.
        plain = forward(config, LoraConfig(rank=0), shape)
        row += plain.language + plain.projector
        if "vision" in train.trained or once.tower_lora:
            row += plain.tower
    return train.batch_size * row


def step_weights(experiment: Experiment, config: LlavaConfig, mesh: jax.sharding.Mesh) -> float:
    """Returns the bytes of weights to and from memory in one pass over the language model.

    They are read, and also written where they are gathered from other chips.
    """
    width = {"float": 2, "int8": 1, "nf4": 0.56}[experiment.compute.base_weights]
    moved = _layer_parameters(config) * config.text.num_layers * width / mesh.shape["tensor"]
    return moved * (2 if mesh.shape["fsdp"] > 1 else 1)


def gathered_weights(experiment: Experiment, config: LlavaConfig, mesh: jax.sharding.Mesh) -> float:
    """Returns the bytes of weights that a chip sends in one pass over the language model."""
    fsdp = mesh.shape["fsdp"]
    once = step_weights(experiment, config, mesh) / (2 if fsdp > 1 else 1)
    return once * (fsdp - 1) / fsdp


def num_passes(experiment: Experiment) -> int:
    """Returns the passes over the language model in a step: forward, backward, and again."""
    return (3 if experiment.compute.remat == "layers" else 2) * experiment.train.micro_batches


def least_memory(
    experiment: Experiment, config: LlavaConfig, mesh: jax.sharding.Mesh, shape: RowShape
) -> float:
    """Returns a lower bound of the bytes that a step needs on a chip, see `least_bytes`."""
    kept = abstract_training(experiment, config, mesh)
    return least_bytes(
        kept.model, (kept.state, kept.frozen), kept.state.trainable, _rows(experiment, mesh),
        shape.length, mesh.shape["tensor"],
    )  # fmt: skip


def counted_memory(
    experiment: Experiment, config: LlavaConfig, mesh: jax.sharding.Mesh, shape: RowShape
) -> tuple[float, float]:
    """Returns the bytes of arguments and of temporaries of a step on a chip, counted from shapes.

    Beside what `least_memory` counts, one layer is at work: its weights as they are gathered or
    copied, with their gradient's share, and what its backward pass needs at the same time. Without
    rematerialisation the backward pass keeps more than the bound has: both norms and rotary
    embeddings in float32 and bfloat16, and every factor of the MLP. The scores of the vision tower
    come before all that, and stay only where the tower is trained.
    """
    text, tensor = config.text, mesh.shape["tensor"]
    kept = abstract_training(experiment, config, mesh)
    arguments = bytes_on_a_device((kept.state, kept.frozen))
    temporaries = least_memory(experiment, config, mesh, shape) - arguments
    rows = _rows(experiment, mesh)
    width = jnp.dtype(experiment.compute.dtype).itemsize
    heads = text.num_heads * text.head_dim
    if experiment.compute.remat == "none":
        everything = 8 * text.hidden_size + (10 * heads + 4 * text.mlp_size) / tensor
        temporaries = bytes_on_a_device(kept.state.trainable)
        temporaries += rows * shape.length * text.num_layers * everything * width
    kept_deep = len(config.vision.deep_layers)  # what is added after the first layers
    position = (6 + kept_deep) * text.hidden_size + (6 * heads + 5 * text.mlp_size) / tensor
    layer = 2 * _layer_parameters(config) * width / tensor
    answers = min(experiment.compute.head_chunk * shape.branches, shape.targets)
    logits = 3 * 4 * answers * text.vocab_size / tensor
    temporaries += rows * (shape.length * position * width + logits) + layer
    scores = rows * shape.tiles * tower_scores(config, experiment.compute.dtype) / tensor
    if "vision" not in experiment.train.trained:
        return arguments, max(temporaries, scores)
    num_kept = 1 if experiment.compute.remat == "layers" else config.tower_depth
    return arguments, temporaries + num_kept * scores


def counted_network(
    experiment: Experiment, config: LlavaConfig, mesh: jax.sharding.Mesh, shape: RowShape
) -> dict[str, float]:
    """Returns the bytes that a chip sends in a step, by kind of collective, counted from shapes.

    Weights are gathered over fsdp in every pass; gradients are reduced and scattered over fsdp, and
    added over data; tensor adds the results of two products a layer in every pass.
    """
    data, fsdp, tensor = (mesh.shape[name] for name in ("data", "fsdp", "tensor"))
    kept = abstract_training(experiment, config, mesh)
    gradient = bytes_on_a_device(kept.state.trainable)
    passes = num_passes(experiment)
    width = jnp.dtype(experiment.compute.dtype).itemsize
    positions = _rows(experiment, mesh) * shape.length
    added = positions * config.text.hidden_size * width * 2 * config.text.num_layers * passes
    return {
        "all-gather": passes * gathered_weights(experiment, config, mesh),
        "reduce-scatter": gradient * (fsdp - 1) * experiment.train.micro_batches,
        "all-reduce": 2 * gradient * (data - 1) / data + 2 * added * (tensor - 1) / tensor,
    }


def _rows(experiment: Experiment, mesh: jax.sharding.Mesh) -> int:
    """Returns the rows of a micro-batch on a chip."""
    train = experiment.train
    return train.batch_size // train.micro_batches // row_multiple(mesh)


def _layer_parameters(config: LlavaConfig) -> float:
    """Returns the weights of one decoder layer."""
    text = config.text
    wide = (2 * text.num_heads + 2 * text.num_kv_heads) * text.head_dim
    return text.hidden_size * (wide + 3 * text.mlp_size)
