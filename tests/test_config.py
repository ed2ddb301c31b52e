"""Config files, overrides, checks across sections, and configs written back as source."""

import copy
import dataclasses
import enum
import hashlib
import importlib
import inspect
import json
import math
import re
import sys
import types
import typing
from pathlib import Path

import pytest
from helpers_fuzz import clean, inputs
from PIL import Image

import seva_jax
from seva_jax.config.base_models import Checkpoint, TrainedBase
from seva_jax.config.command_line import load_experiment, load_experiments
from seva_jax.config.config_files import config_directory, read_config, read_configs
from seva_jax.config.experiment import Evaluation, Experiment, check
from seva_jax.config.options import ComputeOptions, ReportOptions, RolloutOptions, TextOptions
from seva_jax.config.prior_run import PriorRun
from seva_jax.config.rounds import Round, Rounds
from seva_jax.config.source import fingerprint, flatten, public_name, to_source, without_effect
from seva_jax.corrupt import Compose, DiffusionNoise, RandomInvert, RandomResizedCrop, moco
from seva_jax.data.files import ImageFolder
from seva_jax.evals import Chair, ExactAnswer
from seva_jax.images.preprocess import ImageProcessing
from seva_jax.models import LoraConfig
from seva_jax.objectives import DPO, Supervised
from seva_jax.ranges import bounds
from seva_jax.run.context import RunContext
from seva_jax.runtime.loggers import TensorBoard
from seva_jax.runtime.processes import ProcessOptions
from seva_jax.sharding import MeshShape
from seva_jax.text.sampling import Sampling
from seva_jax.training.optimizer import Optim
from seva_jax.training.options import TrainOptions
from seva_jax.types import DataError
from seva_jax.worlds import ShapeWorld, WorldPrompts

SHIPPED = sorted(config_directory().glob("*.py"))

# Everything a config may hold: nested and empty tuples, pairs, None, an enum, quotes, a class
# with a computed field, exact floats.
ODD = Experiment(
    workdir='a "quoted" \\ path\n',
    base=TrainedBase(
        words=("a", "'"),
        processing=ImageProcessing(size=64, shortest_edge=96, resample=Image.Resampling.NEAREST),
    ),
    corrupt=(moco(), DiffusionNoise(step=800), Compose((RandomInvert(p=0.1 + 0.2),))),
    objective=Supervised(),
    train=TrainOptions(trained=()),
    evals=(
        Evaluation(
            Chair("chair", synonyms=(("dog", "puppy"), ("dog", "dog"))),
        ),
    ),
)


def write(folder, text, name="config.py"):
    """Writes a config file."""
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def variant(folder, body, imports=""):
    """Writes a config file whose `get_config` runs `body`."""
    head = f"from seva_jax.config.experiment import Experiment\n{imports}\n"
    return write(folder, f"{head}\ndef get_config():\n    {body}\n")


# --- files ----------------------------------------------------------------------------------------


def test_missing_file_lists_shipped_configs():
    """The error for an unknown name lists the known ones."""
    with pytest.raises(DataError, match=r"nowhere\.py does not exist") as caught:
        read_config(Path("nowhere.py"))
    assert SHIPPED
    for path in SHIPPED:
        assert f" {path.stem}" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x = 1\n", "a config file defines get_config()"),
        ("def get_config():\n    return 3\n", "returned int, not an Experiment"),
        ("def get_config(:\n", r"SyntaxError.*line 1"),
        ("import no_such_module_at_all\n", "no_such_module_at_all"),
        ("def get_config():\n    return missing_name\n", "NameError.*missing_name"),
        ("def get_config():\n    return {}['key']\n", "KeyError.*key"),
        (
            "from seva_jax.corrupt import DiffusionNoise\n"
            "def get_config():\n    return DiffusionNoise(step=5000)\n",
            "step=5000: give an integer from 0 to 999",
        ),
        (
            "from seva_jax.objectives import DPO\ndef get_config():\n    return DPO(bta=1)\n",
            "TypeError.*bta",
        ),
        ("def get_config():\n    return None.beta\n", "AttributeError.*beta"),
    ],
)
def test_what_is_wrong_with_a_config_file(tmp_path, text, expected):
    """Every failure is one `DataError` that names the file."""
    path = write(tmp_path, text)
    with pytest.raises(DataError, match=expected) as caught:
        read_config(path)
    assert str(path) in str(caught.value)


