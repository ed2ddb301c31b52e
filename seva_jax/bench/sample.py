"""Time of answering prompts: our sampler compared with `transformers.generate`.

Both sides have the same random weights, prompts and images, answer greedily in one batch without
stopping early, and run in turns in one process. Answers have to agree token for token until two
tokens are so close that rounding decides; the share that agrees is printed.
"""

from __future__ import annotations

import dataclasses
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from seva_jax.batches.trees import RowShape
from seva_jax.bench.limits import Limit, products, reading
from seva_jax.bench.step import SIZES, on_device, random_params, write_model
from seva_jax.bench.timing import in_turns, machine, table
from seva_jax.inference.sampler import PromptBatch, generate
from seva_jax.models import Llava, LlavaConfig, LoraConfig, unstack
from seva_jax.text.sampling import Sampling
from seva_jax.training.flops import forward
from seva_jax.types import DataError


@dataclasses.dataclass(frozen=True)
class SampleBench:
    """Time of greedy answers: our sampler, `transformers.generate`.

    Attributes:
        size: architecture; "small" and "mid" are LLaVA-shaped and suit a CPU.
        rows: rows answered together.
        question: tokens of the question and its template, without those of the image.
        answer: new tokens of each row.
        dtype: dtype of weights and compute.
        rounds: timed batches of each side.
        hf: measure transformers, too.
    """

    size: Literal["small", "mid", "7b", "13b"] = "small"
    rows: int = 8
    question: int = 64
    answer: int = 64
    dtype: Literal["float32", "bfloat16"] = "float32"
    rounds: int = 3
    hf: bool = True


def run_sample(bench: SampleBench) -> None:
    """Measures all sides in turns and prints a table."""
    if min(bench.rows, bench.answer, bench.rounds) < 1:
        raise DataError("--rows, --answer and --rounds must be at least 1")
    config, dtype = SIZES[bench.size], jnp.dtype(bench.dtype)
    model = Llava(config, dtype=dtype)
    params = random_params(model)
    rng = np.random.default_rng(0)
    side = config.vision.image_size
    image = np.full((bench.rows, config.tokens_per_image), config.image_token_id, np.int32)
    text = rng.integers(10, 1000, (bench.rows, bench.question)).astype(np.int32)
    half = bench.question // 2
    tokens = np.concatenate([text[:, :half], image, text[:, half:]], axis=1)
    pixels = rng.normal(size=(bench.rows, 1, side, side, 3)).astype(np.float32)
    with tempfile.TemporaryDirectory(prefix="seva_jax_sample_") as scratch:
        sides = {"ours": _ours(bench, model, params, tokens, pixels)}
        if bench.hf:
            write_model(Path(scratch) / "model", config, params)
            sides["transformers"] = _theirs(bench, Path(scratch) / "model", tokens, pixels)
        limits = _limits(bench, config, tokens.shape[1])
        both = sides | {name: limit.run for name, limit in limits.items()}
        answers = {name: run() for name, run in both.items()}  # compiles
        times = in_turns(both, bench.rounds)
    rates = {
        name: limit.amount / statistics.median(times.pop(name)) for name, limit in limits.items()
    }
    print(
        f"greedy answers, LLaVA {bench.size}, {bench.rows} rows of {tokens.shape[1]} + "
        f"{bench.answer} tokens, {bench.dtype}\n"
        + machine(["torch", "transformers"] if bench.hf else [], bench.rounds)
    )
    print(table(times, 14, "tokens", bench.rows * bench.answer, list(times)[-1]))
    # A prompt with one image, and one token's logits.
    once = forward(config, LoraConfig(rank=0), RowShape(tokens.shape[1], 1, 1, 1, 1, 1))
    operations = once.tower + once.projector + once.language
    prefill = bench.rows * operations / rates["products"]
    decode = bench.answer * limits["reading"].amount / rates["reading"]
    last = statistics.median(list(times.values())[-1])
    print(
        f"matrix products of these sizes: {rates['products'] / 1e9:,.0f} GFLOP/s; matrices times "
        f"{bench.rows} rows: {rates['reading'] / 1e9:,.1f} GB/s. At these rates, the prompts take "
        f"at least {prefill:.3f} s and the answers {decode:.3f} s: the speed-up is at most "
        f"{last / (prefill + decode):.2f}x, or {last / prefill:.2f}x if answers took no time"
    )
    if bench.hf:
        same = np.cumprod(answers["ours"] == answers["transformers"], axis=1).mean()
        print(f"the same tokens until the first that differs: {same:.1%}")


def _limits(bench: SampleBench, config: LlavaConfig, prompt: int) -> dict[str, Limit]:
    """Returns the calibrations that bound prefill, and decoding of one token per row."""
    t, size = config.text, jnp.dtype(bench.dtype).itemsize
    per_layer = 2 * (t.num_heads + t.num_kv_heads) * t.head_dim + 3 * t.mlp_size
    weights = t.hidden_size * (t.num_layers * per_layer + t.vocab_size) * size
    positions = bench.rows * (prompt + bench.answer // 2)
    cache = 2 * t.num_layers * t.num_kv_heads * t.head_dim * positions * size
    return {
        "products": products(config, bench.rows * prompt, bench.dtype),
        "reading": reading(config, bench.rows, weights + cache, bench.dtype),
    }


def _ours(
    bench: SampleBench, model: Llava, params: Any, tokens: np.ndarray, pixels: np.ndarray
) -> Callable[[], np.ndarray]:
    model, stored = unstack(model, on_device(params, model.dtype), free=True)
    is_image = tokens == model.config.image_token_id
    patch = np.where(is_image, np.cumsum(is_image, axis=1) - 1, -1).astype(np.int32)
    batch = jax.device_put(PromptBatch(tokens, np.ones_like(is_image), patch, pixels))
    keys = jax.random.split(jax.random.key(0), bench.rows)
    sampling = Sampling(max_new_tokens=bench.answer)
    return lambda: np.asarray(generate(model, stored, batch, keys, sampling, (-1,), 0))


def _theirs(
    bench: SampleBench, directory: Path, tokens: np.ndarray, pixels: np.ndarray
) -> Callable[[], np.ndarray]:
    try:
        import torch
        import transformers
    except ImportError as error:
        raise DataError(f"{error}; pip install 'seva_jax[bench]', or give --no-hf") from None
    dtype = getattr(torch, bench.dtype)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model: Any = transformers.LlavaForConditionalGeneration.from_pretrained(directory, dtype=dtype)
    model = model.to(device).eval()
    ids = torch.tensor(tokens, dtype=torch.long, device=device)
    images = torch.tensor(pixels[:, 0].transpose(0, 3, 1, 2), dtype=dtype, device=device)

    def run() -> np.ndarray:
        with torch.inference_mode():
            out = model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=images,
                do_sample=False, max_new_tokens=bench.answer, min_new_tokens=bench.answer,
                eos_token_id=None, pad_token_id=0,
            )  # fmt: skip
        return out[:, ids.shape[1] :].cpu().numpy()

    return run
