"""The sampler benchmark on a small model: both sides give the same tokens."""

import dataclasses
import importlib.util

import pytest

from seva_jax.bench import sample
from seva_jax.bench.examples import SIZES
from seva_jax.bench.options import SampleBench
from seva_jax.types import DataError

BENCH = SampleBench(size="tiny", rows=2, question=6, answer=5, rounds=1, hf=False)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # transformers' and what it imports
def test_both_sides_give_the_same_tokens(capsys):
    has_torch = importlib.util.find_spec("torch") is not None
    sample.run_sample(dataclasses.replace(BENCH, hf=has_torch))
    shown = capsys.readouterr().out
    assert "\nours " in shown
    assert "\nours, int8 cache  prompts" in shown
    assert shown.count("% of the copying rate") == 2
    assert ("the same tokens until the first that differs: 100.0%" in shown) == has_torch


@pytest.mark.parametrize(
    ("rows", "cache", "gigabytes"),
    [(32, "exact", 25.0), (32, "int8", 19.1), (64, "exact", 36.8)],
)
def test_bytes_of_a_token_step(rows, cache, gigabytes):
    """As counted by hand for LLaVA-1.5-7B in bfloat16, 640 tokens of prompt and half of 128 new."""
    counted = sample.step_bytes(SIZES["7b"], rows, 640 + 64, 2, cache) / 1e9
    assert counted == pytest.approx(gigabytes, abs=0.25)


def test_transformers_takes_the_rows_that_fit():
    torch = pytest.importorskip("torch")
    from seva_jax.bench.hf_sample import HfSample

    class Small(HfSample):
        def __init__(self, rows):
            self.rows = rows

        def __call__(self):
            if self.rows > 3:
                raise torch.cuda.OutOfMemoryError
            return self.rows

    assert Small(12).warm_up() == [3]


def test_bad_numbers():
    with pytest.raises(DataError, match="must be at least 1"):
        sample.run_sample(dataclasses.replace(BENCH, rows=0))
    with pytest.raises(DataError, match="give --caches or --hf"):
        sample.run_sample(dataclasses.replace(BENCH, caches=()))
