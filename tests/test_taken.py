"""Stages that are taken of other runs, and files of finished stages that are missing."""

import dataclasses
import json
import shutil

import pytest
from helpers_run import lines

from seva_jax import train
from seva_jax.config import read_config
from seva_jax.run.rollouts import LINES, RECORDS
from seva_jax.run.workdir import TAKING, Workdir
from seva_jax.runtime.files import read_records
from seva_jax.runtime.stores import remove
from seva_jax.types import DataError


@pytest.fixture
def mine(whole_run):
    """Returns the directory of a finished run, which no test may change."""
    return whole_run / "run"


@pytest.fixture
def copied(mine, tmp_path):
    """Returns a copy of it."""
    return shutil.copytree(mine, tmp_path / "run")


def config_of(folder, **changes):
    """Returns the config of a run, with changes."""
    return dataclasses.replace(read_config(folder / "config.py"), **changes)


def change(config, section, **changes):
    """Returns a config with changes in one section."""
    return dataclasses.replace(
        config, **{section: dataclasses.replace(getattr(config, section), **changes)}
    )


def until(name):
    """Returns the table of stages up to the named one."""

    def table(ctx, out):
        for stage in train.stages(ctx, out):
            yield stage
            if stage.name == name:
                return

    return table


def begin(config, last):
    """Runs the stages up to the named one; returns the work directory."""
    ctx = train.RunContext.open(config)
    out = train.Outputs(ctx)
    try:
        for stage in until(last)(ctx, out):
            ctx.workdir.run_stage(stage)
    finally:
        ctx.workdir.close()
    return ctx.workdir.path


def stages(folder):
    """Returns the content of stages.json."""
    return json.loads((folder / "stages.json").read_text())


# --- taken ----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("one_device")
def test_another_objective_takes_everything_before_alignment(mine, tmp_path, capsys):
    """Beta and learning rate do not matter for it; a line says so of the alignment."""
    config = config_of(mine, workdir=str(tmp_path / "beta"), take_from=(str(mine),))
    config = change(change(config, "objective", beta=0.3), "optim", lr=1e-3)
    folder = begin(config, "evaluate base")
    shown = capsys.readouterr().out
    for name in ("base", "rollouts", "pairs", "reference", "evaluate base"):
        assert f"■ {name}: taken from {mine} ({stages(mine)[name]['summary']})" in shown
        assert stages(folder)[name]["source"] == str(mine)
    why = "objective.beta is 0.5 there and 0.3 here; optim.lr is 0.0002 there and 0.001 here"
    assert f"  align: not taken from {mine}: {why}\n" in shown
    assert "▶ align" in shown
    for name in (RECORDS, "pairs.array_record", "reference.array_record"):
        assert (folder / name).read_bytes() == (mine / name).read_bytes()
        assert not (folder / name).is_symlink()
        assert (folder / name).stat().st_ino != (mine / name).stat().st_ino
    # Rows of the base's training are there, without the time that another run spent.
    rows = {row["step"]: row for row in lines(folder / "metrics.jsonl") if row["stage"] == "base"}
    there = {row["step"]: row for row in lines(mine / "metrics.jsonl") if row["stage"] == "base"}
    assert rows.keys() == there.keys()
    for step, row in rows.items():
        assert row.items() <= there[step].items()
        assert not any(name.startswith("time/") for name in row)
    answers = json.loads((folder / "evals" / "base" / "color-balanced.json").read_text())
    assert answers == json.loads((mine / "evals" / "base" / "color-balanced.json").read_text())


@pytest.mark.usefixtures("one_device")
def test_another_pair_builder_takes_the_rollouts_only(mine, tmp_path, capsys):
    """Later stages are not taken for the same reason."""
    config = config_of(mine, workdir=str(tmp_path / "built"), take_from=(str(mine),))
    folder = begin(change(config, "pairs", wait_s=0.0), "pairs")
    shown = capsys.readouterr().out
    assert f"■ rollouts: taken from {mine}" in shown
    assert f"  pairs: not taken from {mine}: pairs.wait_s is 0.2 there and 0.0 here" in shown
    assert "▶ pairs" in shown
    assert "source" not in stages(folder)["pairs"]


