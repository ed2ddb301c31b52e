"""Writes format3.json: what version 0.4.0 recorded of a few runs, and of every class of a config.

It ran once, with the code of that version. Running it again would hide what the test is for.
"""

import dataclasses
import importlib
import inspect
import json
from pathlib import Path
from types import SimpleNamespace

from seva_jax.config import config_directory, fingerprint, flatten, read_configs, to_source
from seva_jax.train import stages

GOLDEN = Path(__file__).with_name("format3.json")
PACKAGES = (
    "config", "corrupt", "data", "evals", "evals.suites", "images", "models", "objectives", "pairs",
    "text", "training", "worlds",
)  # fmt: skip


def stage_fingerprints(config):
    """Returns the fingerprints of a run's stages by name."""
    ctx = SimpleNamespace(config=config)
    return {stage.name: stage.depends_on for stage in stages(ctx, None)}


def class_fingerprints():
    """Returns the fingerprints of default instances of all public dataclasses by class."""
    prints = {}
    for package in PACKAGES:
        module = importlib.import_module(f"seva_jax.{package}")
        for name, thing in sorted(vars(module).items()):
            if not inspect.isclass(thing) or not dataclasses.is_dataclass(thing):
                continue
            try:
                prints[f"{package}.{name}"] = fingerprint(thing())
            except TypeError:  # it has a field without a default, or one that is no setting
                continue
    return prints


if __name__ == "__main__":
    runs = {}
    for name in ("tiny", "llava15_7b_seva", "rrpo"):
        run = read_configs(config_directory() / f"{name}.py")[0]
        runs[name] = {
            "config.py": to_source(run),
            "config.json": {"format": 3} | flatten(run),
            "stages": stage_fingerprints(run),
        }
    record = {"runs": runs, "classes": class_fingerprints()}
    GOLDEN.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n", encoding="utf-8")
