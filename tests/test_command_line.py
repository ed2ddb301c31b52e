"""`seva-jax` and its commands: what they list, and what they answer to what they do not know."""

import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import seva_jax
import seva_jax.train  # defines all subclasses that a run may choose
from seva_jax import __main__ as front
from seva_jax.config import command_line
from seva_jax.config.command_line import load_experiment, program
from seva_jax.config.config_files import config_directory, find_config, read_config
from seva_jax.config.source import to_source
from seva_jax.config.suggestions import choices, closest, options_of
from seva_jax.objectives import IPO, Objective
from seva_jax.types import DataError

ROOT = Path(__file__).parents[1]


def refused(capsys, *argv, run=load_experiment):
    """Returns the lines that a command prints to standard error as it ends with status 2."""
    with pytest.raises(SystemExit) as caught:
        run("test", list(argv)) if run is load_experiment else run(list(argv))
    assert caught.value.code == 2
    printed = capsys.readouterr()
    assert not printed.out
    assert not set("╭│╰") & set(printed.err)
    return printed.err.splitlines()


# --- one entry point ------------------------------------------------------------------------------


def test_the_console_script_is_the_front_module():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert project["scripts"] == {"seva-jax": "seva_jax.__main__:main"}


@pytest.mark.parametrize("argv", [[], ["--help"], ["-h"]])
def test_all_commands_are_listed(capsys, argv):
    front.main(argv)
    listed = re.findall(r"^  (\w+) +(\S.*)$", capsys.readouterr().out, re.MULTILINE)
    names = ["train", "data", "evaluate", "convert", "plan", "report", "chat", "bench"]
    assert [name for name, _ in listed] == [*names, "completion"]
    assert all(about for _, about in listed)


def test_the_list_needs_no_library():
    """It appears at once, because neither JAX nor anything else is imported for it."""
    code = "from seva_jax.__main__ import main; main(['--help']); import sys; print([*sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "'seva_jax'" in done.stdout
    assert "'jax'" not in done.stdout


def test_the_version(capsys):
    front.main(["--version"])
    assert capsys.readouterr().out == f"seva-jax {seva_jax.__version__}\n"


def test_a_misspelt_command_is_answered(capsys):
    (line,) = refused(capsys, "trian", run=front.main)
    assert "did you mean seva-jax train?" in line
    (line,) = refused(capsys, "--config", "my_run.py", run=front.main)
    assert line.endswith("seva-jax train --config my_run.py")


def test_commands_get_their_arguments(capsys):
    front.main(["train", "--print-config", "--optim.lr", "0.125"])
    assert "lr=0.125" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("started", "expected"),
    [
        ("/usr/bin/seva-jax", "seva-jax train"),
        ("C:/env/Scripts/seva-jax.exe", "seva-jax train"),
        ("/env/lib/seva_jax/__main__.py", "python -m seva_jax train"),
        ("/env/lib/seva_jax/train.py", "python -m seva_jax.train"),
        ("/env/bin/pytest", "python -m seva_jax.train"),
    ],
)
def test_messages_name_the_command_as_it_was_typed(monkeypatch, capsys, started, expected):
    monkeypatch.setattr(sys, "argv", [started])
    assert program("train") == expected
    assert refused(capsys, "--bogus")[-1] == f"{expected} --help lists all options"
    with pytest.raises(SystemExit):
        load_experiment("test", ["--help"])
    assert f"usage: {expected} " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ("data check --confg tiny", "--config"),
        ("evaluate --modell runs/mine", "--model"),
        ("convert to-hf a b --steps 3", "--step: training step to export"),
        ("report --runs a --ouut b", "--out: the HTML page to write"),
        ("plan --topology v5e:4x4 --train.bach-size 3", "--train.batch-size"),
        ("bench step --round 3", "--rounds"),
    ],
)
def test_all_commands_answer_to_typos(capsys, argv, expected):
    name = " ".join(argv.split()[:2]) if argv.split()[0] in ("data", "convert", "bench") else ""
    lines = refused(capsys, *argv.split(), run=front.main)
    assert any(line.strip().startswith(expected) for line in lines)
    assert lines[-1].endswith(f"{name or argv.split()[0]} --help lists all options")


