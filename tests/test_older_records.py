"""Work directories of version 0.4 under this version, whose configs have more fields."""

import dataclasses
import json
import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated

import pytest

from seva_jax.config import Experiment, flatten, read_config
from seva_jax.config.source import fingerprint, with_defaults, with_effect
from seva_jax.objectives import DPO, Objective, Supervised
from seva_jax.ranges import ADDED, FROM_0
from seva_jax.run.workdir import Workdir
from seva_jax.types import DataError

GOLDENS = Path(__file__).parent / "goldens"
RECORDED = json.loads((GOLDENS / "format3.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def now():
    """Returns the module that wrote the golden, with the code of this version."""
    return SimpleNamespace(**runpy.run_path(str(GOLDENS / "make_format3.py")))


@pytest.mark.parametrize("name", sorted(RECORDED["runs"]))
def test_stages_that_version_04_finished_stay_finished(now, name, tmp_path):
    """The directory opens with its own recorded config, and every stage has its fingerprint."""
    there = RECORDED["runs"][name]
    for file in ("config.py", "config.json"):
        text = there[file] if file == "config.py" else json.dumps(there[file])
        (tmp_path / file).write_text(text)
    experiment = dataclasses.replace(read_config(tmp_path / "config.py"), workdir=str(tmp_path))
    assert now.stage_fingerprints(experiment) == there["stages"]
    Workdir.open(experiment).close()
    assert read_config(tmp_path / "config.py") == experiment


def test_new_fields_of_every_class_are_marked(now):
    """Whoever adds a field without `ADDED` sees here whose work directories it invalidates."""
    classes = now.class_fingerprints()
    changed = {name for name, print in RECORDED["classes"].items() if classes[name] != print}
    assert not changed


def test_a_new_default_counts_as_the_one_before(now, tmp_path):
    """The published config of now continues what it began then, and the other way round."""
    there = RECORDED["runs"]["llava15_7b_seva"]
    (tmp_path / "config.py").write_text(there["config.py"])
    layers = dataclasses.replace(read_config(tmp_path / "config.py"), workdir=str(tmp_path))
    auto, none = (
        dataclasses.replace(layers, compute=dataclasses.replace(layers.compute, remat=remat))
        for remat in ("auto", "none")
    )
    assert layers.compute.remat == there["config.json"]["compute.remat"] == "layers"
    assert now.stage_fingerprints(auto) == there["stages"] != now.stage_fingerprints(none)
    (tmp_path / "config.json").write_text(json.dumps(there["config.json"]))
    (tmp_path / "stages.json").write_text(json.dumps({"pairs": {"fingerprint": "", "summary": ""}}))
    for same in (auto, layers):
        Workdir.open(same).close()
        with pytest.raises(
            DataError, match=rf"compute\.remat: '{same.compute.remat}' there, 'none'"
        ):
            Workdir.open(none)


@dataclasses.dataclass(frozen=True)
class Added(DPO):
    """DPO of a later version."""

    steepness: Annotated[float, FROM_0, ADDED] = 0.0
    second: Annotated[Objective, ADDED] = Supervised()


@dataclasses.dataclass(frozen=True)
class Before(DPO):
    """The same class before: only its name in records is another one."""


def _recorded(experiment):
    """Returns what the version before recorded of an experiment with `Added`."""
    plain = dataclasses.replace(experiment, objective=Before(beta=experiment.objective.beta))
    return json.loads(json.dumps(flatten(plain)).replace("Before", "Added"))


def test_an_added_field_counts_only_with_another_value():
    """Fingerprints, and what checkpoints record, are those from before."""
    before = {k: v for k, v in flatten(DPO(), "part").items() if k != "part"}
    assert {k: v for k, v in with_effect(Added(), "part").items() if k != "part"} == before
    others = [Added(steepness=1.0), Added(second=DPO()), Added(beta=0.3)]
    assert len({fingerprint(x) for x in [Added(), *others]}) == 4
    assert fingerprint(Added(steepness=0)) == fingerprint(Added())
    nested = [Experiment(objective=x) for x in (Added(), *others)]
    assert len({fingerprint(x) for x in nested}) == 4


def test_a_record_without_an_added_field_has_its_default():
    """Also one whose value is a section; a field that was recorded keeps its value."""
    experiment = Experiment(objective=Added(steepness=2.0))
    wanted = flatten(experiment)
    complete = with_defaults(_recorded(experiment), wanted, experiment)
    assert complete["objective.steepness"] == 0.0
    assert complete["objective.second"] == "seva_jax.objectives.Supervised"
    assert complete.keys() == wanted.keys()
    assert with_defaults(wanted, wanted, experiment) == wanted
    other = flatten(Experiment(objective=Supervised()))
    assert with_defaults(other, wanted, experiment) == other  # the class there has no such field


def test_a_directory_opens_with_the_default_of_an_added_field(tmp_path):
    """With another value it is refused, and both values are named."""
    experiment = Experiment(workdir=str(tmp_path / "run"), objective=Added())
    Workdir.open(experiment).close()
    file = tmp_path / "run" / "config.json"
    format_ = {"format": json.loads(file.read_text())["format"]}
    file.write_text(json.dumps(format_ | _recorded(experiment)))
    done = {"pairs": {"fingerprint": "", "summary": ""}}  # without a result it could change
    (tmp_path / "run" / "stages.json").write_text(json.dumps(done))
    changed = dataclasses.replace(experiment, objective=Added(steepness=1.0))
    with pytest.raises(DataError, match=r"objective\.steepness: 0\.0 there, 1\.0 now"):
        Workdir.open(changed)
    Workdir.open(experiment).close()
    assert json.loads(file.read_text())["objective.steepness"] == 0.0
