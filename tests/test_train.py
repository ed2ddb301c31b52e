"""The main command on a very small world."""

import importlib.metadata
import re

import numpy as np
import pytest
from helpers_train import answers, opened, small, table

from seva_jax import train
from seva_jax.config.base_models import Checkpoint
from seva_jax.config.config_files import config_directory, read_config
from seva_jax.convert import load_params
from seva_jax.convert.__main__ import open_source
from seva_jax.convert.rewrite import to_hf
from seva_jax.report.__main__ import main as compare_runs
from seva_jax.run.workdir import StageMetrics
from seva_jax.types import DataError


def kill_at(step):
    """Returns a replacement for `StageMetrics.write` that dies when alignment logs a step."""
    write = StageMetrics.write

    def write_or_die(self, at, values):
        write(self, at, values)
        if (self.stage, at) == ("align", step):
            raise Killed

    return write_or_die


class Killed(Exception):
    """Stands for the end of the process."""


def only_dependencies(name, installed=importlib.metadata.distribution):
    """Finds the metadata of packages as when ours is a source tree on PYTHONPATH."""
    if name.replace("-", "_") == "seva_jax":
        raise importlib.metadata.PackageNotFoundError(name)
    return installed(name)


@pytest.mark.slow
def test_the_whole_run_resumes_and_refuses(tmp_path, monkeypatch, four_devices, capsys):
    """Killed inside alignment it ends with the same weights; finished, it is skipped."""
    monkeypatch.setattr(importlib.metadata, "distribution", only_dependencies)
    stages = table(before={"pairs": answers})
    whole = train.run(small(tmp_path / "whole"), table=stages)
    folder = tmp_path / "whole"
    for name in ("config.py", "config.json", "pairs.array_record", "metrics.jsonl", "report.html"):
        assert (folder / name).exists(), name
    rows = [r for r in whole.ctx.workdir.read_metrics() if r["stage"] == "align"]
    assert [r["step"] for r in rows] == [1, 2, 3, 4, 5, 6]
    # Half of the comparisons have two rejected answers, so the loss starts between log 2 and 3.
    assert np.log(2) - 1e-5 <= rows[0]["loss"] <= np.log(3) + 1e-5
    assert abs(rows[0]["rewards/margins"]) < 1e-5
    assert read_config(folder / "config.py") == whole.ctx.config

    experiment = small(tmp_path / "killed")
    with monkeypatch.context() as patch:
        patch.setattr(StageMetrics, "write", kill_at(5))
        with pytest.raises(Killed):
            train.run(experiment, table=stages)
    resumed = train.run(experiment, table=stages)
    for a, b in zip(
        train.jax.tree.leaves(whole.aligned), train.jax.tree.leaves(resumed.aligned), strict=True
    ):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
    again = [r for r in resumed.ctx.workdir.read_metrics() if r["stage"] == "align"]
    assert [r["loss"] for r in again] == [r["loss"] for r in rows]

    # Its base model was trained here, so the export makes a checkpoint of that first.
    to_hf(open_source(folder), tmp_path / "exported")
    base, exported = (
        load_params(directory, whole.ctx.assets.config)
        for directory in (folder / "base-hf", tmp_path / "exported")
    )
    train.jax.tree.map(np.testing.assert_array_equal, base, whole.base)
    adapter = train.jax.tree.map(np.asarray, whole.aligned["lora"]["language"]["layers"]["q_proj"])
    kernels = (x["language"]["layers"]["q_proj"]["kernel"] for x in (base, exported))
    change = np.einsum("lir,lro->lio", adapter["a"], adapter["b"])
    change *= experiment.lora.alpha / experiment.lora.rank
    before, after = map(np.asarray, kernels)
    np.testing.assert_allclose(after - before, change, atol=1e-6)
    assert np.abs(change).max() > 1e-4
    assert Checkpoint(str(tmp_path / "exported")).assets().processing == whole.ctx.assets.processing

    capsys.readouterr()
    train.run(experiment, table=stages)
    shown = capsys.readouterr().out
    assert shown.count("done before") == len(whole.ctx.workdir.stages())
    with pytest.raises(DataError, match=r"objective\.beta: 0\.5 there, 0\.3 now"):
        opened(small(tmp_path / "killed", "--objective.beta", "0.3"))

    features = tmp_path / "features"
    changed = ["--objective.beta", "0.3", "--train.feature-cache", str(features)]
    other = train.run(small(tmp_path / "other", *changed), [folder], stages)
    images = {name for c in other.comparisons.comparisons for name in c.prompt.images}
    assert 0 < len(list(features.rglob("*.npz"))) <= len(images)
    assert rows[0]["loss"] == pytest.approx(
        next(r for r in other.ctx.workdir.read_metrics() if r["stage"] == "align")["loss"], abs=1e-5
    )
    shown = capsys.readouterr().out
    assert shown.count(f"taken from {folder}") == 5
    assert "▶ align" in shown
    for a, b in zip(
        train.jax.tree.leaves(whole.base),
        train.jax.tree.leaves(other.base),
        strict=True,
    ):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
    compare_runs(
        ["--runs", str(folder), str(tmp_path / "other"), "--out", str(tmp_path / "c.html")]
    )
    page = (tmp_path / "c.html").read_text()
    assert page.count('<figure class="chart">') == 4
    assert "objective.<wbr>beta" in page
    assert re.search(r">color-balanced accuracy</th><td[^>]*>[01]\.\d{3} \[[01]\.\d{3}, ", page)
    differences = page.partition("Differences to whole</h2>")[2]
    assert re.search(
        r">color-balanced accuracy</th><td[^>]*>[+−]\d\.\d{3} \[[+−]\d\.\d", differences
    )


def test_runs_that_cannot_be_compared(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    for path, expected in ((tmp_path / "no", "no config.json"), (tmp_path, "no alignment metrics")):
        with pytest.raises(SystemExit, match=f"error: {path} .*{expected}"):
            compare_runs(["--runs", str(path), "--out", str(tmp_path / "c.html")])


def test_errors_are_one_line_and_non_zero(capsys):
    """Bad input gives no traceback."""
    with pytest.raises(SystemExit) as caught:
        train.main(["--config", str(config_directory() / "tiny.py"), "--train.batch-size", "0"])
    assert "train.batch_size must be at least 1" in str(caught.value.code)
    with pytest.raises(SystemExit) as caught:
        train.main(["--config", "nowhere.py"])
    assert "nowhere.py does not exist" in str(caught.value.code)


def test_print_config_rebuilds_the_experiment(capsys, tmp_path):
    """`--print-config` shows a config file."""
    train.main(["--print-config", "--optim.lr", "3e-4"])
    (tmp_path / "c.py").write_text(capsys.readouterr().out)
    assert read_config(tmp_path / "c.py").optim.lr == 3e-4
