"""Time of answering prompts: our sampler compared with `transformers.generate`.

Both sides have the same random weights, prompts and images, and answer greedily in one batch
without stopping early; on a CPU they run in turns, on a GPU transformers runs first and alone.
Answers have to agree token for token until two tokens are so close that rounding decides; the share
that agrees is printed. A call for one token per row gives the time of the prompts, and what a
longer call takes beyond it that of a token step, which is compared with the bytes that it has to
read.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from seva_jax.batches.trees import RowShape
from seva_jax.bench.examples import SIZES, prompts
from seva_jax.bench.limits import best_rate, copying, products
from seva_jax.bench.options import SampleBench
from seva_jax.bench.other_side import measured_alone, on_gpu
from seva_jax.bench.timing import all_sides, in_turns, machine, table
from seva_jax.bench.weights import random_variables
from seva_jax.inference.sampler import PromptBatch, generate
from seva_jax.models import CacheKind, Llava, LlavaConfig, LoraConfig, unstack
from seva_jax.text.sampling import Sampling
from seva_jax.training.flops import forward
from seva_jax.training.memory import memory_use
from seva_jax.types import DataError

_NAMES: dict[CacheKind, str] = {"exact": "ours", "int8": "ours, int8 cache"}
_PROMPTS = "ours, prompts only"
_OTHER = "transformers"


def run_sample(bench: SampleBench) -> None:
    """Measures all sides and prints a table."""
    if min(bench.rows, bench.rounds) < 1 or bench.answer < 2:
        raise DataError("--rows and --rounds must be at least 1, --answer at least 2")
    if not bench.caches and not bench.hf:
        raise DataError("nothing to measure: give --caches or --hf")
    alone = measured_alone("seva_jax.bench.hf_sample", bench) if bench.hf and on_gpu() else None
    config = SIZES[bench.size]
    tokens, pixels = prompts(config, bench.rows, bench.question)
    with tempfile.TemporaryDirectory(prefix="seva_jax_sample_") as scratch:

        def sides() -> Iterator[tuple[str, Callable[[], np.ndarray]]]:
            if bench.caches:
                yield from _ours(bench, tokens, pixels)
            if bench.hf and alone is None:
                from seva_jax.bench.hf_sample import HfSample

                yield _OTHER, HfSample(bench, Path(scratch) / "model")

        answers, times = all_sides(sides(), 1, bench.rounds)
    limits = products(config, bench.rows * tokens.shape[1], bench.dtype)
    limits["copying"] = copying()
    for limit in limits.values():
        limit.run()
    measured = in_turns({name: limit.run for name, limit in limits.items()}, 3)
    rows = dict.fromkeys(times, bench.rows)
    if alone is not None:
        answers[_OTHER], times[_OTHER] = alone.results, alone.seconds
        rows[_OTHER] = alone.fitted
    print(
        f"greedy answers, LLaVA {bench.size}, {bench.rows} rows of {tokens.shape[1]} + "
        f"{bench.answer} tokens, {bench.dtype}\n"
        + machine(["torch", "transformers"] if bench.hf else [], bench.rounds)
    )
    if alone is not None:
        print(
            f"transformers ran alone, {alone.fitted} rows at once, at most "
            f"{alone.peak / 2**30:.1f} GiB"
        )
    if bench.caches and (memory := memory_use()) is not None:
        print(f"ours took at most {memory[1]:.1f} GiB")
    whole = {name: seconds for name, seconds in times.items() if name != _PROMPTS}
    amounts = {name: rows[name] * bench.answer for name in whole}
    print(table(whole, 18, "tokens", amounts, list(whole)[-1]))
    copying_rate = best_rate({"copying": limits.pop("copying")}, measured)[0]
    _print_shares(bench, config, times, copying_rate, best_rate(limits, measured))
    if bench.hf and bench.caches:
        theirs = np.array(answers[_OTHER][0])
        same = np.cumprod(
            answers[_NAMES[bench.caches[0]]][0][: len(theirs)] == theirs, axis=1
        ).mean()
        print(f"the same tokens until the first that differs: {same:.1%}")


def step_bytes(config: LlavaConfig, rows: int, filled: int, size: int, cache: CacheKind) -> float:
    """Returns the bytes that have to be read for the next token of every row.

    These are the weights of the decoder layers and the head, and the filled part of the cache.

    Args:
        config: the architecture.
        rows: rows answered together.
        filled: positions of a row in the cache.
        size: bytes of a weight.
        cache: kind of the KV cache; "int8" has a float32 scale for each head of each position.
    """
    t = config.text
    per_layer = 2 * (t.num_heads + t.num_kv_heads) * t.head_dim + 3 * t.mlp_size
    weights = t.hidden_size * (t.num_layers * per_layer + t.vocab_size) * size
    head = t.head_dim * size if cache == "exact" else t.head_dim + 4
    return weights + 2.0 * t.num_layers * t.num_kv_heads * head * filled * rows


def _print_shares(
    bench: SampleBench,
    config: LlavaConfig,
    times: dict[str, list[float]],
    copying_rate: float,
    product: tuple[float, str],
) -> None:
    """Prints the time of a token step, what it has to read, and the share of the copying rate."""
    middle = {name: statistics.median(seconds) for name, seconds in times.items()}
    size = jnp.dtype(bench.dtype).itemsize
    prompt = config.tile_features + bench.question
    # A prompt with one image, and one token's logits.
    once = forward(config, LoraConfig(rank=0), RowShape(prompt, 1, 1, 1, 1, 1))
    least = bench.rows * (once.tower + once.projector + once.language) / product[0]
    print(
        f"memory is copied at {copying_rate / 1e9:,.1f} GB/s, read and written; the fastest of a "
        f"few large products, {product[1]}: {product[0] / 1e9:,.0f} GFLOP/s, at which the prompts "
        f"take at least {least:.3f} s"
    )
    for cache in bench.caches:
        name, prefill = _NAMES[cache], middle[_PROMPTS]
        step = (middle[name] - prefill) / (bench.answer - 1)
        needed = step_bytes(config, bench.rows, prompt + bench.answer // 2, size, cache)
        rate = needed / step if step > 0 else float("nan")  # too short to be timed
        print(
            f"{name:<18}prompts {prefill:.3f} s, a token step {step * 1e3:.2f} ms; it has to read "
            f"{needed / 1e9:.3g} GB (weights and cache): {rate / 1e9:,.1f} GB/s, "
            f"{rate / copying_rate:.0%} of the copying rate"
        )


def _ours(
    bench: SampleBench, tokens: np.ndarray, pixels: np.ndarray
) -> Iterator[tuple[str, Callable[[], np.ndarray]]]:
    """Yields our sides: one token with the first of the caches, and whole answers with each."""
    stacked = Llava(SIZES[bench.size], dtype=jnp.dtype(bench.dtype))
    model, variables = unstack(stacked, random_variables(stacked), free=True)
    is_image = tokens == model.config.image_token_id
    patch = np.where(is_image, np.cumsum(is_image, axis=1) - 1, -1).astype(np.int32)
    batch = jax.device_put(PromptBatch(tokens, np.ones_like(is_image), patch, pixels))
    keys = jax.random.split(jax.random.key(0), bench.rows)

    def side(num: int, cache: CacheKind) -> Callable[[], np.ndarray]:
        sampling = Sampling(max_new_tokens=num)
        return lambda: np.asarray(
            generate(model, variables, batch, keys, sampling, (-1,), 0, cache)
        )

    yield _PROMPTS, side(1, bench.caches[0])
    for cache in bench.caches:
        yield _NAMES[cache], side(bench.answer, cache)
