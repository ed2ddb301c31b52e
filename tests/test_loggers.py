"""Loggers: what they receive, in which run, and what happens without their packages."""

import dataclasses
import re
import socket
import sys
import types
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from seva_jax.config.base_models import Checkpoint
from seva_jax.config.experiment import Experiment, check
from seva_jax.run.workdir import Workdir
from seva_jax.runtime.files import append_lines
from seva_jax.runtime.loggers import (
    LoggedPair,
    LoggedRun,
    Logger,
    LogWriter,
    TensorBoard,
    Trackio,
    WandB,
)
from seva_jax.types import DataError

PAIR = LoggedPair(np.zeros((4, 8, 3), np.uint8), "question\nchosen: a\nrejected: b")


class Memory(LogWriter):
    """Keeps what it is given."""

    def __init__(self, seen):
        self.seen = seen

    def scalars(self, stage, step, values):
        self.seen.append((stage, step, dict(values)))

    def pairs(self, pairs: Sequence[LoggedPair]):
        self.seen.append(("pairs", len(pairs)))

    def close(self):
        self.seen.append("closed")


@dataclasses.dataclass(frozen=True)
class Remember(Logger):
    """A logger as somebody else would write it."""

    seen: list = dataclasses.field(default_factory=list, hash=False)

    def open(self, run):
        self.seen.append(("opened", run.folder.name, run.num_rows, run.config["objective.beta"]))
        return Memory(self.seen)


def test_a_logger_gets_what_the_file_gets_once_for_the_run(tmp_path):
    seen = []
    workdir = dataclasses.replace(
        Workdir.open(Experiment(workdir=str(tmp_path / "run"))), loggers=(Remember(seen),)
    )
    workdir.log_pairs(lambda: [PAIR])
    for stage in ("base", "align"):
        write = workdir.metrics(stage).write
        write(1, {"loss": 0.5})
    workdir.log_pairs(lambda: [PAIR])  # a resumed run: they were shown before
    workdir.close()
    rows = [("base", 1, {"loss": 0.5}), ("align", 1, {"loss": 0.5})]
    assert seen == [("opened", "run", 0, 0.1), ("pairs", 1), *rows, "closed"]

    again = dataclasses.replace(workdir, writes=False)  # another process of the run
    again.log_pairs(lambda: [PAIR])
    write = again.metrics("align").write
    write(2, {"loss": 0.5})
    again.close()
    assert len(seen) == 5


def test_tensorboard_continues_and_replaces_repeated_steps(tmp_path):
    pytest.importorskip("tensorboardX")
    experiment = Experiment(workdir=str(tmp_path), loggers=(TensorBoard(),))
    check(experiment)
    for start in (1, 2):  # killed after step 2, whose checkpoint was that of step 1
        workdir = Workdir.open(experiment)
        workdir.log_pairs(lambda: [PAIR])
        write = workdir.metrics("align").write
        for step in (start, start + 1):
            write(step, {"rewards/margins": step / 2})
        workdir.close()
    found, purged = [], []
    for file in sorted((tmp_path / "tensorboard" / "align").iterdir()):
        for record in events(file):
            if record.HasField("session_log"):
                purged.append(record.step)
            found += [(record.step, v.simple_value) for v in record.summary.value]
    assert sorted(set(found)) == [(1, 0.5), (2, 1.0), (3, 1.5)]
    assert purged[-1] == 2
    (pictures,) = (tmp_path / "tensorboard" / "pairs").iterdir()
    tags = {v.tag for record in events(pictures) for v in record.summary.value}
    assert {"pair/0", "pair/0/text_summary"} <= tags


def events(path):
    """Yields an event file's records: each is a length, its checksum, data and its checksum."""
    from tensorboardX.proto.event_pb2 import Event

    data = path.read_bytes()
    while data:
        size = int.from_bytes(data[:8], "little")
        yield Event.FromString(data[12 : 12 + size])
        data = data[16 + size :]