# --- options that do not exist --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("--optim.learning-rate", "optim.lr"),
        ("--lr", "optim.lr"),
        ("--learning_rate", "optim.lr"),
        ("--train.lr", "optim.lr"),
        ("--per_device_train_batch_size", "train.batch-size"),
        ("--num_train_epochs", "train.epochs"),
        ("--epochs", "train.epochs"),
        ("--output_dir", "workdir"),
        ("--beta", "objective.beta"),
        ("--max_length", "text.max-length"),
        ("--max_steps", "train.max-steps"),
        ("--lora_alpha", "lora.alpha"),
        ("--gradient_accumulation_steps", "train.micro-batches"),
        ("--gradient_checkpointing", "compute.remat"),
        ("--lr_scheduler_type", "optim.schedule"),
        ("--warmup_steps", "optim.warmup-ratio"),
        ("--max_grad_norm", "optim.clip-norm"),
        ("--logging_steps", "train.log-every"),
        ("--save_steps", "train.save-every"),
        ("--temperature", "rollout.sampling.temperature"),
        ("--corrupt.1.step", "corrupt.0.step"),
        ("--conifg", "config"),
    ],
)
def test_the_first_suggestion_is_the_option_that_was_meant(capsys, wrong, right):
    """Others train with these names (TRL and transformers), or it is a slip."""
    first, second, *_ = refused(capsys, wrong, "1")
    assert first == f"error: there is no option {wrong}; did you mean"
    assert re.match(rf"  --{re.escape(right)}(:|$)", second)


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        ("train --optim.lr abc", "--optim.lr: could not convert string to float: 'abc'"),
        ("train --train.keep bets", "invalid choice 'bets' for argument '--train.keep'."),
        ("data chek", "Expected one of {check, show, convert, build, corruptions}."),
        ("data corruptions", "Missing from seva-jax data corruptions: PHOTO"),
    ],
)
def test_a_bad_value_gets_a_plain_line(monkeypatch, capsys, argv, line):
    monkeypatch.setattr(sys, "argv", ["/bin/seva-jax"])
    first, last = refused(capsys, *argv.split(), run=front.main)
    assert first.startswith(f"error: {line}")
    assert last == f"seva-jax {argv.split()[0]} --help lists all options"


def test_output_that_is_not_read_to_its_end_is_no_error():
    code = "from seva_jax.__main__ import main; main(['train', '--help'])"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as started:
        started.stdout.close()
        assert started.stderr.read() == ""
    assert started.returncode == 1


def test_an_answer_is_short(capsys):
    assert len(refused(capsys, "--batch-size", "8")) <= 5
    assert len(refused(capsys, "--zzz", "8")) == 2


def test_options_of_a_checkpoint_are_of_another_config(capsys):
    """The default config trains its own model, so it has no directory to give."""
    lines = refused(capsys, "--model_name_or_path", "llava")
    assert lines[1].startswith("  --config llava15_7b_seva --base.path: ")
    for argv in (["--base.path", "/models/llava"], ["--base", "/models/llava"]):
        line, _ = refused(capsys, *argv)
        assert "an option of Checkpoint, but base is TrainedBase in this config" in line
        assert "--config llava15_7b_seva --base.path /models/llava" in line
        assert "base=Checkpoint(path='/models/llava')" in line
    line, _ = refused(capsys, "--config", "llava15_7b_seva", "--base", "/models/llava")
    assert line.endswith("did you mean --base.path /models/llava")


@pytest.mark.parametrize(
    ("argv", "lines"),
    [
        ("--objective ipo", ["from seva_jax.objectives import IPO", "objective=IPO()"]),
        ("--loss_type ipo", ["from seva_jax.objectives import IPO", "objective=IPO()"]),
        ("--corrupt moco", ["from seva_jax.corrupt import moco", "corrupt=(moco(),)"]),
        ("--pairs mia", ["from seva_jax.pairs import MiaPairs", "pairs=MiaPairs()"]),
        ("--loggers wandb", ["from seva_jax.runtime import WandB", "loggers=(WandB(),)"]),
        ("--evals pope", ["from seva_jax.evals.suites import PopeSets", "evals=(PopeSets(),)"]),
        ("--curriculum.x rounds", None),
    ],
)
def test_classes_are_chosen_in_the_config_file(capsys, argv, lines):
    """The answer has the lines to write, and all classes."""
    answer = refused(capsys, *argv.split())
    if lines is None:
        assert answer[0].startswith("error: there is no option")
        return
    assert "classes are chosen in the config file" in answer[0]
    assert [line.strip() for line in answer[1:3]] == lines
    assert answer[3].startswith("classes: ")


def test_the_lines_to_write_are_right(capsys, tmp_path):
    """A config with them, as the answer says, trains with that class."""
    answer = refused(capsys, "--objective", "ipo")
    code = (
        f"import dataclasses\n{answer[1].strip()}\nfrom seva_jax.recipes import tiny\n"
        f"def get_config():\n"
        f"    return dataclasses.replace(tiny.get_config(), {answer[2].strip()})\n"
    )
    (tmp_path / "my_run.py").write_text(code)
    experiment, _ = load_experiment("test", ["--config", str(tmp_path / "my_run.py")])
    assert experiment.objective == IPO()


def test_all_classes_are_named():
    """They are those that the package exports, without base classes."""
    names = choices(Objective)
    assert {"DPO", "IPO", "Supervised", "RRPO", "Trajectory"} <= names.keys()
    assert not {"PairObjective", "MarginObjective", "Objective"} & names.keys()


@pytest.mark.parametrize("argv", ["--mesh 4", "--optim adamw", "--lora_r 8"])
def test_a_group_of_options_is_listed(capsys, argv):
    line, _ = refused(capsys, *argv.split())
    group = re.match("--([a-z]+)", argv)[1]
    known = [option.name for option in options_of(read_config(find_config("tiny")))]
    assert set(re.findall(rf"--({group}\.[a-z0-9-]+)", line)) == {
        name for name in known if name.startswith(f"{group}.")
    }


