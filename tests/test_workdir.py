"""The work directory: skipped stages, refused configs, metrics."""

import dataclasses
import json

import pytest

from seva_jax.config.config_files import read_config
from seva_jax.config.experiment import Experiment
from seva_jax.config.options import ReportOptions
from seva_jax.config.source import fingerprint
from seva_jax.data.files import QuestionsJsonl, SevaJson
from seva_jax.objectives import DPO, Supervised
from seva_jax.run import workdir as workdir_module
from seva_jax.run.stage import FORMAT, Stage
from seva_jax.run.workdir import Workdir
from seva_jax.runtime import lock
from seva_jax.runtime.files import read_lines
from seva_jax.runtime.stores import is_remote
from seva_jax.sharding import MeshShape
from seva_jax.training.options import TrainOptions
from seva_jax.types import DataError


@pytest.fixture(params=["disk", "bucket"])
def folder(request, tmp_path):
    """Returns an empty folder, on a disk and in a bucket."""
    return request.getfixturevalue("bucket") if request.param == "bucket" else tmp_path


@pytest.fixture
def experiment(folder):
    """Returns the defaults, in a directory that does not exist yet."""
    return Experiment(workdir=str(folder / "deep" / "run"))


def test_opening_writes_a_config_that_rebuilds_the_run(experiment):
    """It is Python for people and `--config`, and JSON for comparisons."""
    workdir = Workdir.open(experiment)
    assert workdir.writes
    assert read_config(workdir.path / "config.py") == experiment
    assert json.loads((workdir.path / "config.json").read_text())["objective.beta"] == 0.1
    assert not list(workdir.path.glob("*.tmp"))
    assert Workdir.open(experiment) == workdir  # and again


def test_an_empty_directory_may_be_there_already(experiment, folder):
    """It does not matter who made it."""
    (folder / "deep" / "run").mkdir(parents=True)
    Workdir.open(experiment)


# --- stages ---------------------------------------------------------------------------------------


def test_a_directory_of_another_version_is_refused(experiment):
    """Version 0.1 wrote no format; the error is one line that says what to do."""
    workdir = Workdir.open(experiment)
    workdir.close()
    file = workdir.path / "config.json"
    config = json.loads(file.read_text())
    assert config.pop("format") == FORMAT
    file.write_text(json.dumps(config))
    with pytest.raises(DataError, match="was written by another version of seva_jax") as caught:
        Workdir.open(experiment)
    assert "finish it with that version, or choose another --workdir" in str(caught.value)
    assert "convert to-hf" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_stage_runs_once_for_each_fingerprint(experiment, capsys):
    """The same one is skipped, in a new process too; another one runs again."""
    ran = []

    def run():
        ran.append(1)
        return f"summary {len(ran)}"

    workdir = Workdir.open(experiment)
    workdir.run_stage(Stage("pairs", "aaaa", run))
    workdir.run_stage(Stage("pairs", "aaaa", run))
    Workdir.open(experiment).run_stage(Stage("pairs", "aaaa", run))
    assert len(ran) == 1
    assert "done before (summary 1)" in capsys.readouterr().out
    workdir.run_stage(Stage("pairs", "bbbb", run))
    assert len(ran) == 2
    workdir.run_stage(Stage("pairs", "aaaa", run))  # only the last one counts
    workdir.run_stage(Stage("rollouts", "aaaa", run))  # another stage is another stage
    assert len(ran) == 4
    stages = Workdir.open(experiment).stages()
    assert list(stages) == ["pairs", "rollouts"]
    assert stages["pairs"]["summary"] == "summary 3"
    assert stages["pairs"]["fingerprint"] == "aaaa"
    assert 0 <= stages["pairs"]["seconds"] < 60


def test_a_stage_that_fails_is_not_finished(experiment):
    """The ones before it stay finished."""
    workdir = Workdir.open(experiment)
    workdir.run_stage(Stage("one", "a", lambda: "fine"))

    def fails():
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        workdir.run_stage(Stage("two", "a", fails))
    assert list(Workdir.open(experiment).stages()) == ["one"]


