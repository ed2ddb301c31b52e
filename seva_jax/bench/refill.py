"""Time of sampled answers of mixed lengths: whole batches compared with refilled rows.

Both sides are our sampler with the same prompts and keys, and their answers have to agree. The
model is random, with a small vocabulary in which one token ends an answer, so that lengths differ.
"""

from __future__ import annotations

import dataclasses
import statistics
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from seva_jax.bench.examples import SIZES
from seva_jax.bench.timing import in_turns, machine, table
from seva_jax.bench.weights import random_variables
from seva_jax.data import PromptSet
from seva_jax.images import ImageLayouts, ImageProcessing
from seva_jax.inference.rollouts import RolloutEngine
from seva_jax.models import Llava
from seva_jax.sharding import MeshShape
from seva_jax.text.encode import Encoder
from seva_jax.text.sampling import Sampling
from seva_jax.text.templates import PLAIN
from seva_jax.text.tokenizer import word_tokenizer
from seva_jax.types import DataError, Prompt


@dataclasses.dataclass(frozen=True)
class RefillBench:
    """Time of answers of mixed lengths: whole batches, refilled rows.

    Attributes:
        size: architecture, except for the vocabulary.
        prompts: number of prompts, each with an image.
        rows: rows answered together.
        answer: longest answer, tokens.
        vocabulary: size of the vocabulary; a random model ends an answer after about that many
            tokens.
        refill: new prompts replace finished rows when one in this many rows is finished.
        dtype: dtype of weights and compute.
        rounds: timed passes of each side.
    """

    size: Literal["small", "mid", "7b", "13b"] = "small"
    prompts: int = 32
    rows: int = 8
    answer: int = 256
    vocabulary: int = 64
    refill: int = 4
    dtype: Literal["float32", "bfloat16"] = "float32"
    rounds: int = 3


def run_refill(bench: RefillBench) -> None:
    """Measures both sides in turns and prints a table."""
    if min(bench.prompts, bench.rows, bench.answer, bench.refill, bench.rounds) < 1:
        raise DataError("--prompts, --rows, --answer, --refill and --rounds must be at least 1")
    words = ("USER", "ASSISTANT", ":", *(f"w{i}" for i in range(bench.vocabulary)))
    tokenizer = word_tokenizer(words)
    config = SIZES[bench.size]
    image: Any = tokenizer.convert_tokens_to_ids("<image>")
    config = dataclasses.replace(
        config,
        image_token_id=image,
        text=dataclasses.replace(config.text, vocab_size=len(tokenizer)),
    )
    model = Llava(config, dtype=jnp.dtype(bench.dtype))
    prompts = [Prompt(f"p{i}", "w1 w2 w3", (str(i),)) for i in range(bench.prompts)]
    side = config.vision.image_size
    processing = ImageProcessing(size=side)
    engine = RolloutEngine(
        model=model,
        variables=random_variables(model),
        encoder=Encoder(
            tokenizer, PLAIN, image, ImageLayouts(processing, config.tile_features), 4096
        ),
        processing=processing,
        mesh=MeshShape().make(jax.devices()[:1]),
        batch_size=bench.rows,
        seed=0,
    )

    def load_image(name: str) -> np.ndarray:
        return np.random.default_rng(int(name)).integers(0, 256, (side, side, 3), np.uint8)

    sampling = Sampling(bench.answer, temperature=1.0)

    def answers(engine: RolloutEngine) -> list[str]:
        batches = engine.answer(PromptSet(prompts, load_image), sampling)
        return [answered.answers[0] for batch in batches for answered in batch]

    refilled = dataclasses.replace(engine, refill=bench.refill)
    sides = {"whole batches": lambda: answers(engine), "refilled": lambda: answers(refilled)}
    in_batches, in_refilled = (side() for side in sides.values())  # compiles
    times = in_turns(sides, bench.rounds)
    lengths = [len(text.split()) for text in in_refilled]
    print(
        f"sampled answers, LLaVA {bench.size} with {len(tokenizer)} words, {bench.prompts} prompts "
        f"of {config.tile_features} + 3 tokens, {bench.rows} rows, {bench.dtype}; answers of "
        f"{min(lengths)} to {max(lengths)} words, {statistics.mean(lengths):.0f} on average\n"
        + machine([], bench.rounds)
    )
    print(table(times, 16, "words", sum(lengths), "whole batches"))
    same = np.mean([a == b for a, b in zip(in_batches, in_refilled, strict=True)])
    print(f"answers that agree: {same:.1%}")