class FakeWandB(types.ModuleType):
    """The part of the package that is used; remembers calls."""

    Error = RuntimeError

    def __init__(self):
        super().__init__("wandb")
        self.calls = []

    def Settings(self, **settings):
        return settings

    def Image(self, image, caption):
        return image.shape, caption

    def init(self, **options):
        self.calls.append(("init", options))
        if options["mode"] == "online":
            raise self.Error("no API key")
        return self

    def define_metric(self, name, step_metric=None):
        self.calls.append((name, step_metric))

    def log(self, row, step):
        self.calls.append((row, step))

    def finish(self):
        self.calls.append("finish")


def test_wandb_continues_the_same_run(tmp_path, monkeypatch):
    fake = FakeWandB()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    base = Checkpoint("/mnt/of-alice/llava")
    experiment = Experiment(workdir=str(tmp_path), base=base, loggers=(WandB(project="mine"),))
    check(experiment)
    for step in (1, 2):
        workdir = Workdir.open(experiment)
        workdir.log_pairs(lambda: [PAIR])
        write = workdir.metrics("align").write
        write(step, {"loss": 0.5})
        workdir.close()
    first, second = (call[1] for call in fake.calls if call[0] == "init")
    assert first["id"] == second["id"] == (tmp_path / "wandb_id.txt").read_text().strip()
    assert (first["project"], first["name"], first["mode"]) == ("mine", tmp_path.name, "offline")
    assert first["config"]["objective.beta"] == 0.1
    assert not first["settings"]["save_code"]
    assert first["config"]["base.path"] == "…/llava"
    assert first["config"]["workdir"] == f"…/{tmp_path.name}"
    rows = [call for call in fake.calls if isinstance(call[0], dict)]
    assert rows == [
        ({"pairs": [((4, 8, 3), PAIR.caption)]}, 0),
        ({"align/loss": 0.5, "align/step": 1}, 0),
        ({"align/loss": 0.5, "align/step": 2}, 1),
    ]
    assert ("align/*", "align/step") in fake.calls
    assert fake.calls.count("finish") == 2
    online = Workdir.open(dataclasses.replace(experiment, loggers=(WandB(mode="online"),)))
    with pytest.raises(DataError, match=r"no API key; run `wandb login` once, or set mode=\"off"):
        online.metrics("align")


def test_what_wandb_writes_does_not_tell_whose_machine_it_is(tmp_path):
    """What the real package would send has no host, user, path or package list."""
    wandb = pytest.importorskip("wandb")
    run = LoggedRun(tmp_path / "run", {"workdir": str(tmp_path / "run"), "beta": 0.1}, 0)
    run.folder.mkdir()
    writer = WandB().open(run)
    writer.scalars("align", 1, {"loss": 0.5})
    writer.pairs([PAIR])
    writer.close()
    wandb.teardown()  # its service writes the last
    (folder,) = (run.folder / "wandb").glob("offline-run-*")
    sent = [p for p in folder.rglob("*") if p.is_file() and p.parent.name != "logs"]
    assert {p.suffix for p in sent} == {".wandb", ".png"}
    (record,) = (p.read_bytes() for p in sent if p.suffix == ".wandb")
    assert b"align/loss" in record
    machine = (socket.gethostname(), str(tmp_path), sys.executable, sys.prefix, str(Path.cwd()))
    for secret in (*machine, sys.argv[0], "numpy"):
        assert not re.search(rb"(?<!\w)" + re.escape(secret.encode()) + rb"(?!\w)", record), secret