def test_a_config_file_is_python(tmp_path):
    """A YAML file is refused, and the error says so."""
    with pytest.raises(DataError, match=r"must end in \.py"):
        read_config(write(tmp_path, "a: 1\n", "config.yaml"))


def test_the_record_of_a_run_of_version_0_1(tmp_path):
    """One line says what it is and what to do, for a base that is such a run, too."""
    text = (
        '"""Resolved config of a run, written by seva_jax. Usable with --config."""\n\n'
        "import seva_jax.base_model\nimport seva_jax.experiment\n\n\n"
        "def get_config():\n"
        "    return seva_jax.experiment.Experiment(\n"
        "        base=seva_jax.base_model.TrainedBase(),\n"
        "    )\n"
    )
    path = write(tmp_path, text)
    for read in (lambda: read_config(path), PriorRun(str(tmp_path)).earlier):
        with pytest.raises(DataError, match=r"was written by seva_jax 0\.1, whose work") as caught:
            read()
        assert str(caught.value).startswith(str(path))
        assert "finish that run with seva_jax 0.1, or choose another --workdir" in str(caught.value)
        assert "\n" not in str(caught.value)
    own = write(tmp_path, text.replace("Resolved config of a run, written by", "For"), "own.py")
    with pytest.raises(DataError, match=r"ModuleNotFoundError: No module named 'seva_jax\.base_m"):
        read_config(own)


def test_a_config_file_may_define_a_corruption(tmp_path):
    """Postponed annotations work too, which dataclasses look up in the module."""
    path = write(
        tmp_path,
        "from __future__ import annotations\n"
        "import dataclasses\n"
        "from typing import ClassVar\n"
        "from seva_jax.corrupt import Corruption\n"
        "from seva_jax.config.experiment import Experiment\n"
        "@dataclasses.dataclass(frozen=True)\n"
        "class Mine(Corruption):\n"
        "    space: ClassVar[str] = 'pixels'\n"
        "    level: int = 3\n"
        "    def __call__(self, key, image_HWC):\n"
        "        return image_HWC\n"
        "def get_config():\n"
        "    return Experiment(corrupt=(Mine(),))\n",
    )
    assert flatten(read_config(path))["corrupt.0.level"] == 3
    experiment, _ = load_experiment("test", ["--config", str(path), "--corrupt.0.level", "4"])
    assert flatten(experiment)["corrupt.0.level"] == 4


def test_a_variant_imports_the_config_it_varies(tmp_path):
    """It finds it in its own directory, wherever the command was started."""
    base = "from seva_jax.config.experiment import Experiment\nBASE = Experiment(seed=7)\n"
    write(tmp_path, base, "the_base_of_the_variant.py")
    path = write(
        tmp_path,
        "import dataclasses\nfrom the_base_of_the_variant import BASE\n"
        "def get_config():\n    return dataclasses.replace(BASE, workdir='other')\n",
    )
    assert read_config(path) == Experiment(seed=7, workdir="other")


# --- the command line -----------------------------------------------------------------------------


def test_without_arguments_the_shipped_tiny_config():
    """The default command runs what `configs/tiny.py` says."""
    experiment, flags = load_experiment("test", [])
    assert experiment == read_config(config_directory() / "tiny.py")
    assert not flags.print_config


def test_overrides_reach_into_what_a_polymorphic_field_holds(tmp_path):
    """The config names the class, and the command line changes its fields."""
    path = variant(
        tmp_path,
        "return Experiment(corrupt=(DiffusionNoise(), RandomInvert()), evals=(Evaluation(),))",
        "from seva_jax.corrupt import DiffusionNoise, RandomInvert\n"
        "from seva_jax.config.experiment import Evaluation",
    )
    experiment, flags = load_experiment("test", [
        "--config", str(path),
        "--objective.beta", "0.5",
        "--corrupt.0.step", "3",
        "--corrupt.1.p", "0.25",
        "--base.path", "somewhere",
        "--pairs.newline", "delete",
        "--evals.0.max-new-tokens", "9",
        "--evals.0.evaluator.name", "renamed",
        "--train.trained", "lora", "vision",
        "--prompts.world.skew", "0.7",
        "--print-config",
    ])  # fmt: skip
    before = read_config(path)
    expected = {
        "objective.beta": 0.5,
        "corrupt.0.step": 3,
        "corrupt.1.p": 0.25,
        "base.path": "somewhere",
        "pairs.newline": "delete",
        "evals.0.max_new_tokens": 9,
        "evals.0.evaluator.name": "renamed",
        "train.trained": ["lora", "vision"],
        "prompts.world.skew": 0.7,
    }
    assert flags.print_config
    assert flatten(experiment) == flatten(before) | expected
    assert [type(c) for c in experiment.corrupt] == [DiffusionNoise, RandomInvert]