def test_a_stage_is_taken_from_a_sibling(experiment, folder):
    """Its files are copied, also of a folder; the same stage of other inputs is not taken."""
    first = Workdir.open(dataclasses.replace(experiment, workdir=str(folder / "first")))
    files = ["rollouts.json", "calls/a/1.json", "calls/a.json"]

    def make():
        for name in files:
            (first.path / name).parent.mkdir(parents=True, exist_ok=True)
            (first.path / name).write_text(f'"{name}"')
        return "made"

    leaves = ["rollouts.json", "calls"]
    first.run_stage(Stage("base", "a", make, leaves))
    second = Workdir.open(experiment, siblings=[first.path])
    second.run_stage(Stage("base", "b", lambda: "own", leaves))
    assert not (second.path / "calls").exists()
    second.run_stage(Stage("base", "a", make, leaves))
    assert [json.loads((second.path / name).read_text()) for name in files] == files
    assert second.stages()["base"]["source"] == str(first.path)


def test_starting_over_keeps_what_was_there(experiment):
    """Files and folders are moved; the config stays."""
    workdir = Workdir.open(experiment)
    (workdir.path / "evals" / "base").mkdir(parents=True)
    (workdir.path / "evals" / "base" / "a.json").write_text("{}")
    workdir.run_stage(Stage("base", "a", lambda: "made"))
    workdir.start_over("base", "b", "something changed")
    aside = workdir.path / "set-aside" / "1"
    assert (aside / "evals" / "base" / "a.json").read_text() == "{}"
    assert (aside / "stages.json").exists()
    assert workdir.stages() == {}
    assert not (workdir.path / "evals").exists()
    assert Workdir.open(experiment).path == workdir.path


def test_fingerprints_depend_on_every_part():
    """Order, classes and fields count; the object's identity does not."""
    parts = [
        ("a", 1),
        (1, "a"),
        ("a1",),
        ("a", 1, None),
        (DPO(),),
        (DPO(beta=0.2),),
        (Supervised(),),
        (Experiment(),),
    ]
    assert len({fingerprint(*p) for p in parts}) == len(parts)
    assert fingerprint(DPO(), "x") == fingerprint(DPO(beta=0.1), "x")
    assert fingerprint({"b": 1, "a": 2}) == fingerprint({"a": 2, "b": 1})


def test_a_fingerprint_is_the_same_in_every_process():
    """A change of this golden makes every existing work directory run again.

    `fingerprint("a", 1, [2.5, None])` printed it.
    """
    assert fingerprint("a", 1, [2.5, None]) == "93f17ca066394148"


# --- other configs --------------------------------------------------------------------------------


def finished(experiment):
    """Makes the directory of a run that has finished a stage; a result is worth a refusal."""
    workdir = Workdir.open(experiment)
    workdir.run_stage(Stage("rollouts", "same", lambda: "answered"))
    return workdir


def test_another_config_is_refused_field_by_field(experiment):
    """The error has the value there and the value now."""
    finished(experiment)
    other = dataclasses.replace(
        experiment,
        seed=7,
        objective=DPO(beta=0.25),
        train=TrainOptions(trained=("lora",)),
        corrupt=(),
    )
    with pytest.raises(DataError) as caught:
        Workdir.open(other)
    text = str(caught.value)
    for line in (
        "seed: 42 there, 7 now",
        "objective.beta: 0.1 there, 0.25 now",
        "train.trained: ['lora', 'projector'] there, ['lora'] now",
        "corrupt.0.step: 500 there, 'absent' now",
    ):
        assert line in text
    assert experiment.workdir in text
    assert "choose another --workdir" in text
    assert "optim" not in text
    # What was there is untouched, so the first config still opens it.
    assert read_config(Workdir.open(experiment).path / "config.py") == experiment


def test_another_class_with_the_same_fields_is_another_config(experiment):
    """The class itself is compared."""
    finished(experiment)
    with pytest.raises(DataError, match=r"objective: 'seva_jax\.objectives\.DPO' there"):
        Workdir.open(dataclasses.replace(experiment, objective=Supervised()))


