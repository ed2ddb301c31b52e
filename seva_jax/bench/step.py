"""Time of a DPO step: tree rows compared with two rows per pair, and with TRL's trainer.

All sides start from the same random weights and adapters and get the same batch, and each prints
the losses of its first two steps, which have to agree. The time is that of forward and backward
pass and optimiser, with the batch already on the device. On a CPU the sides run in turns; on an
accelerator one after the other, each alone in memory.

- `ours, both cached`: the batch has image features and the reference's log-probs.
- `ours, cached reference`: what `seva_jax.train` runs; the batch has the reference's log-probs.
- `ours, reference in the step`: the same with the reference computed in the step.
- `ours, two rows`: our model in the usual layout, reference in the step.
- `TRL`: `DPOTrainer.training_step` with peft's adapters and its own defaults (reference in the
  step, because it refuses to precompute it for images). Needs the extra "bench". On a GPU it halves
  its micro-batches until they fit.
"""

from __future__ import annotations

import dataclasses
import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from seva_jax.batches.trees import TreeExample
from seva_jax.bench.examples import BETA, LR, SIZES, exact_shape, examples, packed
from seva_jax.bench.limits import best_rate, products
from seva_jax.bench.options import Kind, StepBench
from seva_jax.bench.other_side import Measured, measured_alone, on_gpu
from seva_jax.bench.timing import all_sides, in_turns, machine, table
from seva_jax.bench.weights import random_adapters, random_variables
from seva_jax.models import Llava, LlavaConfig, LoraConfig, Remat
from seva_jax.objectives import DPO
from seva_jax.training.flops import forward, model_flops
from seva_jax.training.memory import compile_if_it_fits, device_limit, memory_use
from seva_jax.training.remat import REMATS, cheapest
from seva_jax.training.step import (
    StepOptions,
    TrainState,
    TrainStep,
    batch_loss,
    image_features,
    make_logps,
    merge,
    tree_hidden,
    tree_logps,
)
from seva_jax.types import BranchLogps, DataError, TreeBatch

Side = Callable[[], float]  # runs a step to its end and returns the loss
_NAMES = {
    "both-cached": "ours, both cached",
    "cached": "ours, cached reference",
    "in-step": "ours, reference in the step",
    "rows": "ours, two rows",
}


def adapted_model(config: LlavaConfig, rank: int, dtype: str) -> tuple[Llava, Any, Any]:
    """Returns a model with adapters of a rank, its frozen weights and its adapters."""
    model = Llava(config, LoraConfig(rank=rank, alpha=2.0 * rank), jnp.dtype(dtype))
    return model, random_variables(model), random_adapters(model)


def separate_rows(model: Llava, branches: int) -> Any:
    """Returns a training step for batches with one row per answer, the usual layout."""
    objective, optimizer = DPO(beta=BETA), optax.adamw(LR)

    def logps(variables: Any, batch: TreeBatch) -> BranchLogps:
        features_BPE = image_features(model, variables, batch)
        hidden_BSD = tree_hidden(model, variables, batch, features_BPE)
        answers = tree_logps(model, variables, batch, StepOptions(), hidden_BSD)
        sides = (answers.logp_NKT, answers.mask_NKT)
        return BranchLogps(*(x.reshape(-1, branches, x.shape[-1]) for x in sides))

    def step(state: TrainState, frozen: Any, batch: TreeBatch) -> tuple[TrainState, dict]:
        def loss_fn(trainable: Any) -> Any:
            policy = logps(merge(frozen, trainable), batch)
            reference = jax.lax.stop_gradient(logps(frozen, batch))
            pairs = batch._replace(weight_BC=batch.weight_BC[::branches])
            total = pairs.weight_BC.sum()
            return batch_loss(objective, policy, reference, pairs.weight_BC.reshape(-1), total)

        gradient, metrics = jax.grad(loss_fn, has_aux=True)(state.trainable)
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.trainable)
        trainable = optax.apply_updates(state.trainable, updates)
        return TrainState(state.step + 1, trainable, opt_state), metrics

    return step


