"""Time of a DPO step: tree rows compared with two rows per pair, and with TRL's trainer.

All sides start from the same random weights and adapters and get the same batch. They run in turns,
in one process, and each prints the losses of its first two steps, which have to agree. The time is
that of forward and backward pass and optimiser, with the batch already on the device.

- `ours, both cached`: the batch has image features and the reference's log-probs.
- `ours, cached reference`: what `seva_jax.train` runs; the batch has the reference's log-probs.
- `ours, reference in the step`: the same with the reference computed in the step.
- `ours, two rows`: our model in the usual layout, reference in the step.
- `TRL`: `DPOTrainer.training_step` with peft's adapters and its own defaults (reference in the
  step, because it refuses to precompute it for images). Needs the extra "bench".
"""

from __future__ import annotations

import dataclasses
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from seva_jax.batches.trees import RowShape, TreeExample, pack_row, stack_rows
from seva_jax.bench.limits import products
from seva_jax.bench.timing import in_turns, machine, table
from seva_jax.convert.load import leaves_by_path
from seva_jax.convert.rewrite import write_new
from seva_jax.images.preprocess import ImageProcessing
from seva_jax.models import (
    LLAVA_15,
    Attention,
    Llava,
    LlavaConfig,
    LoraConfig,
    Remat,
    TextConfig,
    VisionConfig,
    abstract_variables,
    init_variables,
)
from seva_jax.objectives import DPO
from seva_jax.sharding import on_one_device
from seva_jax.text.templates import VICUNA_V1
from seva_jax.text.tokenizer import word_tokenizer
from seva_jax.training.flops import forward, model_flops
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

BETA, LR = 0.1, 1e-4
_VISION = VisionConfig(hidden_size=256, num_layers=6, num_heads=4, mlp_size=1024)
SIZES = {
    # 576 image tokens each; small enough for a CPU.
    "small": LlavaConfig(
        vision=_VISION,
        text=TextConfig(
            vocab_size=8192, hidden_size=512, num_layers=6, num_heads=8, num_kv_heads=8,
            head_dim=64, mlp_size=1408,
        ),
        image_token_id=8000,
    ),
    "mid": LlavaConfig(
        vision=dataclasses.replace(_VISION, hidden_size=512, num_heads=8, mlp_size=2048),
        text=TextConfig(
            hidden_size=1024, num_layers=8, num_heads=16, num_kv_heads=16, head_dim=64,
            mlp_size=2816,
        ),
    ),
    **LLAVA_15,
}  # fmt: skip

Side = Callable[[], float]  # runs a step to its end and returns the loss


@dataclasses.dataclass(frozen=True)
class StepBench:
    """Time of a DPO step with adapters: ours, ours in two-row layout, TRL's.

    Attributes:
        size: architecture; "small" and "mid" are LLaVA-shaped and suit a CPU.
        pairs: pairs in a step.
        question: tokens of the question and its template, without those of the image.
        answer: tokens of each answer.
        rank: rank of the adapters.
        dtype: dtype of compute and frozen weights.
        remat: what our backward pass recomputes, see `ComputeOptions.remat`.
        attention: see `seva_jax.models.attention.attend`.
        rounds: timed steps of each side.
        trl: measure TRL, too.
    """

    size: Literal["small", "mid", "7b", "13b"] = "small"
    pairs: int = 2
    question: int = 64
    answer: int = 128
    rank: int = 64
    dtype: Literal["float32", "bfloat16"] = "float32"
    remat: Remat = "none"
    attention: Attention = "auto"
    rounds: int = 5
    trl: bool = True


def _random(model: Llava, collection: str, seed: int) -> Any:
    boxed = abstract_variables(model)[collection]
    return init_variables(model, collection, on_one_device(boxed, jax.devices()[0]), seed)


def random_params(model: Llava) -> Any:
    """Returns the "params" collection of a new model, float32, in host memory."""
    return jax.device_get(_random(model, "params", 0))


def random_adapters(model: Llava) -> Any:
    """Returns the "lora" collection; B is not zero, or every loss would be log 2."""
    return jax.tree_util.tree_map_with_path(
        lambda path, x: x if path[-1].key == "a" else 0.05 * jnp.ones_like(x).at[:, ::2].set(-1),
        _random(model, "lora", 1),
    )