@pytest.mark.parametrize(
    ("change", "keeps_answers"),
    [({"objective": Supervised()}, True), ({"seed": 7}, False), ({"corrupt": ()}, False)],
)
def test_a_directory_without_a_result_takes_a_changed_config(
    experiment, folder, change, keeps_answers, capsys
):
    """Answers that still fit stay; all else that was begun is set aside, not removed."""
    path = Workdir.open(experiment).path
    begun = {"rollouts.jsonl": "answers", "metrics.jsonl": "", "checkpoints": None}
    for name, text in begun.items():
        file = path / name / "1" if text is None else path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text or "weights")
    changed = dataclasses.replace(experiment, **change)
    assert Workdir.of(changed).path == path  # looking changes nothing
    assert read_config(path / "config.py") == experiment
    capsys.readouterr()
    Workdir.open(changed)
    said = capsys.readouterr().out
    assert said.count("\n") == 1
    assert "no stage had finished there, so its config changes (" in said
    assert f"; what it had begun is in {path}/set-aside/1" in said
    assert read_config(path / "config.py") == changed
    aside = path / "set-aside" / "1"
    assert (path / "rollouts.jsonl").exists() is keeps_answers
    assert (aside / "rollouts.jsonl").exists() is not keeps_answers
    assert (aside / "checkpoints" / "1").read_text() == "weights"
    assert not (path / "checkpoints").exists()
    Workdir.open(changed)  # now it is this run's
    assert capsys.readouterr().out == ""


def test_a_directory_in_use_is_not_taken_over(experiment, tmp_path):
    """Its run may just be in its first stage; nothing is written."""
    local = dataclasses.replace(experiment, workdir=str(tmp_path / "run"))
    path = Workdir.open(local).path
    Workdir.open(local).close()
    holder = lock.Holder("another host", 7, "", "now")
    (path / lock.NAME).write_text(json.dumps(holder._asdict()))
    for changed in (local, dataclasses.replace(local, seed=7)):
        with pytest.raises(DataError, match="run is in use by process 7 on another host"):
            Workdir.of(changed)
    assert read_config(path / "config.py") == local


@pytest.mark.parametrize(
    "change",
    [
        {"mesh": MeshShape(data=1, tensor=8)},
        {"report": ReportOptions(num_pairs=3)},
        {"train": TrainOptions(log_every=3)},
        {"train": TrainOptions(save_every=3, save_every_s=5)},
    ],
)
def test_fields_that_change_no_result_may_change(experiment, change):
    """The directory remembers the last value."""
    Workdir.open(experiment)
    other = dataclasses.replace(experiment, **change)
    workdir = Workdir.open(other)
    assert read_config(workdir.path / "config.py") == other
    Workdir.open(experiment)


def test_a_moved_directory_still_belongs_to_its_run(experiment, folder):
    """Its name is not part of the run."""
    Workdir.open(experiment)
    (folder / "deep" / "run").rename(folder / "moved")
    Workdir.open(dataclasses.replace(experiment, workdir=str(folder / "moved")))


def test_a_directory_of_something_else_is_refused(experiment, folder):
    """Nothing is written into it."""
    there = folder / "deep" / "run"
    there.mkdir(parents=True)
    (there / "thesis.tex").write_text("years of work")
    with pytest.raises(DataError, match=r"run is not empty and holds no run; choose another"):
        Workdir.open(experiment)
    assert [p.name for p in there.iterdir()] == ["thesis.tex"]


def test_logs_of_a_start_that_failed_before_are_no_obstacle(experiment, tmp_path):
    """The launcher writes them before the run has made its directory."""
    (tmp_path / "deep" / "run" / "logs").mkdir(parents=True)
    (tmp_path / "deep" / "run" / "logs" / "worker-0.log").write_text("no such config")
    opened = Workdir.open(experiment)
    assert (opened.path / "config.json").is_file()


@pytest.mark.parametrize("name", ["file", "file/below"])
def test_a_file_in_the_way_is_named(tmp_path, name):
    """A workdir may be a file, or below one."""
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="file"):
        Workdir.open(Experiment(workdir=str(tmp_path / name)))


