"""The step benchmark on a small model: all sides compute the same losses."""

import dataclasses
import importlib.util

import numpy as np
import pytest
from tiny_models import BENCHED

from seva_jax.bench import examples, step
from seva_jax.types import DataError

BENCH = step.StepBench(size="small", question=6, answer=5, rank=4, rounds=1, trl=False)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # TRL's and what it imports
def test_sides_agree(monkeypatch, capsys):
    """All sides have the same losses over two steps; TRL takes part where it is installed."""
    monkeypatch.setitem(examples.SIZES, "small", BENCHED)
    has_trl = importlib.util.find_spec("trl") is not None
    step.run_step(dataclasses.replace(BENCH, trl=has_trl))
    shown = capsys.readouterr().out
    names = [
        "ours, both cached",
        "ours, cached reference",
        "ours, reference in the step",
        "ours, two rows",
    ]
    names += ["TRL"] if has_trl else []
    named = [line for line in shown.splitlines() if line[:28].strip() in names]
    rows, limits = named[: len(names)], named[len(names) :]
    assert [row[:28].strip() for row in rows] == names, shown
    assert [limit[:28].strip() for limit in limits] == names[:3]
    best = [float(limit[28:].split()[0]) for limit in limits]
    assert 0 <= best[0] <= best[1] <= best[2], shown
    losses = np.array([[float(x) for x in row.split("x   ")[1].split(", ")] for row in rows])
    assert np.ptp(losses[0]) > 1e-3  # an update makes a difference
    np.testing.assert_allclose(losses, np.broadcast_to(losses[0], losses.shape), atol=2e-5)


def test_bad_numbers():
    with pytest.raises(DataError, match="must be at least 1"):
        step.run_step(dataclasses.replace(BENCH, pairs=0))
