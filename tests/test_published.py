"""What recipes say about themselves: commands that can be pasted, and the papers' numbers."""

import ast
import re
import shlex

import jax
import pytest

from seva_jax.config.command_line import load_experiments
from seva_jax.config.config_files import config_directory, read_config
from seva_jax.config.rounds import runs_of
from seva_jax.config.source import flatten
from seva_jax.sharding import check_batch

ALL = sorted(config_directory().glob("*.py"))
COMMAND = re.compile(r"^ *python -m seva_jax\.train (.*(?:\\\n.*)*)", re.MULTILINE)
OPTIONS = re.compile(r"`(--[a-z][^`]*)`")


def said(path):
    """Returns the module docstring of a recipe."""
    return ast.get_docstring(ast.parse(path.read_text("utf-8")))


@pytest.mark.parametrize("path", ALL, ids=lambda p: p.stem)
def test_the_commands_of_a_recipe(path, monkeypatch):
    """There is one; it is accepted with every option named next to it, and fits eight devices."""
    monkeypatch.chdir(config_directory().parent)
    text = said(path)
    commands = [re.sub(r"\\\n", "", found) for found in COMMAND.findall(text)]
    assert commands
    further = [shlex.split(re.sub(r"\s+", " ", options)) for options in OPTIONS.findall(text)]
    for number, command in enumerate(commands):
        for more in [[], *further] if not number else [[]]:
            argv = [*shlex.split(command, comments=True), *more]
            assert argv[:2] == ["--config", f"configs/{path.name}"]
            for experiment in load_experiments("test", argv)[0]:
                for run in runs_of(experiment):
                    mesh = run.mesh.make(jax.devices())
                    check_batch(mesh, run.train.batch_size, run.train.micro_batches)


ADAPTERS = {"lora.rank": 128, "lora.alpha": 256.0}
# By recipe, and for each of its runs; the last holds for those that follow.
PUBLISHED = {
    "llava15_7b_seva": [
        {"lora.rank": 1024, "lora.alpha": 2048.0, "optim.lr": 2e-6, "objective.beta": 0.1,
         "train.batch_size": 128, "train.epochs": 1, "corrupt.0.step": 500},
    ],
    "apasi": [
        ADAPTERS | {"optim.lr": 4e-7, "objective.beta": 0.1, "train.batch_size": 64,
                    "train.epochs": 3, "train.reference": "cached", "pairs.rate": 0.2,
                    "pairs.most_objects": 10, "pairs.sampling.max_new_tokens": 64,
                    "pairs.sampling.temperature": 0.0, "pairs.sampling.repetition_penalty": 1.1},
    ],
    "gapo": [
        {"objective.weighting": "seva_jax.objectives.ScoreGap",
         "objective.weighting.base": 2.0, "objective.weighting.relative": False},
    ],
    "grape": [
        {"lora.rank": 32, "optim.lr": 2e-5, "train.batch_size": 1, "objective.window": 8,
         "objective.objective.beta": 0.1, "prompts.window": 8, "prompts.judge.likelihood": 0.01,
         "prompts.judge.cost": 0.01, "prompts.judge.success": 5.0},
    ],
    "mia_dpo": [
        ADAPTERS | {"optim.lr": 5e-5, "optim.schedule": "linear", "objective.beta": 0.1,
                    "objective.sft_weight": 0.0, "train.epochs": 1, "train.trained": ["lora"],
                    "prompts.tile": 448, "prompts.inset": 0.7, "pairs.layer": 16,
                    "pairs.max_truth": 512, "pairs.min_perplexity": 1.1},
    ],
    "mmedpo": [
        ADAPTERS | {"optim.lr": 1e-7, "train.epochs": 3, "train.trained": ["lora"],
                    "objective.weighting": "seva_jax.objectives.RawScore",
                    "prompts.sources.1.noise.noise": "pixels", "prompts.sources.1.noise.std": 10.0,
                    "prompts.sources.1.noise.region": "heat"},
    ],
    "povid": [
        ADAPTERS | {"optim.lr": 1e-7, "objective.beta": 0.1, "train.epochs": 3},
        ADAPTERS | {"optim.lr": 1e-7, "objective.beta": 0.1, "train.epochs": 1, "base.merge": True,
                    "objective": "seva_jax.objectives.Inherent",
                    "prompts.change": "seva_jax.corrupt.PixelNoise",
                    "prompts.change.step": 500},
    ],
    "realign": [
        ADAPTERS | {"optim.lr": 1e-6, "objective.beta": 0.1},
    ],
    "rrpo": [
        ADAPTERS | {"optim.lr": 5e-6, "objective.beta": 0.1, "objective.alpha": 0.01},
    ],
    "rrpo_videochat2": [
        {"optim.lr": 2e-5, "objective.beta": 0.5, "objective.alpha": 0.1},
    ],
    "temple": [
        {"lora.rank": 32, "lora.alpha": 64.0, "optim.lr": 5e-6, "train.batch_size": 16,
         "rollout.sampling.temperature": 0.7, "rollout.sampling.repetition_penalty": 1.05,
         "pairs.max_ratio": 1.5, "corrupt.0.groups": groups}
        for groups in (16, 8, 4, 2)
    ] + [{"optim.lr": 1e-4}],
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_numbers(name):
    """Every run of the recipe has the numbers of the papers and releases."""
    runs = runs_of(read_config(config_directory() / f"{name}.py"))
    published = PUBLISHED[name]
    for number, run in enumerate(runs):
        expected, found = published[min(number, len(published) - 1)], flatten(run)
        assert {key: found.get(key) for key in expected} == expected