def test_no_override_changes_nothing():
    """Every shipped config comes back from tyro unchanged."""
    for path in SHIPPED:
        experiments, _ = load_experiments("test", ["--config", str(path)])
        assert experiments == read_configs(path)


def test_a_file_may_define_several_runs(capsys):
    """All or one of them can be chosen and overridden, and a wrong choice is explained."""
    path = config_directory() / "tiny_sweep.py"
    argv = ["--config", str(path), "--seed", "5"]
    experiments, flags = load_experiments("test", argv)
    assert len(experiments) == len({e.workdir for e in experiments}) == 6
    assert flags.only is None
    assert {e.seed for e in experiments} == {5}
    assert {(e.train.batch_size, e.optim.lr) for e in experiments} == {
        (b, lr) for b in (16, 64, 256) for lr in (1e-4, 4e-4)
    }
    assert {e.train.batch_size * e.train.max_steps for e in experiments} == {6400}
    assert load_experiment("test", [*argv, "--only", "2"])[0] == experiments[2]
    with pytest.raises(DataError, match="defines 6 runs; pick one with --only 0 to --only 5"):
        load_experiment("test", argv)
    with pytest.raises(DataError, match=r"--only 6: .*tiny_sweep.py defines runs 0 to 5"):
        load_experiments("test", [*argv, "--only", "6"])
    with pytest.raises(DataError, match="two of its runs have the same workdir"):
        load_experiments("test", [*argv, "--workdir", "here"])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("def get_configs():\n    return []\n", "yields no run"),
        ("def get_configs():\n    yield 3\n", "returned int, not an Experiment"),
    ],
)
def test_what_is_wrong_with_a_sweep(tmp_path, text, expected):
    with pytest.raises(DataError, match=expected):
        read_configs(write(tmp_path, text))


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("--objective.beto", "--objective.beta"),
        ("--train.bach-size", "--train.batch-size"),
        ("--corrupt.0.stp", "--corrupt.0.step"),
    ],
)
def test_a_misspelt_option_suggests_the_right_one(capsys, wrong, right):
    """The command also exits with an error."""
    with pytest.raises(SystemExit) as caught:
        load_experiment("test", [wrong, "1"])
    assert caught.value.code == 2
    printed = capsys.readouterr().err
    assert wrong in printed
    assert right in printed


@pytest.mark.parametrize(
    "argv",
    [
        ["--train.batch-size", "many"],
        ["--pairs.newline", "keep"],
        ["--corrupt.1.step", "3"],  # there is only one corruption
        ["--objective.sft-weight"],
    ],
)
def test_a_bad_value_exits(capsys, argv):
    """The error names the option."""
    with pytest.raises(SystemExit) as caught:
        load_experiment("test", argv)
    assert caught.value.code == 2
    assert argv[0] in capsys.readouterr().err


