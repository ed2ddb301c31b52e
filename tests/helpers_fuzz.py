"""Made-up input for `test_fuzz_*.py`: 500 inputs a parser, the same in every run."""

from __future__ import annotations

import contextlib
import io

import hypothesis
import numpy as np
from hypothesis import strategies as st
from PIL import Image

from seva_jax.types import DataError


def inputs(*makes):
    """Runs a check on 500 inputs, each made by functions of a seeded `random.Random`.

    Fifty draws of ten: hypothesis's own bookkeeping costs more than most parsers.
    """
    settings = hypothesis.settings(
        max_examples=50, derandomize=True, database=None, deadline=None,
        suppress_health_check=list(hypothesis.HealthCheck), phases=(hypothesis.Phase.generate,),
    )  # fmt: skip

    def decorate(check):
        num = 0

        @settings
        @hypothesis.given(st.randoms(use_true_random=True))
        def ten(rng):
            nonlocal num
            for _ in range(10):
                found = [make(rng) for make in makes]
                num += 1
                try:
                    check(*found)
                except Exception as error:
                    error.add_note(f"input: {found!r:.2000}")
                    raise

        def run():
            ten()
            assert num >= 500

        return run

    return decorate


HOSTILE = [
    "", " ", "\0", "../x", "/etc/passwd", "a.png", "<image>", "<image>\nWhat?", "</s>", "yes",
    "ü²³", "\ud800", "\u2028", "x" * 3000, "NaN", "1e999", "-1", "9" * 400, "<script>", "{}",
    "a.parquet/image/0/0", "a.parquet/image/²/0", "a.parquet/label/0/0",
]  # fmt: skip
LEAVES = [
    *HOSTILE, None, True, False, 0, 1, -1, 2**63, 10**400, 0.5, 1e308, float("nan"), float("inf"),
    [], {}, [[]] * 2, [None],
]  # fmt: skip
NAMES = (
    "id", "question_id", "image", "images", "image_id", "img_path", "question", "text", "prompt",
    "chosen", "rejected", "reject", "conversations", "rejected_conversations", "from", "value",
    "completions", "annotations", "response", "Rating", "Helpfulness", "messages", "role",
    "content", "type", "rejected_messages", "rejected_images", "rejected_response", "path", "bytes",
)  # fmt: skip


def anything(rng):
    """Draws a text of characters from all over Unicode."""
    return "".join(chr(rng.choice((rng.randrange(128), rng.randrange(0x11000)))) for _ in range(6))


def value(rng, depth=3):
    """Draws anything JSON can hold, and a few things that it cannot."""
    kind = rng.random() if depth else 0.0
    if kind < 0.6:
        return rng.choice(LEAVES)
    if kind < 0.8:
        return [value(rng, depth - 1) for _ in range(rng.randrange(4))]
    return {rng.choice(NAMES): value(rng, depth - 1) for _ in range(rng.randrange(4))}


def fields(rng, names, most=3, make=value):
    """Draws some of the names, with made-up values."""
    return {rng.choice(names): make(rng) for _ in range(rng.randrange(most + 1))}


@contextlib.contextmanager
def clean():
    """Accepts no error but a `DataError` with a message."""
    try:
        yield
    except DataError as error:
        text = str(error)
    else:
        return
    assert text.strip()
    text.encode("utf-8", "backslashreplace")


def picture(format_="PNG", **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3)).save(file, format_, **options)
    return file.getvalue()


def damaged(rng, good: bytes) -> bytes:
    """Returns `good` with bytes cut off, changed and inserted."""
    data = bytearray(good[: rng.choice((len(good), rng.randrange(len(good) + 1)))])
    for _ in range(rng.randrange(5)):
        at = rng.randrange(len(data) + 1)
        data[at : at + rng.randrange(4)] = rng.randbytes(rng.randrange(4))
    return bytes(data)
