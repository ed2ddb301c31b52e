"""Lowers a run's programs with abstract arrays, for devices that need not exist.

They are the trainer's own: the step of `seva_jax/training/loop.py`, and prefill and decode of
`seva_jax/inference/sampler.py`. Nothing is allocated.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from seva_jax.batches.trees import RowShape, pack_row
from seva_jax.config import Experiment, make_model
from seva_jax.inference.prefill_shapes import PrefillShape
from seva_jax.inference.rollout_rows import rollout_rows
from seva_jax.inference.sampler import PromptBatch, Sampler, decode, empty_state, refill
from seva_jax.models import LlavaConfig, unstack
from seva_jax.run.abstract_state import abstract_base, abstract_training
from seva_jax.sharding import batch_sharding, row_multiple
from seva_jax.training.loop import jit_step
from seva_jax.training.step import StepOptions
from seva_jax.types import TreeBatch


def lower_step(
    experiment: Experiment, config: LlavaConfig, mesh: jax.sharding.Mesh, shape: RowShape
) -> jax.stages.Lowered:
    """Lowers the alignment step of a run.

    Args:
        experiment: the run.
        config: architecture.
        mesh: real or described devices.
        shape: sizes of a row.
    """
    train, compute = experiment.train, experiment.compute
    needs = abstract_training(experiment, config, mesh)
    model, state, frozen = needs.model, needs.state, needs.frozen
    step = jit_step(
        model,
        experiment.objective,
        needs.optimizer,
        StepOptions(head_chunk=compute.head_chunk),
        needs.reference_in_step,
        jax.tree.map(lambda x: x.sharding, state),
    )
    side = config.vision.image_size
    image_shape, image_dtype = (side, side, 3), np.float32
    if train.feature_cache:
        image_shape, image_dtype = model.feature_kind
    row = pack_row(
        [],
        shape,
        image_shape=image_shape,
        image_dtype=image_dtype,
        tile_features=config.tile_features,
        image_token_id=config.image_token_id,
        pad_id=0,
        native=config.vision.native,
    )
    rows = (train.micro_batches, train.batch_size // train.micro_batches)
    split = batch_sharding(mesh, 1)
    batch: TreeBatch = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((*rows, *x.shape), x.dtype, sharding=split), row
    )
    with jax.set_mesh(mesh):
        return step.lower(state, frozen, batch)


def lower_rollout(
    experiment: Experiment, config: LlavaConfig, mesh: jax.sharding.Mesh, prompt: PrefillShape
) -> tuple[jax.stages.Lowered, jax.stages.Lowered]:
    """Lowers the two programs of rollouts: prefill of new rows, and decoding.

    Args:
        experiment: the run.
        config: architecture.
        mesh: real or described devices.
        prompt: size of a prompt.

    Returns:
        Prefill, which also puts the new rows in the place of finished ones, and decode.
    """
    rollout, eos, pad_id = experiment.rollout, 2, 0
    stacked = make_model(config, experiment.compute)
    base = abstract_base(experiment, config, mesh)
    model, variables = unstack(stacked, {"params": base})
    sampler = Sampler(model, rollout.sampling, (eos,), pad_id, rollout.cache)
    variants = 1 + len(experiment.corrupt)
    layout = rollout_rows(rollout.batch_size, rollout.refill, variants, mesh, 1)
    side = config.vision.image_size
    sharding = batch_sharding(mesh)

    def array(dtype: Any, *shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    fresh, native = layout.fresh, config.vision.native
    batch = PromptBatch(
        array(jnp.int32, fresh, prompt.width),
        array(jnp.bool_, fresh, prompt.width),
        array(jnp.int32, fresh, prompt.width),
        array(jnp.float32, fresh, prompt.tiles, side, side, 3),
        place_BI5=array(jnp.int32, fresh, prompt.tiles, 5) if native else None,
        positions_BS3=array(jnp.int32, fresh, prompt.width, 3) if native else None,
    )
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), fresh))
    keys = jax.ShapeDtypeStruct(keys.shape, keys.dtype, sharding=sharding)
    with jax.set_mesh(mesh):
        empty = empty_state.lower(sampler, layout.rows, prompt.width)
        state = jax.tree.map(
            lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
            empty.out_info,
            empty.compile().output_shardings,
        )
        rows = array(jnp.int32, layout.rows)
        started = refill.lower(
            sampler,
            variables,
            state,
            batch,
            keys,
            array(jnp.int32, fresh),
            rows,
            row_multiple(mesh),
        )
        return started, decode.lower(sampler, variables, state, np.int32(fresh))