@pytest.mark.parametrize("name", ["to_source", "write_json"])
def test_a_kill_while_opening_leaves_a_directory_that_opens(experiment, monkeypatch, name):
    """It opens, whatever was written first."""

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(workdir_module, name, killed)
        with pytest.raises(KeyboardInterrupt):
            Workdir.open(experiment)
    assert read_config(Workdir.open(experiment).path / "config.py") == experiment


@pytest.mark.parametrize("name", ["config.json", "stages.json"])
def test_damaged_records_are_named(experiment, name):
    """Whatever a disk leaves of them, the error is one line."""
    path = Workdir.open(experiment).path
    (path / name).write_bytes(b"")
    with pytest.raises(DataError, match=rf"{name} cannot be read") as caught:
        Workdir.open(experiment).stages()
    assert "\n" not in str(caught.value)


# --- metrics --------------------------------------------------------------------------------------


def test_rows_of_a_replayed_step_count_once(experiment):
    """A resumed run repeats the steps since its last checkpoint; the later row wins."""
    workdir = Workdir.open(experiment)
    assert workdir.read_metrics() == []
    write = workdir.metrics("align").write
    for step in (10, 20, 30):
        write(step, {"loss": float(step)})
    write = workdir.metrics("base").write
    write(20, {"loss": 0.5})
    write = Workdir.open(experiment).metrics("align").write  # resumed from step 10
    for step in (20, 30, 40):
        write(step, {"loss": step + 0.25})
    found = [(r["stage"], r["step"], r["loss"]) for r in workdir.read_metrics()]
    assert found == [
        ("align", 10, 10.0),
        ("align", 20, 20.25),
        ("align", 30, 30.25),
        ("align", 40, 40.25),
        ("base", 20, 0.5),
    ]


def test_rows_of_lost_steps_are_dropped(experiment):
    """Only rows of the resumed stage after its checkpoint go; numbers are unchanged."""
    workdir = Workdir.open(experiment)
    for stage in ("base", "align"):
        write = workdir.metrics(stage).write
        for step in (2, 4, 6):
            write(step, {"loss": step / 3})
    file = workdir.path / "metrics.jsonl"
    before = read_lines(file)
    workdir.metrics("align").forget_after(4)
    assert read_lines(file) == before[:5]
    workdir.metrics("align").forget_after(6)
    assert read_lines(file) == before[:5]
    workdir.metrics("base").forget_after(0)
    assert read_lines(file) == before[3:5]


def test_metrics_are_on_disk_row_by_row(experiment):
    """A killed run keeps what it logged, except the line it died in."""
    workdir = Workdir.open(experiment)
    write = workdir.metrics("align").write
    write(1, {"loss": 0.125, "rewards/margins": -1e-8})
    file = workdir.path / "metrics.jsonl"
    row = {"stage": "align", "step": 1, "loss": 0.125, "rewards/margins": -1e-8}
    assert read_lines(file) == [row]
    if not is_remote(file):  # where a row is an object, which appears whole or not at all
        assert json.loads(file.read_text()) == row
        with file.open("a") as opened:
            opened.write('{"stage": "align", "st')
    assert [r["step"] for r in workdir.read_metrics()] == [1]
    write = workdir.metrics("align").write
    write(2, {"loss": 0.0})
    assert [r["step"] for r in workdir.read_metrics()] == [1, 2]


def test_a_process_that_does_not_write_leaves_no_trace(experiment, tmp_path):
    """Only process 0 writes; the others run the same code."""
    other = Workdir(tmp_path / "other", writes=False)
    ran = []
    other.run_stage(Stage("pairs", "a", lambda: ran.append(1) or "summary"))
    write = other.metrics("align").write
    write(1, {"loss": 0.0})
    assert ran
    assert not other.path.exists()


def test_fingerprints_tell_classes_with_the_same_fields_apart():
    """LLaVA's questions and TRL's pairs may be in files of the same names."""
    assert fingerprint(SevaJson("f", "images")) != fingerprint(QuestionsJsonl("f", "images"))
    assert fingerprint(SevaJson("f", "images")) == fingerprint(SevaJson("f", "images"))
