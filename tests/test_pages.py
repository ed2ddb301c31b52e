"""What the pages name exists: files, links, settings, shipped recipes."""

import dataclasses
import re
from pathlib import Path

import pytest

from seva_jax.config.config_files import read_configs
from seva_jax.config.prior_run import PriorRun
from seva_jax.config.rounds import runs_of
from seva_jax.config.source import flatten

ROOT = Path(__file__).parents[1]
PAGES = sorted(p for part in ("", "*/", "seva_jax/*/") for p in ROOT.glob(f"{part}*.md"))
EXTENDING = ROOT / "seva_jax/EXTENDING.md"  # its settings are of classes that it defines
CODE = re.compile(r"`([^`\n]+)`")


@pytest.fixture(scope="module")
def settings():
    """Returns the names of all settings that a shipped recipe has, as flags."""
    names = set()
    for path in (ROOT / "configs").glob("*.py"):
        for experiment in read_configs(path):
            names |= {f"--{name.replace('_', '-')}" for name in flatten(experiment)}
    return names


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_and_files(page):
    text = page.read_text("utf-8")
    for target in re.findall(r"\]\(([^)#\s]+)", text):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target
    for named in CODE.findall(text):
        if re.fullmatch(r"(seva_jax|tests|configs|launch)/[\w./]+\.\w+", named):
            assert (ROOT / named).exists(), named


@pytest.mark.parametrize(
    "page", [p for p in PAGES if p != EXTENDING], ids=lambda p: str(p.relative_to(ROOT))
)
def test_settings(page, settings):
    """Every flag with a dot is a setting of a run."""
    for flag in re.findall(r"--[a-z_]+(?:\.[a-z0-9_-]+)+", page.read_text("utf-8")):
        assert flag in settings or flag.replace(".no-", ".") in settings, flag


def test_the_tree_names_every_module():
    """README's tree has an entry for each package, with the names of its modules."""
    page = (ROOT / "README.md").read_text("utf-8")
    tree = re.search(r"```\nseva_jax/\n(.*?)\nconfigs/", page, re.S)
    entries = re.findall(r"^  (\w+)/ (.*(?:\n {4,}.*)*)", tree[1], re.M)
    words = {package: set(re.findall(r"\w+", entry)) for package, entry in entries}
    words["seva_jax"] = set(re.findall(r"(\w+)\.py", tree[1]))
    modules = {package: set() for package in words}
    for path in (ROOT / "seva_jax").rglob("*.py"):
        if not path.stem.startswith("__"):
            parts = path.relative_to(ROOT / "seva_jax").parts
            modules[parts[0] if len(parts) > 1 else "seva_jax"].add(path.stem)
    for package, names in modules.items():
        assert not names - words[package], package
        assert not {word for word in words[package] if "_" in word} - names, package


def test_the_tests_of_reports_exist():
    page = (ROOT / "tests/REPORTS.md").read_text("utf-8")
    named = re.findall(r"`(test_\w+\.py)(?:::(\w+))?`", page)
    assert len(named) > 40
    for file, test in named:
        source = (ROOT / "tests" / file).read_text("utf-8")
        assert not test or f"def {test}(" in source, (file, test)


def test_every_recipe_is_listed():
    page = (ROOT / "configs/README.md").read_text("utf-8")
    tables, _, _ = page.partition("## Where the numbers were read\n")  # in files of others
    rows = "\n".join(line for line in tables.splitlines() if line.startswith("|"))
    listed = set(re.findall(r"(?:`|configs/)(\w+\.py)\b", rows))
    assert listed == {p.name for p in (ROOT / "configs").glob("*.py")}


def test_the_recipes_of_the_page_run(tmp_path):
    page = (ROOT / "configs/README.md").read_text("utf-8")
    configs = {}
    for code in re.findall(r"```python\n(.*?)```", page, re.S):
        path = tmp_path / code.split()[1]
        path.write_text(code)
        (configs[path.stem],) = read_configs(path)
    assert [c.step for c in configs["my_run"].corrupt] == [500, 800]
    rounds = runs_of(configs["my_rounds"])
    assert [run.corrupt[0].step for run in rounds] == [999, 500, 500]
    assert [run.prompts.weights for run in rounds] == [(1, 3), (1, 1), (1, 1)]
    assert [run.train.max_steps for run in rounds] == [0, 50, 50]
    both = ("lora", "projector")
    assert [run.train.trained for run in rounds] == [both, ("lora",), ("lora",)]
    assert [run.base for run in rounds[1:]] == [
        PriorRun("runs/rounds/1", merge=True), PriorRun("runs/rounds/2", merge=False),
    ]  # fmt: skip


def test_the_config_of_the_first_page_runs(tmp_path):
    """README's block, as it stands, is a config of the published run with another data source."""
    page = (ROOT / "README.md").read_text("utf-8")
    (code,) = re.findall(r"```python\n(# my_run\.py\n.*?)```", page, re.S)
    (tmp_path / "my_run.py").write_text(code)
    (config,) = read_configs(tmp_path / "my_run.py")
    (published,) = read_configs(ROOT / "configs/llava15_7b_seva.py")
    assert (config.workdir, config.prompts.root) == ("runs/mine", "photos")
    assert (
        dataclasses.replace(config, workdir=published.workdir, prompts=published.prompts)
        == published
    )


def test_the_first_page_asks_both_models():
    """A report compares answers of both; with the aligned model's alone it says "Not known"."""
    page = (ROOT / "README.md").read_text("utf-8")
    assert "seva-jax evaluate --models base runs/mine --questions" in page
