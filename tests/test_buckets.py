"""Configs, suites, evaluations, reports and logs in a bucket: what they leave is as on a disk.

What does not live here: the store itself (`test_stores.py`), a whole run with the real commands
(`test_bucket_commands.py`), which places of the source may take local paths only (`test_paths.py`).
"""

import dataclasses
import sys

import gcsfs
import numpy as np
import pytest
import test_evaluate
from helpers_gcs import download
from helpers_judge import chat, server
from helpers_report import write_run
from test_evaluate import Parrot, written
from test_loggers import PAIR, FakeWandB, events

from seva_jax import train
from seva_jax.bench.study import num_pairs
from seva_jax.config.base_models import Checkpoint
from seva_jax.config.command_line import load_experiment
from seva_jax.config.config_files import read_config, read_suites
from seva_jax.config.experiment import Experiment, check
from seva_jax.config.rounds import Iterations, runs_of
from seva_jax.config.source import flatten, to_source
from seva_jax.evals import read_result
from seva_jax.evals.endpoint import OpenAICompatible
from seva_jax.evals.judge import Case
from seva_jax.evals.suites import GQA, PopeSets
from seva_jax.evaluate import main as evaluate_main
from seva_jax.evaluate import tables
from seva_jax.plan.table import write_csv
from seva_jax.report.__main__ import main as compare_runs
from seva_jax.report.closing import closing_summary, how_to_open
from seva_jax.run import evaluations
from seva_jax.run.workdir import Workdir
from seva_jax.runtime import loggers
from seva_jax.runtime.copies import upload
from seva_jax.runtime.files import append_lines, read_lines, write_json
from seva_jax.runtime.loggers import LoggedRun, TensorBoard, WandB
from seva_jax.runtime.paths import hide_home
from seva_jax.runtime.stores import as_path
from seva_jax.types import DataError

# --- configs and suites ---------------------------------------------------------------------------

CLASS = (
    "import dataclasses\n"
    "from seva_jax.objectives import DPO\n"
    "@dataclasses.dataclass(frozen=True)\n"
    "class {name}(DPO):\n"
    "    more: float = 1.0\n"
)
CONFIG = (
    CLASS.format(name="Mine") + "import bucket_beside\n"
    "from seva_jax.config.experiment import Experiment\n"
    "from seva_jax.objectives import Mixed, Part\n"
    "def get_config():\n"
    "    parts = Part(Mine(more=2.0)), Part(bucket_beside.Beside(more=3.0))\n"
    "    return Experiment(objective=Mixed(parts))\n"
)


