"""The code of seva_jax/EXTENDING.md runs unchanged."""

import dataclasses
import functools
import importlib
import re
import sys
from pathlib import Path

import pytest
from helpers_train import answers, replaced, small, table

import seva_jax
from seva_jax import train
from seva_jax.config import command_line, flatten, to_source
from seva_jax.config.config_files import read_config
from seva_jax.config.rounds import runs_of
from seva_jax.data.json_records import read_comparisons
from seva_jax.recipes import tiny
from seva_jax.runtime.journal import Journal
from seva_jax.runtime.run_records import read_metrics

PACKAGE = Path(seva_jax.__file__).parent
STAGES = table(before={"pairs": answers})
ONE_DEVICE = ("--mesh.fsdp", "1", "--mesh.tensor", "1")


def blocks(path):
    """Returns the Python blocks of a page, in order."""
    return re.findall(r"^```python\n(.*?)^```$", path.read_text("utf-8"), re.DOTALL | re.MULTILINE)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Writes the page's files, importable during the test, into the current directory."""
    before = set(sys.modules)
    for block in blocks(PACKAGE / "EXTENDING.md"):
        if name := re.match(r"# (my_\w+\.py)\n", block):
            (tmp_path / name[1]).write_text(block, "utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.removeprefix("seva_jax_config_").startswith("my_"):
            del sys.modules[name]


def test_the_page_runs(folder):
    files = {path.name for path in folder.iterdir()}
    assert len(files) == 9
    others = [block for block in blocks(PACKAGE / "EXTENDING.md") if not block.startswith("# my_")]
    tried = [block for block in others if "from my_" in block]
    assert len(tried) == 6
    # And three scripts: one runs below, one in test_notebook.py, the last needs a checkpoint.
    assert len(others) == 9
    for block in tried:
        exec(compile(block, "EXTENDING.md", "exec"), {})
    experiment = read_config(folder / "my_run.py")
    assert flatten(experiment)["corrupt.0"] == "my_corruption.Occlude"
    (folder / "again.py").write_text(to_source(experiment), "utf-8")
    assert read_config(folder / "again.py") == experiment
    experiment, _ = command_line.load_experiment(
        "test", ["--config", "my_run.py", "--corrupt.0.share", "0.7", "--objective.margin", "2"]
    )
    assert "Occlude(share=0.7)" in str(experiment.corrupt)
    assert experiment.objective.margin == 2


def test_a_system_in_one_file(folder):
    """Its parts, options and config can be rebuilt, and the package lists none of them."""
    argv = "--config my_system.py --pairs.lead 3 --objective.beta 0.3 --curriculum.rounds 3"
    experiment, _ = command_line.load_experiment("test", argv.split())
    assert (experiment.pairs.lead, experiment.objective.beta) == (3, 0.3)
    runs = runs_of(experiment)
    assert [run.optim.lr for run in runs] == [experiment.optim.lr / x for x in (1, 2, 4)]
    (folder / "again.py").write_text(to_source(experiment), "utf-8")
    del sys.modules["seva_jax_config_my_system"]  # as in another process
    assert flatten(read_config(folder / "again.py")) == flatten(experiment)
    for name in ("Wordier", "SquaredHinge", "Slower"):
        assert not [path for path in PACKAGE.rglob("*.py") if name in path.read_text("utf-8")]


@pytest.mark.slow
def test_a_system_in_one_file_trains(folder, one_device):
    """All rounds run, the second with the first one's result as its reference."""
    mine = read_config(folder / "my_system.py")
    names = ("pairs", "objective", "curriculum")
    parts = {name: getattr(mine, name) for name in names}
    experiment = dataclasses.replace(small("runs/wordier", *ONE_DEVICE), evals=(), **parts)
    runs = runs_of(experiment)
    train.run_all(runs, table=STAGES)
    for run in runs:
        rows = [row for row in read_metrics(Path(run.workdir)) if row["stage"] == "align"]
        assert rows[0]["loss"] == pytest.approx(1.0, abs=1e-5)  # the margin is 0
    del sys.modules["seva_jax_config_my_system"]
    found = read_config(folder / "runs/wordier/2/config.py")
    assert flatten(found) == flatten(runs[1])
    assert flatten(found.base.earlier()) == flatten(runs[0])


@pytest.mark.slow
def test_a_run_uses_all_of_the_page(folder, one_device, capsys):
    mine = read_config(folder / "my_run.py")
    mine = dataclasses.replace(mine, corrupt=mine.corrupt * 2, evals=mine.evals[-1:])
    shrunk = small("runs/mine", *ONE_DEVICE)
    prompts = dataclasses.replace(shrunk.evals[0].prompts, num=12)
    names = ("corrupt", "pairs", "objective", "loggers")
    experiment = dataclasses.replace(
        shrunk,
        **{name: getattr(mine, name) for name in names},
        evals=(dataclasses.replace(mine.evals[0], prompts=prompts),),
    )
    train.run(experiment, table=STAGES)
    rows = [line.split(",") for line in (folder / "runs/mine/metrics.csv").read_text().splitlines()]
    assert {"rewards/margins", "loss"} <= {name for stage, _, name, _ in rows if stage == "align"}
    out = capsys.readouterr().out
    assert re.search(r"^mentions +accuracy +higher +12 ", out, re.MULTILINE)
    assert re.search(
        r"^speed: .* pairs/s in training .*, 0\.\d\d device-hours on 8 × cpu$", out, re.M
    )
    assert "\r" not in out
    page = (folder / "runs/mine/report.html").read_text("utf-8").replace("<wbr>", "")
    assert "Occlude(share=0.6)" in page
    assert "Hinge(beta=0.5)" in page  # its margin is the default


@pytest.mark.slow
def test_a_builder_of_the_page_asks_the_model(folder, one_device, monkeypatch, capsys):
    """Real calls work in a run; interrupted in one of them, it makes the same pairs."""
    stages = table(instead=replaced("reference", "align", "report"))
    blind, append, pairs = read_builder(folder), Journal.append, []

    def interrupted(self, records):
        append(self, records)
        if self.path.parent.name == "calls":
            raise KeyboardInterrupt

    for name in ("whole", "parts"):
        experiment = dataclasses.replace(
            small(f"runs/{name}", *ONE_DEVICE), pairs=blind, corrupt=(), evals=()
        )
        if name == "parts":
            monkeypatch.setattr(Journal, "append", interrupted)
            with pytest.raises(KeyboardInterrupt):
                train.run(experiment, table=stages)
            monkeypatch.setattr(Journal, "append", append)
        train.run(experiment, table=stages)
        pairs.append(read_comparisons(folder / "runs" / name / "pairs.array_record"))
        (call,) = (folder / "runs" / name / "calls").iterdir()
        assert call.name == "without the image.jsonl"
    assert pairs[0] == pairs[1]
    assert all(pair.answers[0] != pair.answers[1] for pair in pairs[0])


def read_builder(folder):
    """Imports the page's builder from its file."""
    assert (folder / "my_builder.py").exists()
    return importlib.import_module("my_builder").Blind()


@pytest.mark.slow
def test_the_script_of_a_run_runs(tmp_path, one_device, monkeypatch, capsys):
    """The page's script runs a whole run and prints pairs and results."""
    (script,) = [b for b in blocks(PACKAGE / "EXTENDING.md") if "made = run(" in b]
    lines = [line for line in script.splitlines() if line.strip()]
    assert len(lines) <= 11
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tiny, "get_config", lambda: small("unused", *ONE_DEVICE))
    monkeypatch.setattr(train, "run", functools.partial(train.run, table=STAGES))
    exec(compile(script, "EXTENDING.md", "exec"), {})
    out = capsys.readouterr().out
    assert (tmp_path / "runs/notebook/report.html").exists()
    assert "chosen: red | rejected: " in out
    assert out.count("Metric(value=") == 2
