"""A long run holds no more memory, files or threads at its end, and is no slower."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from helpers_run import environment
from soak import problems

SOAK = Path(__file__).parent / "soak.py"


@pytest.mark.slow
def test_a_thousand_steps(tmp_path):
    """They have 40 checkpoints and 8 evaluations; soak.py draws such a run as `soak.svg`."""
    command = [sys.executable, SOAK, "--steps", "1000", "--samples", tmp_path / "samples.json"]
    done = subprocess.run(
        list(map(str, command)), env=environment(),
        capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    samples = json.loads((tmp_path / "samples.json").read_text())
    assert [samples[0]["step"], samples[-1]["step"]] == [25, 1000]
    assert problems(samples) == []


@pytest.mark.parametrize(
    ("what", "slope"), [("memory", 2), ("files", 0.2), ("threads", 0.2), ("milliseconds", 1)]
)
def test_growth_is_noticed(what, slope):
    """2 MiB or a fifth of a file between samples are noticed; a flat run passes."""
    flat = {"memory": 800.0, "files": 10, "threads": 40, "milliseconds": 8.0}
    samples = [{"step": i, **flat} for i in range(40)]
    assert problems(samples) == []
    samples = [s | {what: s[what] + slope * i} for i, s in enumerate(samples)]
    (problem,) = problems(samples)
    assert problem.startswith(f"{what} grew from ")
