"""R15 with the real commands: whatever data, models, judges, configs and file names say is text.

test_report.py tries every field of the report's own data. Here: what comes from the files of a run
to the page that compares runs, and from a config into a file.
"""

import dataclasses
import json
import re
from pathlib import Path

import pytest
from helpers_report import PAYLOADS, Page, write_run

import seva_jax
from seva_jax.config import Experiment, flatten
from seva_jax.config.source import to_source
from seva_jax.report import document
from seva_jax.report.__main__ import main as compare_runs
from seva_jax.report.compare import compare

ACTIVE = {"script", "iframe", "object", "embed", "form", "base", "img", "link", "video", "math"}


@pytest.mark.parametrize("payload", PAYLOADS)
def test_the_page_of_several_runs(tmp_path, payload):
    runs = [write_run(tmp_path, payload, number) for number in range(2)]
    out = tmp_path / "page.html"
    compare_runs(["--runs", *map(str, runs), "--out", str(out)])
    page = Page(out.read_text())
    assert not page.open
    for tag, attrs in page.tags:
        assert tag not in ACTIVE or (tag == "link" and attrs["href"] == "data:,")
        assert not any(name.startswith("on") or name == "srcdoc" for name in attrs)
        assert not re.match(r"\s*javascript:", attrs.get("href", ""))
    policy = page.all("meta")[1]
    assert policy == {"http-equiv": "Content-Security-Policy", "content": document.POLICY}
    assert page.text.count(payload) >= 4  # the field, its two values, the metric


def test_settings_that_differ(tmp_path):
    """Each is one line; nested settings of parts of different classes are left out."""
    runs = [write_run(tmp_path, "run", number) for number in range(2)]
    parts = {"objective": "seva_jax.objectives.dpo.DPO", "objective.beta": 0.1}
    parts |= {"objective.weighting": "seva_jax.Weighting", "objective.weighting.power": 1.0}
    for run, more in zip(runs, (parts, {"objective": "mine.Loss"}), strict=True):
        (run / "config.json").write_text(json.dumps({"seed": 1, "data": "/far/a", **more}))
    page = compare(runs, "stage")
    assert page.title == "2 stages compared"
    assert page.more[0].columns == ("setting", "stage 0run", "stage 1run")
    assert page.more[0].rows == (
        ("objective", "DPO", "Loss"),
        ("objective.beta", "0.1", "–"),
        ("objective.weighting", "Weighting", "–"),
    )
    assert "scales of their losses" in page.notes[-1]
    assert "scales" not in compare([runs[0]]).notes[-1]


def test_a_field_that_an_older_record_lacks_has_its_default(tmp_path):
    """So it is no difference between runs, unless the other one has changed it."""
    runs = [write_run(tmp_path, "run", number) for number in range(2)]
    for run in runs:
        config = Experiment(workdir=str(run))
        recorded = json.loads(json.dumps(flatten(config)))
        if run is runs[0]:
            recorded = {k: v for k, v in recorded.items() if not k.startswith("train.eval_")}
        (run / "config.json").write_text(json.dumps(recorded))
        (run / "config.py").write_text(to_source(config))
    assert compare(runs).more[0].rows == ()
    changed = dataclasses.replace(
        config, train=dataclasses.replace(config.train, eval_fraction=0.5)
    )
    (runs[1] / "config.json").write_text(json.dumps(flatten(changed)))
    (runs[1] / "config.py").write_text(to_source(changed))
    assert compare(runs).more[0].rows == (("train.eval_fraction", "0.0", "0.5"),)
    (runs[0] / "config.py").write_text("import no_such_module")
    assert ("train.eval_fraction", "–", "0.5") in compare(runs).more[0].rows


def test_every_page_has_the_policy():
    """A single place starts every page, and it sets the policy before anything else."""
    package = Path(seva_jax.__file__).parent
    begins = re.compile("<(!DOCTYPE|html)", re.IGNORECASE)
    makers = [path for path in package.rglob("*.py") if begins.search(path.read_text())]
    assert makers == [package / "report" / "document.py"]
    head = document.document("t", "", "", "", ()).split("<title>")[0]
    assert re.search(r"<meta charset.*\n<meta http-equiv=\"Content-Security-Policy\"", head)
