"""Training stages inside a work directory: checkpoints, metrics, and what both depend on."""

from __future__ import annotations

from typing import Any

from seva_jax.batches.pipeline import ComparisonRows
from seva_jax.config import fingerprint, with_effect
from seva_jax.data.json_records import fields
from seva_jax.run.context import RunContext
from seva_jax.run.leaves import CHECKPOINTS, Leaves
from seva_jax.runtime.processes import on_first_process
from seva_jax.text.tokenizer import tokenizer_facts
from seva_jax.training.checkpoint import checksum, read_position
from seva_jax.training.compiled_step import chosen_remat
from seva_jax.training.held_out import STAGE
from seva_jax.training.loop import fit
from seva_jax.training.step import Variables
from seva_jax.training.task import Site, Task


def fit_stage(
    ctx: RunContext, task: Task, frozen: Variables, trainable: Variables, adapters: Any = None
) -> Variables:
    """Trains to the last step, or resumes, and returns the trained variables.

    Args:
        ctx: the run.
        task: what to train.
        frozen: variables that do not change.
        trainable: variables at step 0, float32.
        adapters: see `checkpoint_facts`.
    """
    site = Site(
        mesh=ctx.mesh,
        folder=ctx.workdir.path,
        facts=checkpoint_facts(ctx, task, frozen, adapters),
        seed=ctx.config.seed,
        shapes=ctx.row_shapes,
        step_options=ctx.step_options,
        remat=ctx.config.compute.remat,
        log=ctx.workdir.metrics(task.name),
        held_out_log=ctx.workdir.metrics(STAGE) if task.held_out is not None else None,
    )
    return fit(task, site, frozen, trainable)


def remat_in_words(ctx: RunContext, name: str) -> str:
    """Returns what a finished training recomputed, to follow its summary; "" if that was given.

    Args:
        ctx: the run.
        name: name of the training.
    """
    if ctx.config.compute.remat != "auto":
        return ""

    def read() -> str:
        folder = f"{CHECKPOINTS}/{name}"
        step = max(Leaves(ctx.workdir.path).steps(folder), default=None)
        return "" if step is None else chosen_remat(
            read_position(ctx.workdir.path / folder / str(step))
        )  # fmt: skip

    remat = on_first_process(read)
    return f"; remat {remat}" if remat else ""


def checkpoint_facts(
    ctx: RunContext, task: Task, frozen: Variables, adapters: Any = None
) -> dict[str, Any]:
    """Returns what a checkpoint depends on, also where config.json does not show it.

    Files, for example, count by their content.

    Args:
        ctx: the run.
        task: what is trained.
        frozen: variables that do not change.
        adapters: the base's own adapters, whose training the run continues; None if it has none.
    """
    model, options = task.model, task.options
    weights = {name: x for name, x in frozen.items() if name != "lora"}  # see "base.adapter"
    return {
        "batch_size": options.batch_size,
        "steps": task.steps,
        "repeat": options.repeat,
        "seed": ctx.config.seed,
        **with_effect(model.config, "model"),
        "tokenizer": fingerprint(*tokenizer_facts(ctx.assets.tokenizer)),
        "examples": _examples(task.rows),
        **({"held-out examples": _examples(task.held_out)} if task.held_out is not None else {}),
        "frozen weights": fingerprint(checksum(weights)) if weights else "none",
        **({"base.adapter": fingerprint(checksum(adapters))} if adapters else {}),
        **(task.earlier.own if task.earlier else {}),
        **(with_effect(model.lora, "lora") if model.lora else {"lora": "none"}),
    }


def _examples(rows: ComparisonRows) -> str:
    return fingerprint(map(fields, rows.comparisons))
