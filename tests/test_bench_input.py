"""The input benchmark: both sides make the same pixels."""

import pytest

from seva_jax.bench.input import InputBench, run_input
from seva_jax.types import DataError


def test_the_same_pixels(capsys):
    run_input(InputBench(height=300, width=400, images=2, rounds=1))
    shown = capsys.readouterr().out
    assert "largest difference between the two: 0.0e+00" in shown
    assert shown.count("x\n") == 5


def test_bad_numbers():
    with pytest.raises(DataError, match="must be at least 1"):
        run_input(InputBench(images=0))