def on_device(params: Any, dtype: Any) -> Any:
    """Puts parameters on the device, in the dtype of compute."""
    return {"params": jax.tree.map(lambda x: jax.device_put(x.astype(dtype)), params)}


def adapted_model(config: LlavaConfig, rank: int, dtype: str) -> tuple[Llava, Any, Any]:
    """Returns a model with adapters of a rank, its frozen weights and its adapters."""
    model = Llava(config, LoraConfig(rank=rank, alpha=2.0 * rank), jnp.dtype(dtype))
    return model, on_device(random_params(model), model.dtype), random_adapters(model)


def write_model(directory: Path, config: LlavaConfig, params: Any) -> None:
    """Writes parameters as a Hugging Face directory, for the other side."""
    leaves = leaves_by_path({"params": params})

    def read(names: Sequence[str]) -> list[np.ndarray]:
        return [np.asarray(leaves[name]) for name in names]

    tokenizer = word_tokenizer(tuple(f"w{i}" for i in range(100)))
    processing = ImageProcessing(size=config.vision.image_size)
    write_new(directory, config, tokenizer, processing, VICUNA_V1, read)


def examples(
    config: LlavaConfig, num: int, question: int, answer: int, branches: int = 2, images: int = 1
) -> list[TreeExample]:
    """Returns random comparisons: images, a question around them, answers of full length."""
    rng = np.random.default_rng(0)
    side = config.vision.image_size

    def tokens(num: int) -> np.ndarray:
        return rng.integers(10, 1000, num).astype(np.int32)

    patches = np.full(images * config.tokens_per_image, config.image_token_id, np.int32)
    half = question // 2
    return [
        TreeExample(
            np.concatenate([tokens(half), patches, tokens(question - half)]),
            tuple(tokens(answer) for _ in range(branches)),
            rng.normal(size=(images, side, side, 3)).astype(np.float32),
        )
        for _ in range(num)
    ]


def exact_shape(tree: TreeExample) -> RowShape:
    """Returns the shape of a row that one of `examples` fills."""
    answer = len(tree.branches[0])
    return RowShape(tree.length, 1, len(tree.branches), answer, 1, tree.num_targets)


def packed(config: LlavaConfig, trees: list[TreeExample]) -> TreeBatch:
    """Packs a row for each of `examples`, or for each of their branches."""
    return laid_out(config, [[tree] for tree in trees], exact_shape(trees[0]))


def laid_out(
    config: LlavaConfig, rows: Sequence[Sequence[TreeExample]], shape: RowShape
) -> TreeBatch:
    """Packs rows of several examples each into a batch of one shape."""
    side = config.vision.image_size
    return stack_rows([
        pack_row(
            row, shape, image_shape=(side, side, 3), pad_id=0,
            tokens_per_image=config.tokens_per_image, image_token_id=config.image_token_id,
        )
        for row in rows
    ])  # fmt: skip


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


def side_of(step: Any, trainable: Any, frozen: Any, batch: TreeBatch) -> Side:
    """Returns a side that runs one of our steps, with a state of its own."""
    batch = jax.device_put(batch)
    own = jax.tree.map(jnp.copy, trainable)
    state = [TrainState(jnp.int32(0), own, optax.adamw(LR).init(own))]
    compiled = jax.jit(step, donate_argnums=0)

    def run() -> float:
        state[0], metrics = compiled(state[0], frozen, batch)
        return float(metrics["loss"])  # waits for the whole step

    return run


def tree_side(
    model: Llava, trainable: Any, frozen: Any, batch: TreeBatch, reference_in_step: bool = True
) -> Side:
    """Returns the trainer's own step on a batch [B, ...]."""
    step = TrainStep(model, DPO(beta=BETA), optax.adamw(LR), StepOptions(), reference_in_step)
    return side_of(step, trainable, frozen, jax.tree.map(lambda x: x[None], batch))