@pytest.fixture
def config(bucket, monkeypatch):
    """Returns a config in the bucket, with a Python file beside it that it imports."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    (bucket / "mine" / "bucket_beside.py").write_text(CLASS.format(name="Beside"))
    (bucket / "mine" / "other" / "deep.py").write_text("1 / 0\n")  # not beside it
    (bucket / "mine" / "in_bucket.py").write_text(CONFIG)
    yield bucket / "mine" / "in_bucket.py"
    forget()


def forget():
    """Makes this process one that has read no config."""
    for name in ("bucket_beside", "seva_jax_config_in_bucket"):
        sys.modules.pop(name, None)


def test_a_config_imports_what_is_beside_it_and_its_record_names_the_bucket(config, tmp_path):
    experiment, flags = load_experiment("test", ["--config", str(config), "--seed", "5"])
    assert (experiment.seed, flags.config) == (5, config)
    assert [part.objective.more for part in experiment.objective.parts] == [2.0, 3.0]
    source = to_source(experiment)
    assert f"config_module('{config}')" in source
    assert f"files_in('{config.parent}')" in source
    (tmp_path / "config.py").write_text(source)
    for _ in range(2):  # in a process that has read nothing; and once more
        forget()
        rebuilt = read_config(tmp_path / "config.py")
        assert flatten(rebuilt) == flatten(experiment)
        assert to_source(rebuilt) == source
    assert "'more'" not in source
    forget()
    config.unlink()
    with pytest.raises(DataError, match=rf"{config}.* defines classes of this run"):
        read_config(tmp_path / "config.py")


def test_a_config_that_was_changed_in_the_bucket_is_read_again(config):
    assert read_config(config).seed == 42
    config.write_text(CONFIG.replace("Experiment(", "Experiment(seed=7, "))
    assert read_config(config).seed == 7


def test_what_is_wrong_with_a_config_in_a_bucket_names_its_url(config):
    for text, expected in (
        ("def get_config():\n    return nothing", "NameError"),
        ("x = 1", r"defines get_config\(\)"),
    ):
        config.write_text(text)
        with pytest.raises(DataError, match=f"^{config}: .*{expected}"):
            read_config(config)
    with pytest.raises(DataError, match=f"config file {config.parent}/no.py does not exist"):
        load_experiment("test", ["--config", f"{config.parent}/no.py"])
    with pytest.raises(DataError, match="ftp:// is not known"):
        load_experiment("test", ["--config", "ftp://bucket/my.py"])


def test_suites_in_a_bucket(bucket):
    text = "from seva_jax.evals.suites import GQA\n\n\ndef get_suites():\n    return [GQA()]\n"
    (bucket / "suites.py").write_text(text)
    (suite,) = read_suites(f"{bucket}/suites.py")
    assert suite.name == "gqa"
    with pytest.raises(DataError, match=f"no suite file and no module {bucket}/no.py"):
        read_suites(f"{bucket}/no.py")


@pytest.mark.parametrize(
    ("workdir", "expected"),
    [("ftp://bucket/run", "ftp:// is not known"), ("gs://", "names no bucket")],
)
def test_a_work_directory_that_cannot_be_is_refused_with_the_config(workdir, expected):
    with pytest.raises(DataError, match=expected):
        check(Experiment(workdir=workdir))


# --- evaluations ----------------------------------------------------------------------------------


def test_answers_and_scores_are_those_of_a_disk(bucket, tmp_path):
    """Files for other scorers are single objects; the journal is a folder of parts."""
    files = test_evaluate.write_files(tmp_path / "files")
    suites = read_suites(str(test_evaluate.suite_file(files)))
    suites[0] = dataclasses.replace(suites[0], lmms_task="gqa", vlmeval_dataset="GQA")
    for path in (tmp_path / "run", bucket / "run"):
        for who, seed in (("base", 0), ("aligned", 1)):
            evaluations.evaluate_all(Parrot(seed), suites, who, Workdir(path, True))
    there, local = written(download(bucket / "run", tmp_path / "again")), written(tmp_path / "run")
    journals = [name for name in local if name.endswith("asked.jsonl")]
    assert len(journals) == 4
    assert there.keys() > local.keys() - set(journals)
    assert {n: there[n] for n in local if n not in journals} == {
        n: content for n, content in local.items() if n not in journals
    }
    for name in journals:
        assert read_lines(bucket / "run" / name) == read_lines(tmp_path / "run" / name)
        assert read_lines(tmp_path / "again" / name) == read_lines(tmp_path / "run" / name)
    names = [suite.name for suite in suites]
    shown = tables(bucket / "run", ["aligned"], names)
    assert shown == tables(tmp_path / "run", ["aligned"], names)
    assert "difference" in shown[0]
    summary, records = (bucket / "run" / "evals" / "base" / f"gqa.{x}" for x in ("json", "jsonl"))
    assert read_result(summary, records).name == "gqa"


def test_files_of_a_benchmark_are_read_from_a_bucket(bucket, tmp_path):
    local = test_evaluate.write_files(tmp_path / "files")
    upload(local, bucket)
    for folder in (local, bucket):
        images = {"image_root": f"{folder}/images"}
        read = [
            GQA(path=f"{folder}/gqa.json", **images).open(),
            PopeSets(folder=str(folder), sets=("random",), **images).open(),
        ]
        if folder is local:
            expected = read
    for there, here in zip(read, expected, strict=True):
        assert there.prompts == here.prompts
        assert list(there.files.values()) == list(here.files.values())
        for prompt in here.prompts[:2]:
            for image in prompt.images:
                np.testing.assert_array_equal(there.load_image(image), here.load_image(image))
        assert all(name.startswith(f"{bucket}/") for name in there.files)
    with pytest.raises(DataError, match=f"{bucket}/no must hold one file such as"):
        PopeSets(folder=f"{bucket}/no", image_root=f"{bucket}/images").open()
    with pytest.raises(DataError, match=f"image_root '{bucket}/no' is not a folder"):
        GQA(path=f"{bucket}/gqa.json", image_root=f"{bucket}/no").open()


def test_answers_survive_a_kill_in_a_bucket(bucket, tmp_path, monkeypatch):
    suite = test_evaluate.gqa_suite(test_evaluate.write_files(tmp_path / "files"))
    workdir, parrot = Workdir(bucket / "run", True), Parrot()
    with monkeypatch.context() as patch:
        patch.setattr(evaluations.Journal, "append", test_evaluate.dying(2))
        with pytest.raises(test_evaluate.Killed):
            evaluations.evaluate_all(parrot, [suite], "base", workdir)
    parrot.asked.clear()
    assert evaluations.evaluate_all(parrot, [suite], "base", workdir) == "12 questions"
    assert parrot.asked == [f"g{i}" for i in range(6, test_evaluate.NUM)]


def test_a_transcript_of_a_judge_is_kept_in_a_bucket(bucket):
    case = Case("Score it.", "2 + 2?", "4", ("4",), 0.0, 1.0)
    with server(chat([0.5])) as (url, seen):
        judge = OpenAICompatible(url, "m", "", f"{bucket}/judge.jsonl")
        assert judge(case) == judge(case)
        assert len(seen) == len(read_lines(bucket / "judge.jsonl")) == 1


def test_a_model_that_is_no_run_is_named(bucket):
    with pytest.raises(
        SystemExit, match=f"error: {bucket}/no does not exist; give the work directory"
    ):
        evaluate_main(["--model", f"{bucket}/no"])


# --- reports --------------------------------------------------------------------------------------


def test_runs_in_a_bucket_are_compared_like_those_on_a_disk(bucket, tmp_path, capsys):
    local = [write_run(tmp_path / "local", "run", number) for number in range(2)]
    remote = [bucket / "sweep" / run.name for run in local]
    for run, copy in zip(local, remote, strict=True):
        rows = read_lines(run / "metrics.jsonl")
        (run / "metrics.jsonl").unlink()
        upload(run, copy)
        append_lines(run / "metrics.jsonl", rows)
        for row in rows:
            append_lines(copy / "metrics.jsonl", [row])
    (bucket / "sweep" / "notes.txt").write_text("not a run")
    page = bucket / "pages" / "a b.html"
    compare_runs(["--runs", *map(str, local), "--out", str(tmp_path / "local.html")])
    capsys.readouterr()
    compare_runs(["--runs", *map(str, remote), "--out", str(page)])
    address = "storage.cloud.google.com/" + str(page)[5:].replace(" ", "%20")
    assert capsys.readouterr().out == (
        f"{page}\n"
        f"        https://{address} in a browser that is signed in,\n"
        f"        or copy it: gcloud storage cp '{page}' .\n"
    )
    assert page.read_text() == (tmp_path / "local.html").read_text()
    compare_runs(["--runs", f"{bucket}/sweep/*", "--out", str(tmp_path / "all.html")])
    assert (tmp_path / "all.html").read_text() == page.read_text()
    copies = [download(run, tmp_path / "copies" / run.name) for run in remote]
    compare_runs(["--runs", *map(str, copies), "--out", str(tmp_path / "copies.html")])
    assert (tmp_path / "copies.html").read_text() == page.read_text()
    with pytest.raises(SystemExit, match="no work directory matches"):
        compare_runs(["--runs", f"{bucket}/no/*"])


def test_rounds_in_a_bucket_have_a_page_beside_them(bucket, tmp_path, monkeypatch, capsys):
    runs = runs_of(Experiment(workdir=f"{bucket}/rounds", curriculum=Iterations(2)))
    seen = []

    def run(config, siblings, table):
        seen.append((config.workdir, [str(path) for path in siblings]))
        upload(write_run(tmp_path, "run", len(seen)), as_path(config.workdir))

    monkeypatch.setattr(train, "run", run)
    train.run_all(runs, [as_path(run.workdir) for run in runs])
    first, second = f"{bucket}/rounds/1", f"{bucket}/rounds/2"
    assert seen == [(first, [second]), (second, [first])]
    assert "2 rounds compared" in (bucket / "rounds" / "rounds.html").read_text()
    shown = capsys.readouterr().out
    assert f"=== round 2 of 2: {second} ===" in shown
    assert f"all rounds: {bucket}/rounds/rounds.html\n        https://storage" in shown


def test_tables_of_plans_and_studies_in_a_bucket(bucket):
    write_csv([], bucket / "plan.csv")
    assert (bucket / "plan.csv").read_text().startswith("model,topology,")
    write_json(bucket / "run" / "pairs.json", {"pairs": 3})
    assert num_pairs(f"{bucket}/run") == 3


def test_a_browser_is_told_that_a_page_is_html(bucket):
    (bucket / "report.html").write_text("<p>")
    assert gcsfs.GCSFileSystem().info(f"{bucket}/report.html")["contentType"] == "text/html"


def test_the_end_names_the_bucket(bucket):
    write_json(bucket / "stages.json", {})
    (bucket / "report.html").write_text("<p>")
    lines = closing_summary(bucket, Experiment().report).splitlines()
    assert lines[2].startswith(f"files:  {bucket}: checkpoints/")
    assert lines[3] == f"report: {bucket}/report.html"
    assert lines[5] == f"        or copy it: gcloud storage cp {bucket}/report.html ."
    assert hide_home("\n".join(lines)) == "\n".join(lines)
    assert how_to_open(as_path("s3://bucket/x.html")).endswith(
        "(copy it to this machine to open it)"
    )


# --- loggers --------------------------------------------------------------------------------------


def scalars(folder, tag):
    """Returns what TensorBoard shows: files in order, each of which takes back later steps."""
    shown = {}
    for file in sorted(folder.iterdir(), key=lambda path: path.name):
        for record in events(file):
            if record.HasField("session_log"):
                shown = {step: value for step, value in shown.items() if step < record.step}
            values = [v.simple_value for v in record.summary.value if v.tag == tag]
            if values:
                shown[record.step] = values[0]
    return shown


def test_tensorboard_in_a_bucket_is_complete_after_a_kill(bucket, monkeypatch):
    pytest.importorskip("tensorboardX")
    run = LoggedRun(bucket / "run", {}, 0)

    def write(writer, step):
        values = {"loss": step / 2}
        row = {"stage": "align", "step": step, **values}
        append_lines(run.folder / "metrics.jsonl", [row])
        writer.scalars("align", step, values)

    killed = TensorBoard().open(run)
    killed.pairs([PAIR])
    for step in (1, 2, 3):
        if step == 2:
            monkeypatch.setattr(loggers, "_COPY_EVERY_S", 0.0)
        write(killed, step)
        monkeypatch.setattr(loggers, "_COPY_EVERY_S", 1e9)
    board = run.folder / "tensorboard"
    assert scalars(board / "align", "loss").items() <= {1: 0.5, 2: 1.0}.items()  # was killed
    resumed = TensorBoard().open(run)
    for step in (3, 4):
        write(resumed, step)
    resumed.close()
    assert scalars(board / "align", "loss") == {1: 0.5, 2: 1.0, 3: 1.5, 4: 2.0}
    assert len(list((board / "pairs").iterdir())) == 1
    loggers._TensorBoardWriter.close(killed)


def test_wandb_logs_a_run_in_a_bucket_online_only(bucket, monkeypatch):
    fake = FakeWandB()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.setattr(fake, "init", lambda **options: fake.calls.append(options) or fake)
    base = Checkpoint("gs://bucket/llava")
    experiment = Experiment(workdir=f"{bucket}/run", base=base, loggers=(WandB(),))
    with pytest.raises(DataError, match="WandB writes below workdir itself, which must be a local"):
        check(experiment)
    online = dataclasses.replace(experiment, loggers=(WandB(mode="online"),))
    check(online)
    run = LoggedRun(as_path(online.workdir), flatten(online), 0)
    for _ in range(2):
        online.loggers[0].open(run).close()
    first, _, second, _ = fake.calls
    kept = (run.folder / "wandb_id.txt").read_text().strip()
    assert first["id"] == second["id"] == kept
    assert first["name"] == "run"
    assert "gs:" not in first["dir"]
    assert first["config"]["base.path"] == "gs://bucket/llava"
