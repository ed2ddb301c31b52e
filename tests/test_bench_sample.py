"""The sampler benchmark on a small model: both sides give the same tokens."""

import dataclasses
import importlib.util

import pytest
from tiny_models import BENCHED

from seva_jax.bench import sample
from seva_jax.types import DataError

BENCH = sample.SampleBench(rows=2, question=6, answer=5, rounds=1, hf=False)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # transformers' and what it imports
def test_both_sides_give_the_same_tokens(monkeypatch, capsys):
    monkeypatch.setitem(sample.SIZES, "small", BENCHED)
    has_torch = importlib.util.find_spec("torch") is not None
    sample.run_sample(dataclasses.replace(BENCH, hf=has_torch))
    shown = capsys.readouterr().out
    assert "\nours " in shown
    assert ("the same tokens until the first that differs: 100.0%" in shown) == has_torch


def test_bad_numbers():
    with pytest.raises(DataError, match="must be at least 1"):
        sample.run_sample(dataclasses.replace(BENCH, rows=0))
