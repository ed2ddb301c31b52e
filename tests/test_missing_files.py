"""A finished run that has lost a file: each command does without it, or says in one line which."""

import json
import shutil

import pytest
from helpers_llava import write_llava, write_run
from helpers_report import Page
from test_report_again import made

from seva_jax.convert.__main__ import main as convert
from seva_jax.data.__main__ import main as data
from seva_jax.report.__main__ import main as report


def said(command, argv):
    """Returns the line with which a command ends."""
    with pytest.raises(SystemExit) as end:
        command(argv)
    text = str(end.value)
    assert "\n" not in text
    return text


@pytest.fixture
def trained(tmp_path):
    """Returns a run with a checkpoint of its aligned model."""
    (tmp_path / "model").mkdir()
    write_run(tmp_path / "run", write_llava(tmp_path / "model"))
    (tmp_path / "run" / "config.json").write_text("{}")
    return tmp_path / "run"


@pytest.mark.parametrize(
    ("gone", "expected"),
    [
        ("config.py", "is the work directory of a run, but {run}/config.py is gone; put back"),
        ("stages.json", "{run} is a run without stages.json, which says what has finished: put"),
        ("checkpoints/align", "{run}/checkpoints/align holds no checkpoint; put back a copy"),
        ("checkpoints", "{run}/checkpoints/align holds no checkpoint; put back a copy"),
        ("../model", "{run}/../model"),
    ],
)
def test_an_export(trained, gone, expected):
    lost = trained / gone
    shutil.rmtree(lost) if lost.is_dir() else lost.unlink()
    line = said(convert, ["to-peft", str(trained), str(trained.parent / "out")])
    run = str(trained)
    assert expected.format(run=run).replace("/run/../", "/") in line
    assert not (trained.parent / "out").exists()


def test_an_export_does_not_need_config_json(trained):
    (trained / "config.json").unlink()
    convert(["to-peft", str(trained), str(trained.parent / "out")])
    assert (trained.parent / "out" / "adapter_config.json").is_file()


@pytest.mark.parametrize(
    ("gone", "expected"),
    [
        ("config.py", "/config.py is gone; put back a copy"),
        ("pairs.array_record", "pairs.array_record"),
    ],
)
def test_data_of_a_run(tmp_path, gone, expected):
    path, _ = made(tmp_path)
    data(["show", "--run", str(path)])
    (path / gone).unlink()
    assert expected in said(data, ["show", "--run", str(path)])


@pytest.mark.parametrize(
    ("gone", "section"),
    [
        ("pairs.array_record", "pairs"),
        ("pairs.json", "funnel"),
        ("metrics.jsonl", "training"),
        ("report.json", "own"),
        ("stages.json", "stages"),
        ("config.json", ""),
    ],
)
def test_the_page_lacks_what_is_gone(tmp_path, capsys, gone, section):
    path, _ = made(tmp_path)
    report([str(path)])
    before = [attrs["id"] for attrs in Page((path / "report.html").read_text()).all("section")]
    (path / gone).unlink()
    report([str(path)])
    after = [attrs["id"] for attrs in Page((path / "report.html").read_text()).all("section")]
    assert (section in before) == bool(section)
    assert after == [name for name in before if name != section]
    assert "Did it help?" in capsys.readouterr().out


def test_the_page_names_a_file_that_it_needs(tmp_path):
    path, _ = made(tmp_path)
    assert json.loads((path / "config.json").read_text())
    (path / "config.json").unlink()
    compared = said(report, ["--runs", str(path)])
    assert "is not the work directory of a run: it has no config.json" in compared
    (path / "config.py").unlink()
    assert "it has no config.py" in said(report, [str(path)])