@pytest.mark.usefixtures("one_device")
def test_the_same_config_takes_the_whole_run(mine, tmp_path, capsys):
    """Only the report is written again; curves are whole, and the model is the same."""
    config = config_of(mine, workdir=str(tmp_path / "same"), take_from=(str(mine),))
    out = train.run(config)
    shown = capsys.readouterr().out
    assert shown.count(f"taken from {mine} (") == 7
    assert [line for line in shown.splitlines() if line.startswith("▶")] == ["▶ report"]
    rows = [row for row in lines(tmp_path / "same" / "metrics.jsonl") if row["stage"] == "align"]
    assert [row["step"] for row in rows] == list(range(2, 25, 2))
    assert "lora" in out.aligned
    train.run(config)
    assert capsys.readouterr().out.count("done before") == 8


def test_what_cannot_be_a_source_is_named_before_anything_is_written(mine, tmp_path):
    """A typo, the run itself, several rounds, another version, and a damaged record."""
    config = config_of(mine, workdir=str(tmp_path / "new"))

    def opened(*sources):
        Workdir.open(dataclasses.replace(config, take_from=tuple(map(str, sources))))

    with pytest.raises(DataError, match=r"take_from names .*nothing, which is not the work dir"):
        opened(tmp_path / "nothing")
    with pytest.raises(DataError, match="own directory; choose another --workdir"):
        opened(mine, tmp_path / "new")
    shutil.copytree(mine, tmp_path / "rounds" / "2", ignore=shutil.ignore_patterns("c*s", "e*"))
    with pytest.raises(DataError, match=r"it holds several rounds, give one, such as .*rounds/2"):
        opened(tmp_path / "rounds")
    file = tmp_path / "rounds" / "2" / "config.json"
    file.write_text(file.read_text().replace('"format": 3', '"format": 2'))
    with pytest.raises(DataError, match="was written by another version of seva_jax"):
        opened(tmp_path / "rounds" / "2")
    file.write_text("{")
    with pytest.raises(DataError, match=r"2/config\.json cannot be read"):
        opened(tmp_path / "rounds" / "2")
    assert not (tmp_path / "new").exists()


def test_a_source_may_be_deleted_once_the_run_has_begun(mine, copied, tmp_path):
    """What was taken stays."""
    config = config_of(mine, workdir=str(tmp_path / "new"), take_from=(str(copied),))
    begin(config, "pairs")
    shutil.rmtree(copied)
    assert begin(config, "pairs") == tmp_path / "new"


def test_a_damaged_or_unfinished_source_says_so(copied, tmp_path, capsys, monkeypatch):
    """A line for each stage; the run makes it itself."""
    monkeypatch.setattr(Workdir, "_run", lambda self, stage: None)
    (copied / "pairs.array_record").write_bytes(b"not a record file")
    (copied / "evals" / "base" / "color-balanced.json").unlink()
    left = stages(copied)
    del left["reference"]
    (copied / "stages.json").write_text(json.dumps(left))
    digest = next((copied / "checkpoints" / "base").rglob("state/manifest.ocdbt"))
    digest.write_bytes(bytes(digest.stat().st_size))
    config = config_of(copied, workdir=str(tmp_path / "new"), take_from=(str(copied),))
    begin(config, "evaluate base")
    shown = capsys.readouterr().out
    for name, why in (
        ("base", f"{copied}/checkpoints/base/24 is damaged: state/manifest.ocdbt has another"),
        ("pairs", f"{copied}/pairs.array_record is damaged"),
        ("reference", f"{copied} has not finished this stage"),
        ("evaluate base", "evals/base/color-balanced.json is missing there"),
    ):
        assert f"  {name}: not taken from {copied}: {why}" in shown
    assert f"■ rollouts: taken from {copied}" in shown