def side_of(steps: Mapping[Remat, Any], trainable: Any, frozen: Any, batch: TreeBatch) -> Side:
    """Returns a side that runs one of our steps, with a state of its own.

    Args:
        steps: the step with each rematerialisation of which the cheapest that fits is taken.
        trainable: initial values; the side takes a copy.
        frozen: frozen variables.
        batch: the batch.
    """
    batch = jax.device_put(batch)
    own = jax.tree.map(jnp.copy, trainable)
    state = [TrainState(jnp.int32(0), own, optax.adamw(LR).init(own))]
    compiled = _first_fitting(steps, state[0], frozen, batch)

    def run() -> float:
        state[0], metrics = compiled(state[0], frozen, batch)
        return float(metrics["loss"])  # waits for the whole step

    return run


def _first_fitting(steps: Mapping[Remat, Any], *arguments: Any) -> Any:
    def compiled(remat: Remat) -> tuple[Any, float]:
        return compile_if_it_fits(jax.jit(steps[remat], donate_argnums=0).lower(*arguments))

    choice = cheapest(list(steps), lambda remat: 0.0, compiled, device_limit())
    if choice.program is None:
        raise DataError(f"the step needs {choice.memory}; give fewer --pairs or more micro-batches")
    if len(steps) > 1:
        print(f"remat auto: {choice.remat}", flush=True)
    return choice.program


def tree_side(
    model: Llava,
    trainable: Any,
    frozen: Any,
    batch: TreeBatch,
    reference_in_step: bool = True,
    micro_batches: int = 1,
    remats: Sequence[Remat] = (),
) -> Side:
    """Returns the trainer's own step on a batch [B, ...].

    Args:
        model: the module.
        trainable: initial values of the trained variables.
        frozen: the frozen variables.
        batch: the batch.
        reference_in_step: compute the reference in the step.
        micro_batches: see `StepBench.micro_batches`.
        remats: what the backward pass may recompute, see `side_of`; empty takes the module's.
    """
    optimizer, objective = optax.adamw(LR), DPO(beta=BETA)
    steps: dict[Remat, Any] = {
        remat: TrainStep(
            model.clone(remat=remat), objective, optimizer, StepOptions(), reference_in_step
        )
        for remat in remats or (model.remat,)
    }
    parts = jax.tree.map(lambda x: x.reshape(micro_batches, -1, *x.shape[1:]), batch)
    return side_of(steps, trainable, frozen, parts)


def rows_side(model: Llava, trainable: Any, frozen: Any, trees: Sequence[TreeExample]) -> Side:
    """Returns the usual layout's step on the same comparisons, see `separate_rows`."""
    rows = [dataclasses.replace(t, branches=(b,)) for t in trees for b in t.branches]
    step = separate_rows(model, len(trees[0].branches))
    return side_of({model.remat: step}, trainable, frozen, packed(model.config, rows))