def rows_side(model: Llava, trainable: Any, frozen: Any, trees: Sequence[TreeExample]) -> Side:
    """Returns the usual layout's step on the same comparisons, see `separate_rows`."""
    rows = [dataclasses.replace(t, branches=(b,)) for t in trees for b in t.branches]
    step = separate_rows(model, len(trees[0].branches))
    return side_of(step, trainable, frozen, packed(model.config, rows))


def sides(bench: StepBench, scratch: Path) -> Iterator[tuple[str, Side]]:
    """Yields the sides to measure, with their names."""
    config = SIZES[bench.size]
    lora = LoraConfig(rank=bench.rank, alpha=2.0 * bench.rank)
    dtype = jnp.dtype(bench.dtype)
    model = Llava(config, lora, dtype, bench.remat, bench.attention)
    params = random_params(model)
    adapters = random_adapters(model)
    trees = examples(config, bench.pairs, bench.question, bench.answer)
    trainable = {"lora": adapters}
    frozen = on_device(params, dtype)
    batch = packed(config, trees)
    reference = jax.jit(make_logps(model, StepOptions()))(frozen, batch)
    cached = batch._replace(ref_BCKT=np.asarray(reference))
    features = jax.jit(lambda v, x: model.apply(v, x, method="features"))(frozen, batch.images_BIX)
    kept = np.asarray(features).reshape(bench.pairs, 1, *model.feature_kind[0])
    both_cached = cached._replace(images_BIX=kept)
    yield "ours, both cached", tree_side(model, trainable, frozen, both_cached, False)
    yield "ours, cached reference", tree_side(model, trainable, frozen, cached, False)
    yield "ours, reference in the step", tree_side(model, trainable, frozen, batch)
    yield "ours, two rows", rows_side(model, trainable, frozen, trees)
    if bench.trl:
        from seva_jax.bench.trl_step import trl_side

        write_model(scratch / "model", config, params)
        layers = jax.tree.map(np.asarray, adapters["language"]["layers"])
        yield "TRL", trl_side(scratch / "model", trees, layers, lora, bench.dtype, BETA, LR)


def run_step(bench: StepBench) -> None:
    """Measures all sides in turns and prints a table."""
    if bench.pairs < 1 or bench.rounds < 1:
        raise DataError("--pairs and --rounds must be at least 1")
    with tempfile.TemporaryDirectory(prefix="seva_jax_step_") as scratch:
        running = dict(sides(bench, Path(scratch)))
        # The first step compiles; the second shows what differs after an update.
        losses = {name: [side(), side()] for name, side in running.items()}
        config = SIZES[bench.size]
        shape = exact_shape(examples(config, 1, bench.question, bench.answer)[0])
        limit = products(config, bench.pairs * shape.length, bench.dtype)
        limit.run()
        times = in_turns(running | {"products": limit.run}, bench.rounds)
    rate = limit.amount / statistics.median(times.pop("products"))
    print(
        f"DPO step, LLaVA {bench.size} ({config.text.num_layers} layers of "
        f"{config.text.hidden_size}), {bench.pairs} pairs of {config.tokens_per_image} + "
        f"{bench.question} + 2 x {bench.answer} tokens, LoRA r={bench.rank}, {bench.dtype}, "
        f"remat {bench.remat}\n"
        + machine(["trl", "transformers", "peft", "torch"] if bench.trl else [], bench.rounds)
    )
    shown = {n: "   " + ", ".join(f"{x:.6f}" for x in both) for n, both in losses.items()}
    notes = {"": "   losses of two steps"} | shown
    print(table(times, 28, "pairs", bench.pairs, list(times)[-1], decimals=2, notes=notes))
    once = forward(config, LoraConfig(rank=bench.rank), shape)
    step = model_flops(once, ("lora",))
    needed = {
        "ours, both cached": step - once.tower,
        "ours, cached reference": step,
        "ours, reference in the step": step + once.projector + once.language - once.lora,
    }
    print(
        f"matrix products of these sizes: {rate / 1e9:,.0f} GFLOP/s. At this rate, a step takes "
        "at least:"
    )
    last = statistics.median(list(times.values())[-1])
    for name, operations in needed.items():
        best = bench.pairs * operations / rate
        share = best / statistics.median(times[name])
        print(f"{name:<28}{best:>10.3f}  {share:.0%} of it reached; {last / best:.2f}x at best")