@pytest.mark.parametrize("place", ["disk", "bucket"])
@pytest.mark.usefixtures("one_device")
def test_interrupted_rollouts_are_continued(mine, copied, place, request, tmp_path, capsys):
    """The other run's file is not touched, not even a line that it is writing."""
    target = request.getfixturevalue("bucket") if place == "bucket" else tmp_path
    records = read_records(mine / RECORDS)
    text = "".join(json.dumps(record) + "\n" for record in records[:90])
    (copied / LINES).write_text(text + '{"id": "unfin')
    (copied / "stages.json").write_text(json.dumps({"base": stages(mine)["base"]}))
    config = config_of(mine, workdir=str(target / "new"), take_from=(str(copied),))
    folder = begin(config, "rollouts")
    shown = capsys.readouterr().out
    assert f"rollouts: 90 lines of {LINES} are taken from {copied}, which has not" in shown
    assert read_records(folder / RECORDS) == records
    assert (copied / LINES).read_text().endswith('"unfin')


def test_interrupted_rollouts_of_another_config_are_left(mine, copied, tmp_path, monkeypatch):
    """Nothing in the file says what they depend on, so all settings are compared."""
    monkeypatch.setattr(Workdir, "_run", lambda self, stage: None)
    (copied / LINES).write_text('{"id": "1", "dropped": "no image"}\n')
    (copied / "stages.json").write_text(json.dumps({"base": stages(mine)["base"]}))
    config = config_of(mine, workdir=str(tmp_path / "new"), take_from=(str(copied),))
    folder = begin(change(config, "rollout", cache="int8"), "rollouts")
    assert not (folder / LINES).exists()
    assert stages(folder).keys() == {"base"}
    begin(dataclasses.replace(config, workdir=str(tmp_path / "same")), "rollouts")
    assert (tmp_path / "same" / LINES).exists()