def test_help_shows_every_option_with_its_docstring(capsys, monkeypatch):
    """Every leaf of the config is an option, and each is described."""
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as caught:
        load_experiment("What it does.", ["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert "What it does." in text
    assert "how strongly the policy is held to the reference" in text
    # No logger is chosen, so none has options.
    for name in leaves(load_experiment("test", [])[0]).keys() - {"loggers"}:
        option = re.sub(r"_", "-", name)
        assert f"--{option}" in text, name


def test_overrides_are_checked():
    """The checks across sections see the resolved config."""
    with pytest.raises(DataError, match=r"train\.micro_batches 7"):
        load_experiment("test", ["--train.micro-batches", "7"])


# --- checks ---------------------------------------------------------------------------------------

PROBLEMS = {
    "seed must be at least 0, not -1": {"seed": -1},
    "seed must be below 2^32, not 4294967296": {"seed": 2**32},
    "rollout.batch_size must": {"rollout": RolloutOptions(batch_size=0)},
    "rollout.sampling.max_new_tokens must": {"rollout": RolloutOptions(Sampling(max_new_tokens=0))},
    "train.batch_size must": {"train": TrainOptions(batch_size=0)},
    "train.micro_batches must": {"train": TrainOptions(micro_batches=0)},
    "train.epochs must": {"train": TrainOptions(epochs=0)},
    "train.repeat must": {"train": TrainOptions(repeat=0)},
    "train.save_every must": {"train": TrainOptions(save_every=-1)},
    "train.save_every_s must": {"train": TrainOptions(save_every_s=0)},
    "processes.grace_s must": {"processes": ProcessOptions(grace_s=float("nan"))},
    "train.log_every must": {"train": TrainOptions(log_every=0)},
    "compute.head_chunk must": {"compute": ComputeOptions(head_chunk=0)},
    "text.max_length must": {"text": TextOptions(max_length=0)},
    "compute.attention cudnn computes in bfloat16": {
        "compute": ComputeOptions(attention="cudnn", dtype="float32")
    },
    "compute.attention tokamax computes in bfloat16": {
        "compute": ComputeOptions(attention="tokamax", dtype="float32")
    },
    "does not divide into": {"train": TrainOptions(batch_size=10, micro_batches=4)},
    "corrupt is empty": {"corrupt": ()},
    "train.trained is empty": {"train": TrainOptions(trained=()), "lora": LoraConfig(rank=0)},
    "but lora.rank is 0": {"lora": LoraConfig(rank=0)},
    "train.trained lacks lora": {"train": TrainOptions(trained=("projector",))},
    "lora.rank must be at least 0 and at most 65536, not -1": {"lora": LoraConfig(rank=-1)},
    "optim.warmup_ratio": {"optim": Optim(warmup_ratio=1.0)},
    "optim.lr must be above 0 and at most 100, not 0.0": {"optim": Optim(lr=0.0)},
    "optim.lr must be a finite number, not nan": {"optim": Optim(lr=math.nan)},
    "optim.lr must be above 0 and at most 100, not 1e+30": {"optim": Optim(lr=1e30)},
    "optim.lr must be a number, not '1e-4'": {"optim": Optim(lr=typing.cast(typing.Any, "1e-4"))},
    "optim.b2 must be at least 0 and below 1, not 1.0": {"optim": Optim(b2=1.0)},
    "optim.clip_norm must be a finite number, not inf": {"optim": Optim(clip_norm=math.inf)},
    "objective.beta must be a finite number, not nan": {"objective": DPO(beta=math.nan)},
    "rollout.sampling.temperature must be at least 0": {
        "rollout": RolloutOptions(Sampling(temperature=-0.1))
    },
    "rollout.sampling.top_p must be above 0 and at most 1, not 1.5": {
        "rollout": RolloutOptions(Sampling(top_p=1.5))
    },
    "train.batch_size must be below 2^32, not 4294967296": {
        "train": TrainOptions(batch_size=2**32)
    },
    "train.max_steps must be at least 0": {"train": TrainOptions(max_steps=-1)},
    "prompts.num must be at least 1": {"prompts": WorldPrompts(num=0)},
    "evals.0.prompts.world.pixel_noise must be at least 0": {
        "evals": (Evaluation(prompts=WorldPrompts(world=ShapeWorld(pixel_noise=-1.0))),)
    },
    "evals.0.max_new_tokens must be at least 1": {"evals": (Evaluation(max_new_tokens=0),)},
    "an eval is named '..'": {"evals": (Evaluation(ExactAnswer("..")),)},
    "an eval is named 'a/b'": {"evals": (Evaluation(ExactAnswer("a/b")),)},
    "two evals are named 'same'": {"evals": (Evaluation(ExactAnswer("same")),) * 3},
    "base.steps": {"base": TrainedBase(steps=0)},
    "base.batch_size": {"base": TrainedBase(batch_size=0)},
}


@pytest.mark.parametrize("expected", PROBLEMS)
def test_each_problem_is_found(expected):
    """A config with one problem is refused for that one, which is named once."""
    with pytest.raises(DataError) as caught:
        check(Experiment(**PROBLEMS[expected]))
    first, *lines = str(caught.value).split("\n")
    assert first == "the config has problems:"
    assert len(lines) == 1
    assert expected in lines[0]


# Checked where they are used, as one of them may be -1 or each depends on another.
TOGETHER = {
    *("MeshShape.data", "MeshShape.fsdp", "MeshShape.tensor"),
    *("LlavaConfig.feature_layer", "LlavaConfig.image_token_id"),
    *("TrajectoryPairs.low", "TrajectoryPairs.high", "Judged.low", "Judged.high"),
}


def test_every_number_of_every_config_class_has_a_range():
    """Every number has one, unless its class checks it when it is made."""
    import_parts()
    without = set()
    for kind in config_classes():
        if any("__post_init__" in vars(c) for c in kind.__mro__):
            continue
        for name, bound in bounds(kind).items():
            owners = [c for c in kind.__mro__ if name in vars(c).get("__annotations__", {})]
            if bound.kind in (int, float) and bound.range is None:
                without.add(f"{owners[-1].__qualname__}.{name}")
    missing = without - TOGETHER
    assert not missing


def numbers(config, name=()):
    """Returns the paths to all numbers of a config."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from numbers(value, (*name, field.name))
        elif type(value) in (int, float):
            yield (*name, field.name)


# These check their numbers when they are made, inside the config file.
NUMBERS = sorted(
    p
    for p in numbers(Experiment(base=TrainedBase()))
    if not {"world", "processing", "objective"} & {*p}
)
WILD = (0, -1, 1, 7, 2**31, 2**63, 10**400, 0.5, -0.0, 1e-300, 1e308, math.nan, math.inf, "1", None)


def replaced(config, path, value):
    inner = replaced(getattr(config, path[0]), path[1:], value) if path[1:] else value
    return dataclasses.replace(config, **{path[0]: inner})


@inputs(lambda rng: [(rng.choice(NUMBERS), rng.choice(WILD)) for _ in range(rng.randrange(1, 4))])
def test_numbers_of_any_kind(changes):
    """A config that passes can be used: its schedule and row counts can be computed."""
    with clean():
        changed = Experiment(base=TrainedBase())
        for path, value in changes:
            changed = replaced(changed, path, value)
        check(changed)
        left = dict(changes).values()  # the last of each
        assert not any(type(value) is str or value is None for value in left)
        assert 0 <= float(changed.optim.learning_rate(10)(5)) <= 100


def test_all_problems_are_reported_at_once():
    """Five mistakes do not take five runs to find."""
    bad = Experiment(
        base=TrainedBase(steps=0),
        corrupt=(),
        rollout=RolloutOptions(Sampling(max_new_tokens=-1), batch_size=-1),
        text=TextOptions(max_length=0),
        lora=LoraConfig(rank=0),
        optim=Optim(lr=-1.0, warmup_ratio=-0.1),
        train=TrainOptions(batch_size=3, micro_batches=2, epochs=0, repeat=0),
        evals=(Evaluation(), Evaluation()),
    )
    with pytest.raises(DataError) as caught:
        check(bad)
    assert len(str(caught.value).split("\n")) - 1 == 12


def test_the_defaults_and_the_shipped_configs_pass():
    """`check` accepts all of them."""
    check(Experiment())
    for path in SHIPPED:
        list(map(check, read_configs(path)))


# --- flatten, fingerprint, to_source --------------------------------------------------------------


def leaves(value, prefix=""):
    """Returns dotted name -> value of everything but dataclasses and tuples of them."""
    if dataclasses.is_dataclass(value):
        children = [(f.name, getattr(value, f.name)) for f in dataclasses.fields(value)]
    elif isinstance(value, tuple) and any(dataclasses.is_dataclass(v) for v in value):
        children = [(str(i), v) for i, v in enumerate(value)]
    else:
        return {prefix: value}
    out = {}
    for name, child in children:
        out |= leaves(child, f"{prefix}.{name}" if prefix else name)
    return out


@pytest.mark.parametrize(
    "name", ["odd", "default", *(p.stem for p in SHIPPED if "sweep" not in p.stem)]
)
def test_written_source_rebuilds_an_equal_experiment(tmp_path, name):
    """It is exactly equal, floats included, and writing it again gives the same text."""
    named = {"odd": ODD, "default": Experiment()}
    path = config_directory() / f"{name}.py"
    experiment = named[name] if name in named else read_config(path)
    source = to_source(experiment)
    rebuilt = read_config(write(tmp_path, source))
    assert rebuilt == experiment
    assert flatten(rebuilt) == flatten(experiment)
    assert to_source(rebuilt) == source


def test_the_home_directory_is_not_written(tmp_path, monkeypatch):
    """Paths in it start with ~ in config files, and are the same paths again when read."""
    home = tmp_path / "alice"
    monkeypatch.setenv("HOME", str(home))
    experiment = Experiment(
        workdir=f"{home}/runs/a",
        base=Checkpoint(str(home), f"{home}2/clip"),
        evals=(Evaluation(prompts=ImageFolder("~/x", questions=("Is it ~/x?", "~"))),),
    )
    source = to_source(experiment)
    path = write(tmp_path, source)
    assert str(home) not in source.replace(f"{home}2", "")  # another directory
    rebuilt = read_config(path)
    assert rebuilt.workdir == experiment.workdir
    assert rebuilt.base == experiment.base
    evaluation = rebuilt.evals[0]
    assert isinstance(evaluation, Evaluation)
    assert evaluation.prompts == ImageFolder(f"{home}/x", questions=("Is it ~/x?", str(home)))
    flat = flatten(experiment)
    assert (flat["workdir"], flat["base.path"]) == ("~/runs/a", "~")
    assert flatten(rebuilt) == flat  # so that it is the same run
    argv = ["--config", str(path), "--workdir", "~/other"]
    monkeypatch.setattr("seva_jax.config.command_line.check", lambda experiment: None)
    assert load_experiment("test", argv)[0].workdir == f"{home}/other"
    monkeypatch.setenv("HOME", "/")
    assert flatten(experiment)["workdir"] == f"{home}/runs/a"


def test_classes_of_the_config_are_found_again(tmp_path, monkeypatch):
    """A new process finds those that the file defines and those of files next to it."""
    mine = tmp_path / "mine"
    mine.mkdir()
    text = (
        "import dataclasses\n"
        "from seva_jax.objectives import DPO\n"
        "@dataclasses.dataclass(frozen=True)\n"
        "class {name}(DPO):\n"
        "    more: float = 1.0\n"
    )
    write(mine, text.format(name="Beside"), "config_beside.py")
    path = write(
        mine,
        text.format(name="Mine")
        + "import config_beside\n"
        + "from seva_jax.config.experiment import Experiment\n"
        + "from seva_jax.objectives import Mixed, Part\n"
        + "def get_config():\n"
        + "    parts = Part(Mine(more=2.0)), Part(config_beside.Beside(more=3.0))\n"
        + "    return Experiment(objective=Mixed(parts))\n",
        "own.py",
    )
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(sys, "path", list(sys.path))
    experiment = read_config(path)
    source = to_source(experiment)
    assert str(tmp_path) not in source
    written = write(tmp_path, source)
    assert read_config(written) == experiment
    for _ in range(2):  # in a process that has read nothing; and once more
        names = [name for name in sys.modules if name in ("config_beside", "seva_jax_config_own")]
        for name in names:
            monkeypatch.delitem(sys.modules, name)
        rebuilt = read_config(written)
        assert flatten(rebuilt) == flatten(experiment)
        assert [part.objective.more for part in rebuilt.objective.parts] == [2.0, 3.0]
        assert to_source(rebuilt) == source
    path.unlink()
    for name in ("config_beside", "seva_jax_config_own"):
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(DataError, match=r"mine/own\.py.* defines classes of this run"):
        read_config(written)


@pytest.mark.parametrize("name", ["odd", "tiny"])
def test_flatten_covers_every_leaf(name):
    """Every leaf is there by name and value, and everything is plain JSON."""
    experiment = ODD if name == "odd" else read_config(config_directory() / "tiny.py")
    flat = flatten(experiment)
    expected = leaves(experiment)
    assert len(expected) > 60
    for key, value in expected.items():
        if isinstance(value, enum.Enum):
            value = value.name
        assert flat[key] == (list(value) if isinstance(value, tuple) else value), key
    # What is more names the classes and lengths of polymorphic parts.
    for key in flat.keys() - expected.keys():
        assert isinstance(flat[key], str), key
    round_trip = json.loads(json.dumps(flat))
    assert round_trip.keys() == flat.keys()


def test_flatten_tells_classes_and_lengths_apart():
    """Objectives with the same fields, no field, or fewer items are different configs."""

    @dataclasses.dataclass(frozen=True)
    class Other(DPO):
        """An objective with the fields of DPO."""

    base = Experiment()
    others = [
        dataclasses.replace(base, objective=Other()),
        dataclasses.replace(base, objective=Supervised()),
        dataclasses.replace(base, corrupt=(DiffusionNoise(), DiffusionNoise())),
        dataclasses.replace(base, corrupt=()),
        dataclasses.replace(base, evals=(Evaluation(),)),
        dataclasses.replace(base, base=TrainedBase()),
    ]
    assert len({fingerprint(e) for e in [base, *others]}) == 1 + len(others)


@pytest.mark.parametrize("num", [0, 1, 1000, 1001, 2500])
def test_the_fingerprint_of_many_values_is_that_of_their_list(num):
    """It is made of pieces; what earlier versions stored has that of the whole list."""
    values = [{"id": i, "b": [i, "ü"], "a": None} for i in range(num)]
    whole = json.dumps(["x", values, 1], sort_keys=True)
    expected = hashlib.sha256(whole.encode()).hexdigest()[:16]
    assert fingerprint("x", iter(values), 1) == fingerprint("x", values, 1) == expected
    alone = json.dumps([values], sort_keys=True)
    assert fingerprint(iter(values)) == hashlib.sha256(alone.encode()).hexdigest()[:16]


def _other(value):
    """Returns another value of the same type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, enum.Enum):
        return next(x for x in type(value) if x is not value)
    if isinstance(value, int | float):
        return value + 1
    if isinstance(value, str):
        return value + "x"
    if isinstance(value, tuple):
        return (*value, *(value[:1] or ("x",)))
    assert value is None
    return 1


def _unshared(value):
    """Returns a copy in which no dataclass occurs in two places, unlike class defaults."""
    if isinstance(value, tuple):
        return tuple(_unshared(v) for v in value)
    if not dataclasses.is_dataclass(value):
        return value
    new = copy.copy(value)
    for field in dataclasses.fields(value):
        object.__setattr__(new, field.name, _unshared(getattr(value, field.name)))
    return new


NO_EFFECT = {
    *("workdir", "take_from", "strict", "mesh", "processes", "report", "profile", "loggers"),
    *("curriculum", "rollout.tensor"),
    *(f"train.{x}" for x in ("save_every_s", "save_every", "log_every", "max_nonfinite")),
    *("train.read_processes", "take_from", "take_training"),
}


def test_fields_without_effect():
    """Every field marked as such is named, wherever it is in the config."""
    assert without_effect(Experiment()) == NO_EFFECT
    assert without_effect(Experiment(base=PriorRun("runs/a"))) == NO_EFFECT | {"base.workdir"}
    assert without_effect(Experiment(curriculum=Rounds())) == NO_EFFECT
    assert "train.log_every" in flatten(Experiment())
    assert without_effect(TrainOptions()) == {
        name.removeprefix("train.") for name in NO_EFFECT if name.startswith("train.")
    }
    rounds = Rounds((Round(), Round(train=TrainOptions())))
    assert "rounds.1.train.log_every" in without_effect(rounds)


def test_fields_without_effect_do_not_change_the_fingerprint():
    """At any depth; their values may be configs, too. Unmarked fields of a marked section count."""
    base, changes = Experiment(), dataclasses.replace
    same = [
        changes(base, workdir="elsewhere", strict=True, curriculum=Rounds()),
        changes(base, report=ReportOptions(num_pairs=1), loggers=(TensorBoard(),)),
        changes(base, mesh=MeshShape(data=2), processes=ProcessOptions(grace_s=1.0)),
        changes(base, train=TrainOptions(log_every=7, save_every=3, save_every_s=1.0)),
        changes(base, train=TrainOptions(max_nonfinite=9, read_processes=2)),
    ]
    assert {fingerprint(config) for config in same} == {fingerprint(base)}
    assert fingerprint(changes(base, base=PriorRun("a"))) == fingerprint(
        changes(base, base=PriorRun("b"))
    )
    assert fingerprint(PriorRun("a")) != fingerprint(PriorRun("a", merge=False))
    rounds = [Rounds((Round(train=TrainOptions(log_every=n)),)) for n in (1, 2)]
    assert fingerprint(rounds[0]) == fingerprint(rounds[1])
    assert fingerprint(ReportOptions()) != fingerprint(ReportOptions(num_pairs=1))


def test_every_leaf_changes_the_fingerprint():
    """A stage may only be skipped if nothing that it may depend on has changed."""
    experiment = _unshared(ODD)  # changed in place below, which frozen dataclasses forbid
    before, seen = fingerprint(experiment), set()

    def visit(value):
        if isinstance(value, tuple):
            for item in value:
                visit(item)
        if not dataclasses.is_dataclass(value):
            return
        for field in dataclasses.fields(value):
            if field.name in without_effect(value):
                continue
            old = getattr(value, field.name)
            if dataclasses.is_dataclass(old):
                visit(old)
                continue
            visit(old)
            object.__setattr__(value, field.name, _other(old))
            changed = fingerprint(experiment)
            assert changed not in seen | {before}, f"{type(value).__name__}.{field.name}"
            seen.add(changed)
            object.__setattr__(value, field.name, old)

    visit(experiment)
    assert fingerprint(experiment) == before
    assert len(seen) > 60


# --- documentation --------------------------------------------------------------------------------


def config_classes():
    """Returns Experiment, what its fields name, and every subclass of those, recursively."""
    found, queue = set(), [Experiment, Checkpoint, TrainedBase]
    while queue:
        kind = queue.pop()
        if kind in found or not kind.__module__.startswith("seva_jax."):
            continue
        found.add(kind)
        queue += kind.__subclasses__()
        annotations = list(typing.get_type_hints(kind).values())
        while annotations:
            annotation = annotations.pop()
            annotations += typing.get_args(annotation)
            if isinstance(annotation, type) and dataclasses.is_dataclass(annotation):
                queue.append(annotation)
    return sorted(found, key=lambda c: (c.__module__, c.__qualname__))


def import_parts():
    """Imports every module that may define a part of a config, so `config_classes` has them."""
    parts = ("corrupt", "data", "evals", "objectives", "pairs", "runtime", "worlds")
    package = Path(seva_jax.__file__).parent
    for file in (file for part in parts for file in (package / part).rglob("[a-z]*.py")):
        importlib.import_module(".".join(file.relative_to(package.parent).with_suffix("").parts))


def test_every_config_class_has_a_public_name():
    """Work directories record it, so classes may move between the files of their package."""
    import_parts()
    hidden = []
    for kind in config_classes():
        module, name = public_name(kind)
        # A shared base, of which no config holds an instance.
        if name.startswith("_") or inspect.isabstract(kind):
            continue
        if not hasattr(sys.modules[module], "__path__") and module.count(".") > 1:
            hidden.append(f"{module}.{name}")
    assert not hidden


def described(kind):
    """Returns the names with text in the Attributes section of a class's own docstring."""
    section = re.search(r"Attributes:\n(.*?)(?:\n\s*\n|\Z)", kind.__doc__ or "", re.DOTALL)
    lines = section.group(1).splitlines() if section else []
    depth = min((len(x) - len(x.lstrip()) for x in lines if x.strip()), default=0)
    return set(re.findall(rf"^ {{{depth}}}(\w+): \S", "\n".join(lines), re.MULTILINE))


@pytest.mark.parametrize("kind", config_classes(), ids=lambda c: c.__qualname__)
def test_every_field_of_every_config_class_is_documented(kind):
    """`--help` shows these lines; a base class may describe an inherited field."""
    assert dataclasses.is_dataclass(kind)
    assert kind.__dataclass_params__.frozen
    known = set().union(*(described(c) for c in kind.__mro__))
    missing = {f.name for f in dataclasses.fields(kind)} - known
    assert not missing
    # And nothing is described that does not exist.
    existing = {f.name for f in dataclasses.fields(kind)}
    existing |= {n for c in kind.__mro__ for n in typing.get_type_hints(c)}
    assert described(kind) <= existing


def test_the_walk_over_config_classes_is_not_empty():
    """It finds base classes, their subclasses and what those hold."""
    names = {c.__qualname__ for c in config_classes()}
    assert {"Experiment", "DPO", "Supervised", "RandomResizedCrop", "Compose", "Chair"} <= names
    assert {"ShapeWorld", "VisionConfig", "Template", "MeshShape", "CorruptionPairs"} <= names
    assert described(RandomResizedCrop)
    assert described(types.SimpleNamespace) == set()


@pytest.mark.parametrize("kind", ["cudnn", "tokamax"])
def test_a_kernel_for_gpus_without_a_gpu_is_refused(tmp_path, kind):
    tiny = read_config(config_directory() / "tiny.py")
    compute = ComputeOptions(attention=kind, dtype="bfloat16")
    with pytest.raises(DataError, match=r"devices are cpus: set --compute\.attention auto"):
        RunContext.open(dataclasses.replace(tiny, compute=compute, workdir=str(tmp_path / "run")))
    assert not (tmp_path / "run").exists()