def test_a_stray_value(capsys):
    line, _ = refused(capsys, "my_run.py")
    assert line == "error: 'my_run.py' belongs to no option; --config my_run.py chooses a config"


def test_every_option_is_found_by_its_own_name():
    options = list(options_of(read_config(find_config("llava15_7b_seva"))))
    for option in options:
        assert closest(option.name, options)[0] == option


# --- config files ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llava15_7b_seva", "llava15_7b_seva.py"])
def test_a_shipped_config_needs_no_path(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    experiment, flags = load_experiment("test", ["--config", name])
    assert flags.config == config_directory() / "llava15_7b_seva.py"
    assert experiment == read_config(flags.config)
    own = (
        "from seva_jax.config import Experiment\ndef get_config():\n    return Experiment(seed=7)\n"
    )
    (tmp_path / name).write_text(own)
    if name.endswith(".py"):  # a file of one's own comes first
        assert load_experiment("test", ["--config", name])[0].seed == 7


def test_a_wrong_path_gets_the_right_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_run.py").write_text("")
    for wrong, right in (("my_rum.py", "my_run.py"), ("llava15_7b", "llava15_7b_seva")):
        with pytest.raises(DataError, match=f"did you mean --config {right}"):
            load_experiment("test", ["--config", wrong])
    (tmp_path / "runs/mine").mkdir(parents=True)
    (tmp_path / "runs/mine/config.py").write_text("")
    with pytest.raises(DataError, match=r"is a work directory; its config is runs/mine/config\.py"):
        load_experiment("test", ["--config", "runs/mine"])


def test_options_have_no_abbreviations(capsys):
    """`--on` would otherwise be `--only`, and a later option could change its meaning."""
    assert "--on" in refused(capsys, "--on", "1")[0]


# --- recipes --------------------------------------------------------------------------------------

VARIANT = """
import dataclasses
from seva_jax.objectives import Objective
from seva_jax.recipes import llava15_7b_seva

@dataclasses.dataclass(frozen=True)
class Mine(Objective):
    beta: float = 0.25

def get_config():
    return dataclasses.replace(
        llava15_7b_seva.get_config(), workdir="runs/mine", objective=Mine()
    )
"""


def test_shipped_configs_are_modules_and_a_record_of_a_variant_rebuilds(tmp_path):
    """The config varies one without a copy of it, and so does another process with its record."""
    (tmp_path / "my_run.py").write_text(VARIANT)
    experiment = read_config(tmp_path / "my_run.py")
    published = read_config(config_directory() / "llava15_7b_seva.py")
    assert experiment.prompts == published.prompts
    (tmp_path / "recorded.py").write_text(to_source(experiment))
    code = (
        "import sys; from pathlib import Path; from seva_jax.config import read_config, to_source\n"
        "sys.stdout.write(to_source(read_config(Path('recorded.py'))))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout == (tmp_path / "recorded.py").read_text()


def test_every_shipped_config_runs_from_elsewhere_and_as_a_module(tmp_path):
    """Those that vary others need no other file beside them."""
    paths = sorted(config_directory().glob("*.py"))
    assert len(paths) > 30
    for path in paths:
        copy = tmp_path / path.name
        copy.write_text(path.read_text("utf-8"), "utf-8")
        experiments = command_line.read_configs(copy)
        assert experiments == command_line.read_configs(path)
        copy.unlink()
        module = __import__(f"seva_jax.recipes.{path.stem}", fromlist=["x"])
        if hasattr(module, "get_config"):
            assert [module.get_config()] == experiments


# --- completion -----------------------------------------------------------------------------------


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_completes_commands_and_options(tmp_path, capsys):
    front.main(["completion", "bash"])
    (tmp_path / "script").write_text(capsys.readouterr().out)

    def completed(*typed):
        """Returns what TAB offers after the words, of which the last is not complete."""
        code = (
            f". ./script; complete -p seva-jax >&2; COMP_WORDS=(seva-jax {shlex.join(typed)})\n"
            f'COMP_CWORD={len(typed)}; _seva_jax; printf "%s\\n" "${{COMPREPLY[@]}}"'
        )
        done = subprocess.run(
            ["bash", "--norc", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        assert "-F _seva_jax seva-jax" in done.stderr
        return done.stdout.split()

    assert completed("tr") == ["train"]
    assert set(completed("")) >= set(front.COMMANDS)
    assert completed("train", "--optim.lr") == ["--optim.lr"]
    assert set(completed("train", "--seed", "3", "--mesh.")) == {
        "--mesh.data", "--mesh.fsdp", "--mesh.tensor",
    }  # fmt: skip
    assert completed("data", "ch") == ["check"]
    assert "--image-root" in completed("data", "check", "--im")
    assert completed("convert", "to-hf", "--st") == ["--step"]
    assert completed("evaluate", "--mod") == ["--models", "--model"]
    assert completed("train", "--config", "my_ru") == []  # then bash completes names of files
