"""Benchmarks of our own variants on a small model: both sides compute the same."""

import dataclasses

import numpy as np
import pytest
from tiny_models import BENCHED

from seva_jax.bench import packing, refill, scaling
from seva_jax.types import DataError

SCALING = scaling.ScalingBench(question=(6,), answer=(5,), branches=(3,), batch=(1,), rounds=1)
PACKING = packing.PackingBench(comparisons=12, batch=6, question=6, answer=(2, 60), rounds=1)
REFILL = refill.RefillBench(prompts=6, rows=4, answer=6, vocabulary=5, rounds=1)


@pytest.mark.slow
def test_losses_of_both_layouts_agree(monkeypatch, capsys):
    monkeypatch.setitem(scaling.SIZES, "small", BENCHED)
    scaling.run_scaling(dataclasses.replace(SCALING, rank=4))
    shown = capsys.readouterr().out.splitlines()[3:]
    assert [line.split()[:4] for line in shown] == [["6", "5", "3", "1"]]
    losses = np.array([[float(x) for x in line.split("x   ")[-1].split(", ")] for line in shown])
    np.testing.assert_allclose(losses[:, 0], losses[:, 1], atol=2e-5)


@pytest.mark.slow
def test_losses_of_packed_rows_agree(monkeypatch, capsys):
    monkeypatch.setitem(packing.SIZES, "small", BENCHED)
    packing.run_packing(dataclasses.replace(PACKING, rank=4))
    packed, alone = capsys.readouterr().out.splitlines()[3:]
    assert "up to" in packed  # several comparisons a row
    assert "up to" not in alone
    losses = [float(line.split("x   ")[1].split()[0]) for line in (packed, alone)]
    assert losses[0] == pytest.approx(losses[1], abs=2e-5)


@pytest.mark.slow
def test_refilled_answers_agree(monkeypatch, capsys):
    monkeypatch.setitem(refill.SIZES, "small", BENCHED)
    refill.run_refill(REFILL)
    assert "answers that agree: 100.0%" in capsys.readouterr().out


def test_bad_numbers():
    with pytest.raises(DataError, match="1 or more"):
        scaling.run_scaling(dataclasses.replace(SCALING, batch=()))
    with pytest.raises(DataError, match="rising"):
        packing.run_packing(dataclasses.replace(PACKING, answer=(9, 8)))
    with pytest.raises(DataError, match="must be at least 1"):
        refill.run_refill(dataclasses.replace(REFILL, rows=0))