def test_a_copy_that_was_killed_is_made_again(mine, tmp_path, monkeypatch, capsys):
    """Files of a stage that was half copied are not taken for the run's own."""
    config = config_of(mine, workdir=str(tmp_path / "new"), take_from=(str(mine),))
    copy = shutil.copy

    def killed(source, target):
        if str(source).endswith("pairs.json"):
            raise KeyboardInterrupt
        return copy(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copy", killed)
        with pytest.raises(KeyboardInterrupt):
            begin(config, "pairs")
    assert (tmp_path / "new" / TAKING).exists()
    assert (tmp_path / "new" / "pairs.array_record").exists()
    begin(config, "pairs")
    assert f"■ pairs: taken from {mine}" in capsys.readouterr().out
    assert not (tmp_path / "new" / TAKING).exists()


def test_rollouts_that_a_source_has_deleted_are_not_missed(copied, tmp_path, capsys):
    """Its pairs are taken, which need them no more."""
    (copied / RECORDS).unlink()
    config = config_of(copied, workdir=str(tmp_path / "new"), take_from=(str(copied),))
    begin(config, "reference")
    shown = capsys.readouterr().out
    assert "▶" not in shown
    assert f"but {RECORDS} is missing there" in shown
    assert f"■ pairs: taken from {copied}" in shown


# --- missing files --------------------------------------------------------------------------------


@pytest.mark.usefixtures("one_device")
def test_a_missing_report_is_made_again(copied, capsys):
    """Also without log-probs of the reference and rollouts, which it does not need."""
    for name in ("report.html", "reference.array_record", RECORDS):
        (copied / name).unlink()
    train.run(config_of(copied, workdir=str(copied)))
    shown = capsys.readouterr().out
    assert "report: report.html is missing; it is made again" in shown
    assert [line for line in shown.splitlines() if line.startswith("▶")] == ["▶ report"]
    assert (copied / "report.html").is_file()
    for name in (RECORDS, "reference.array_record"):
        assert f"but {name} is missing; it is made again if a stage needs it" in shown


@pytest.mark.usefixtures("one_device")
def test_missing_results_and_pairs_are_made_again(mine, copied, capsys):
    """Pairs from rollouts, scores from answers; nothing else runs."""
    (copied / "pairs.array_record").unlink()
    (copied / "evals" / "aligned" / "color-balanced.json").unlink()
    train.run(config_of(copied, workdir=str(copied)))
    shown = capsys.readouterr().out
    begun = [line for line in shown.splitlines() if line.startswith("▶")]
    assert begun == ["▶ pairs", "▶ evaluate aligned"]
    for name in ("pairs.array_record", "evals/aligned/color-balanced.json"):
        assert (copied / name).read_bytes() == (mine / name).read_bytes()


@pytest.mark.usefixtures("one_device")
def test_an_unfinished_stage_has_its_inputs_made_again(mine, copied, capsys):
    """Answers first, then pairs, as nothing else has them."""
    for name in (RECORDS, "pairs.array_record"):
        (copied / name).unlink()
    done = stages(copied)
    del done["reference"]
    (copied / "stages.json").write_text(json.dumps(done))
    (copied / "reference.array_record").unlink()
    begin(config_of(copied, workdir=str(copied)), "reference")
    shown = capsys.readouterr().out
    assert f"but pairs.array_record is missing and so is {RECORDS}; it is made again if" in shown
    begun = [line for line in shown.splitlines() if line.startswith("▶")]
    assert begun == ["▶ rollouts", "▶ pairs", "▶ reference"]
    for name in (RECORDS, "pairs.array_record", "reference.array_record"):
        assert read_records(copied / name) == read_records(mine / name)


def test_a_missing_checkpoint_is_an_error_that_says_what_to_do(copied, capsys):
    """Of the aligned model at once, of the base when something needs it."""
    config = config_of(copied, workdir=str(copied))
    shutil.rmtree(copied / "checkpoints" / "base")
    (copied / "report.html").unlink()
    with pytest.raises(DataError, match=r"report\.html is missing, and it is made from check.*24"):
        begin(config, "report")
    assert "but checkpoints/base/24 is missing; put back a copy" in capsys.readouterr().out
    lost = copied / "checkpoints" / "align" / "24" / "state" / "manifest.ocdbt"
    lost.unlink()
    with pytest.raises(DataError, match=f"{lost} is missing, which 'align' left") as caught:
        begin(config, "align")
    assert "put back a copy, or remove 'align' from stages.json" in str(caught.value)
    shutil.rmtree(lost.parents[1])  # an older one is still there
    with pytest.raises(DataError, match="align/24 is missing, which 'align' left"):
        begin(config, "align")


def test_checkpoints_of_version_04_are_looked_for_too(copied):
    """Its stages.json does not say which step is the last one."""
    done = stages(copied)
    for record in done.values():
        record.pop("step", None)
    (copied / "stages.json").write_text(json.dumps(done))
    config = config_of(copied, workdir=str(copied))
    begin(config, "align")
    (copied / "checkpoints" / "align" / "24" / "commit_success.txt").unlink()
    with pytest.raises(DataError, match=r"24/commit_success\.txt is missing"):
        begin(config, "align")


def test_one_listing_of_a_bucket_tells_what_is_missing(mine, bucket, monkeypatch, capsys):
    """No object is asked for by itself."""
    from seva_jax.run.leaves import Leaves
    from seva_jax.runtime.copies import copy_whole
    from seva_jax.runtime.stores import StorePath

    copy_whole(mine, bucket / "run")
    remove(bucket / "run" / RECORDS)
    listings = []
    below = StorePath.below
    monkeypatch.setattr(StorePath, "below", lambda self: listings.append(1) or below(self))
    leaves = Leaves(bucket / "run")
    assert leaves.missing([RECORDS, "rollouts.json"]) == RECORDS
    assert leaves.missing(["pairs.json", "evals/base", "checkpoints/align"]) == ""
    assert leaves.missing(["checkpoints/align"], step=26) == "checkpoints/align/26"
    assert leaves.missing(["checkpoints/else", "x"]) == "checkpoints/else (and 1 more)"
    assert len(listings) == 1
