"""The commands of the page about launching: what can be tried of them without a project."""

import contextlib
import csv
import re
import shlex
import string
import subprocess
from pathlib import Path

from seva_jax.config import flatten
from seva_jax.config.command_line import load_experiments
from seva_jax.config.config_files import read_config
from seva_jax.plan.__main__ import main as plan
from seva_jax.plan.options import image_layout, processing_of
from seva_jax.plan.published import PUBLISHED

ROOT = Path(__file__).parent.parent


def commands():
    """Returns the commands of the bash blocks, each as a list of words."""
    text = (ROOT / "launch" / "README.md").read_text()
    blocks = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True) for line in lines if line]


def test_the_launch_is_one_that_the_launcher_and_the_trainer_take():
    """Only --dry-run is added; the trainer's options are read by the trainer's own parser."""
    (launch,) = (words for words in commands() if "v5litepod-16" in words)
    done = subprocess.run(
        [launch[0], "--dry-run", *launch[1:]], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "queued-resources create seva" in done.stdout
    assert "launch/worker.py" in done.stdout
    options = launch[launch.index("--") + 1 :]
    options[options.index("--config") + 1] = str(ROOT / "configs" / "llava15_7b_seva.py")
    ((experiment,), _) = load_experiments("", options)
    config = flatten(experiment)
    bucket = "gs://my-bucket"
    assert experiment.workdir == f"{bucket}/runs/seva"
    assert config["base.path"] == f"{bucket}/llava-1.5-7b-hf"
    assert config["prompts.sources.1.image_root"] == f"{bucket}/data"


def test_every_command_names_what_is_there():
    """Scripts and modules exist."""
    for words in commands():
        for word in words:
            if re.fullmatch(r"launch/\w+\.\w+", word):
                assert (ROOT / word).is_file(), word
        if words[:2] == ["python", "-m"]:
            path = ROOT / words[2].replace(".", "/")
            assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file(), words[2]


def test_the_table_of_whole_runs_is_what_the_planner_says(tmp_path, monkeypatch):
    """Its commands give its rows, in any order."""
    monkeypatch.chdir(ROOT)
    text = (ROOT / "launch" / "README.md").read_text()
    section = text.partition("### SeVa-7B from prompts to evaluation")[2].partition("\n### ")[0]
    first, *rest = re.findall(r"```bash\n(.*?)```", section, re.DOTALL)[0].splitlines()
    beginning = shlex.split(first)[0].partition("seva_jax.plan ")[2].split()
    planned = []
    for number, line in enumerate(rest):
        file = tmp_path / f"{number}.csv"
        plan([*beginning, *line.split()[1:], "--csv", str(file)])
        planned += csv.DictReader(file.read_text().splitlines())
    columns = (
        *("answering data x tensor", "rows", "ms/token step", "rollouts min", "reference min"),
        *("training min", "evaluation min", "whole run min", "chip-hours", "min at measured rates"),
    )
    found = [[row["model"].split()[-1], *(row[name] for name in columns)] for row in planned]
    table = [line.strip("| ").split(" | ") for line in section.splitlines() if "LoRA r=" in line]
    written = [
        [model.split()[1].rstrip(","), where.partition(",")[0], *numbers]
        for model, _, where, *numbers in table
    ]
    assert len(written) == 6
    assert sorted(written) == sorted(found)


def test_the_table_of_other_families_is_what_the_planner_says(tmp_path, monkeypatch):
    """Its commands give its rows, in order."""
    monkeypatch.chdir(ROOT)
    text = (ROOT / "launch" / "README.md").read_text()
    section = text.partition("### Other model families")[2].partition("\n### ")[0]
    columns = (
        *("rows", "step GiB/chip", "s/step", "ms/token step", "rollouts min", "reference min"),
        *("training min", "evaluation min", "whole run min", "chip-hours", "min at measured rates"),
    )
    values, planned = {}, []
    for line in re.findall(r"```bash\n(.*?)```", section, re.DOTALL)[0].splitlines():
        name, assigned, value = line.partition('="')
        value = string.Template(value.removesuffix('"') if assigned else line).substitute(values)
        if assigned:
            values[name] = value
            continue
        words = value.removeprefix("python -m seva_jax.plan ").split()
        file = tmp_path / "table.csv"
        plan([*words, "--csv", str(file)])
        size = words[words.index("--size") + 1]
        published = PUBLISHED[size]
        sides, frames = (480, 640), 0
        if "--frames" in words:
            frames = int(words[words.index("--frames") + 1])
        else:
            start = words.index("--image") + 1
            sides = int(words[start]), int(words[start + 1])
        processing = processing_of(size, read_config(ROOT / words[words.index("--config") + 1]))
        layout = image_layout(processing, published.config, sides, frames)
        shown = f"{frames} frames" if frames else f"{sides[0]} x {sides[1]}"
        image = shown, f"{layout.tiles}, {layout.num_tokens:,}"
        for row in csv.DictReader(file.read_text().splitlines()):
            topology = row["topology"].replace("h100", "one H100")
            planned.append([row["model"], *image, topology, *(row[x] for x in columns)])
    table = [line.strip("| ").split(" | ") for line in section.splitlines() if "LoRA r=" in line]
    assert [[re.sub(r" \(\d+\)$", "", x) for x in row] for row in table] == planned
    assert len(planned) == 26


def test_the_largest_images_of_qwen_are_what_the_planner_says(tmp_path, monkeypatch):
    """Each row of the table fits; on the smallest slice and the GPU, a tenth more does not."""
    monkeypatch.chdir(ROOT)
    text = (ROOT / "launch" / "README.md").read_text()
    section = text.partition("The largest images of Qwen-VL")[2].partition("\n### ")[0]
    table = [line.strip("| ").split(" | ") for line in section.splitlines() if "| `--" in line]
    configs = {"qwen2.5-vl-7b": "qwen2_5_vl_7b_seva", "qwen3-vl-8b": "qwen3_vl_8b_seva"}
    file = tmp_path / "plan.csv"

    def planned(size, topology, pixels, options):
        with contextlib.suppress(SystemExit):  # of a run that does not fit
            plan([
                *("--answer", "100", "--no-compile", "--image", "8000", "8000"),
                *("--config", f"configs/{configs[size]}.py", "--size", size),
                *("--topology", topology, "--base.max-pixels", str(pixels), "--rows", "64"),
                *("--text.max-length", "65536", *options.strip("`").split(), "--csv", str(file)),
            ])  # fmt: skip
        (row,) = csv.DictReader(file.read_text().splitlines())
        return row

    for size, topology, pixels, _, *numbers, options in table:
        most = int(pixels.replace(",", ""))
        row = planned(size, topology, most, options)
        assert row["fits"] == "yes"
        assert [row[x] for x in ("s/step", "whole run min", "chip-hours")] == numbers
        if topology in ("v5e:4x4", "h100"):
            assert planned(size, topology, int(1.1 * most), options)["fits"] == "NO"
    assert len(table) == 8