def _ours(bench: StepBench, trl: Measured | None) -> Iterator[tuple[str, Side]]:
    """Yields our sides, each with new adapters, so that one that is dropped leaves no memory."""
    config = SIZES[bench.size]
    lora = LoraConfig(rank=bench.rank, alpha=2.0 * bench.rank)
    auto = bench.remat == "auto"
    remat: Any = "none" if auto else bench.remat
    model = Llava(config, lora, jnp.dtype(bench.dtype), remat, bench.attention)
    trees = examples(config, bench.pairs, bench.question, bench.answer)
    frozen = random_variables(model)
    batch = packed(config, trees)
    size = bench.pairs // bench.micro_batches
    cached = both_cached = batch
    if {"both-cached", "cached"} & {*bench.sides}:
        cached = batch._replace(
            ref_BCKT=_in_parts(make_logps(model, StepOptions()), frozen, batch, size)
        )
    if "both-cached" in bench.sides:
        features = _in_parts(lambda v, x: image_features(model, v, x), frozen, batch, size)
        kept = features.reshape(bench.pairs, 1, *model.feature_kind[0])
        both_cached = cached._replace(images_BIX=kept)
    batches = {"both-cached": both_cached, "cached": cached, "in-step": batch}

    def side(kind: Kind, micro_batches: int) -> Side:
        trainable = {"lora": random_adapters(model)}
        if kind == "rows":
            return rows_side(model, trainable, frozen, trees)
        return tree_side(
            model, trainable, frozen, batches[kind], kind == "in-step", micro_batches,
            REMATS if auto else (),
        )  # fmt: skip

    for kind in bench.sides:
        if kind != "rows" or bench.micro_batches == 1:
            yield _NAMES[kind], side(kind, bench.micro_batches)
    if trl is not None and trl.fitted < size:
        yield f"ours, {trl.fitted} pairs at once", side("in-step", bench.pairs // trl.fitted)


def _in_parts(call: Any, frozen: Any, batch: TreeBatch, size: int) -> np.ndarray:
    """Returns the results of a function for the rows of a batch, so many at once, on the host."""
    compiled = jax.jit(call)

    def part(start: int) -> TreeBatch:
        return jax.tree.map(lambda x: x[start : start + size], batch)

    starts = range(0, len(batch.tokens_BS), size)
    return np.concatenate([np.asarray(compiled(frozen, part(start))) for start in starts])


def run_step(bench: StepBench) -> None:
    """Measures all sides and prints a table."""
    if min(bench.pairs, bench.rounds, bench.micro_batches) < 1:
        raise DataError("--pairs, --rounds and --micro-batches must be at least 1")
    if not bench.sides and not bench.trl:
        raise DataError("nothing to measure: give --sides or --trl")
    if bench.pairs % bench.micro_batches:
        raise DataError(
            f"--pairs {bench.pairs} cannot be divided into {bench.micro_batches} equal "
            "--micro-batches"
        )
    alone = measured_alone("seva_jax.bench.trl_step", bench) if bench.trl and on_gpu() else None
    config = SIZES[bench.size]
    lora = LoraConfig(rank=bench.rank, alpha=2.0 * bench.rank)
    with tempfile.TemporaryDirectory(prefix="seva_jax_step_") as scratch:

        def sides() -> Iterator[tuple[str, Side]]:
            if bench.sides:
                yield from _ours(bench, alone)
            if bench.trl and alone is None:
                from seva_jax.bench.trl_step import TrlStep

                trees = examples(config, bench.pairs, bench.question, bench.answer)
                place = Path(scratch) / "model"
                yield "TRL", TrlStep(place, config, trees, lora, bench.dtype, bench.micro_batches)

        losses, times = all_sides(sides(), 2, bench.rounds)
    if alone is not None:
        losses["TRL"], times["TRL"] = alone.results, alone.seconds
    shape = exact_shape(examples(config, 1, bench.question, bench.answer)[0])
    rows = bench.pairs // bench.micro_batches
    limits = products(config, rows * shape.length, bench.dtype)
    for limit in limits.values():
        limit.run()
    rate, product = best_rate(limits, in_turns({n: x.run for n, x in limits.items()}, 3))
    batches = f" in {bench.micro_batches} micro-batches" if bench.micro_batches > 1 else ""
    print(
        f"DPO step, LLaVA {bench.size} ({config.text.num_layers} layers of "
        f"{config.text.hidden_size}), {bench.pairs} pairs{batches} of {config.tile_features} + "
        f"{bench.question} + 2 x {bench.answer} tokens, LoRA r={bench.rank}, {bench.dtype}, "
        f"remat {bench.remat}, attention {bench.attention}\n"
        + machine(["trl", "transformers", "peft", "torch"] if bench.trl else [], bench.rounds)
    )
    if alone is not None:
        print(
            f"TRL ran alone, {alone.fitted} pairs at once, at most {alone.peak / 2**30:.1f} GiB; "
            f"ours {rows} pairs at once"
        )
    if bench.sides and (memory := memory_use()) is not None:
        print(f"ours took at most {memory[1]:.1f} GiB")
    shown = {n: "   " + ", ".join(f"{x:.6f}" for x in both) for n, both in losses.items()}
    notes = {"": "   losses of two steps"} | shown
    print(table(times, 28, "pairs", bench.pairs, list(times)[-1], decimals=2, notes=notes))
    if bench.sides:
        _print_shares(bench, forward(config, lora, shape), times, rate, product)


def _print_shares(
    bench: StepBench, once: Any, times: dict[str, list[float]], rate: float, product: str
) -> None:
    step = model_flops(once, ("lora",))
    needed = {
        "both-cached": step - once.tower,
        "cached": step,
        "in-step": step + once.projector + once.language - once.lora,
    }
    print(
        f"the fastest of a few large products, {product}: {rate / 1e9:,.0f} GFLOP/s. At "
        "this rate, what a step has to compute takes at least:"
    )
    last = statistics.median(list(times.values())[-1])
    for kind, name in _NAMES.items():
        if kind in needed and name in times:
            best = bench.pairs * needed[kind] / rate
            share = best / statistics.median(times[name])
            print(f"{name:<28}{best:>10.3f}  {share:.0%} of it reached; {last / best:.2f}x at best")