class FakeTrackio(types.ModuleType):
    """The part of trackio that is used, with its signatures; runs are found by name."""

    def __init__(self):
        super().__init__("trackio")
        self.runs, self.options = {}, []
        self.sqlite_storage = types.ModuleType("trackio.sqlite_storage")
        self.sqlite_storage.SQLiteStorage = types.SimpleNamespace(get_logs=self.get_logs)

    def get_logs(self, project, run=None, max_points=None):
        return [row for of, row in self.runs.get((project, run), ()) if of]

    def init(
        self, project, name=None, group=None, space_id=None, config=None, resume="never",
        embed=True, auto_log_gpu=None, auto_log_cpu=None,
    ):  # fmt: skip
        assert resume == "allow"
        rows = self.runs.setdefault((project, name), [])
        self.options.append(config)

        def log(metrics, step=None):
            rows.append([False, metrics | {"step": step}])  # sent by a thread, later

        self.current = rows
        return types.SimpleNamespace(log=log)

    def finish(self):
        for row in self.current:
            row[0] = True

    def Image(self, value, caption=None):
        return {"shape": value.shape, "caption": caption}


@pytest.fixture(params=["real", "fake"])
def trackio(request, tmp_path_factory, monkeypatch):
    """Returns trackio or its fake, with an empty folder for what it keeps."""
    for name in [name for name in sys.modules if name.split(".")[0] == "trackio"]:
        monkeypatch.delitem(sys.modules, name)
    if request.param == "fake":
        fake = FakeTrackio()
        monkeypatch.setitem(sys.modules, "trackio", fake)
        monkeypatch.setitem(sys.modules, "trackio.sqlite_storage", fake.sqlite_storage)
        return fake
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path_factory.mktemp("trackio")))
    return pytest.importorskip("trackio")


def test_trackio_continues_without_missing_or_repeated_steps(tmp_path, monkeypatch, trackio):
    """Logs of steps 1 and 2, lost between their file and trackio, and 3 and 4 after a resume."""
    base = Checkpoint("/mnt/of-alice/llava")
    config = Experiment(workdir=str(tmp_path), base=base, loggers=(Trackio(project="mine"),))
    check(config)
    for steps in ((1, 2), (2, 4)):
        workdir = Workdir.open(config)
        workdir.log_pairs(lambda: [PAIR])
        if steps[0] == 2:  # a row that a kill kept from trackio
            append_lines(tmp_path / "metrics.jsonl", [{"stage": "align", "step": 3, "loss": 1.5}])
        write = workdir.metrics("align").write
        for step in steps:
            write(step, {"loss": step / 2})
        workdir.metrics("base").write(steps[0], {"loss": 9.0})
        workdir.close()
    name = (tmp_path / "trackio_run.txt").read_text().strip()
    assert re.fullmatch(re.escape(tmp_path.name) + "-[0-9a-f]{6}", name)
    rows = trackio.sqlite_storage.SQLiteStorage.get_logs("mine", name)
    losses = [(row["step"], row["align/loss"]) for row in rows if "align/loss" in row]
    assert sorted(losses) == [(1, 0.5), (2, 1.0), (3, 1.5), (4, 2.0)]
    assert sorted(row["step"] for row in rows if "base/loss" in row) == [1, 2]
    (pair,) = (row["pair/0"] for row in rows if "pair/0" in row)
    assert pair["caption"] == PAIR.caption
    if isinstance(trackio, FakeTrackio):
        assert trackio.options[0]["base.path"] == "…/llava"
    else:
        (run,) = trackio.Api().runs("mine")
        assert run.config["base.path"] == "…/llava"
        assert run.config["objective.beta"] == 0.1


def test_trackio_stays_on_this_machine(monkeypatch, trackio):
    monkeypatch.setenv("TRACKIO_SPACE_ID", "alice/runs")
    with pytest.raises(DataError, match="TRACKIO_SPACE_ID is set, which would send them elsewhere"):
        check(Experiment(loggers=(Trackio(),)))


@pytest.mark.parametrize(
    ("logger", "package", "extra"),
    [
        (TensorBoard(), "tensorboardX", "tensorboard"),
        (WandB(), "wandb", "wandb"),
        (Trackio(), "trackio", "trackio"),
    ],
)
def test_a_missing_package_is_named_with_its_extra(monkeypatch, logger, package, extra):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(DataError, match=rf"needs {package}: pip install 'seva_jax\[{extra}\]'"):
        check(Experiment(loggers=(logger,)))
