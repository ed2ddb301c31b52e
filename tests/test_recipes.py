"""Every recipe of `configs/` can be read and written back; the tiny ones train to the end."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from helpers_train import table

from seva_jax import train
from seva_jax.config.base_models import TrainedBase
from seva_jax.config.command_line import load_experiments
from seva_jax.config.config_files import config_directory, read_configs
from seva_jax.config.experiment import Evaluation
from seva_jax.config.rounds import runs_of
from seva_jax.corrupt import DiffusionNoise, Drop, Reverse, Shuffle
from seva_jax.data import json_records
from seva_jax.data.sources import PromptSource
from seva_jax.run.rollouts import RECORDS, read_rollouts
from seva_jax.runtime import files
from seva_jax.runtime.run_records import read_metrics, read_stages
from seva_jax.worlds import WorldSequences
from seva_jax.worlds.pairs import wrong_answer

ALL = sorted(config_directory().glob("*.py"))
TINY = [path for path in ALL if path.stem.startswith("tiny")]
PROMPTS = 24


pytestmark = pytest.mark.usefixtures("one_device")


@pytest.mark.parametrize("path", ALL, ids=lambda p: p.stem)
def test_every_recipe_reads_and_rebuilds(path, tmp_path, capsys):
    """It passes the checks, and what `--print-config` shows is the same recipe."""
    experiments, _ = load_experiments("test", ["--config", str(path)])
    assert experiments == read_configs(path)
    assert len({e.workdir for e in experiments}) == len(experiments)
    for index in {0, len(experiments) - 1}:
        train.main(["--config", str(path), "--print-config", "--only", str(index)])
        printed = tmp_path / f"{index}.py"
        printed.write_text(capsys.readouterr().out)
        assert read_configs(printed) == [experiments[index]]


# --- training -------------------------------------------------------------------------------------


def fewer(config):
    """Returns a part of a config in which no source has more than `PROMPTS` prompts."""
    if isinstance(config, tuple):
        return tuple(map(fewer, config))
    if not dataclasses.is_dataclass(config):
        return config
    new = {f.name: fewer(getattr(config, f.name)) for f in dataclasses.fields(config) if f.init}
    if isinstance(config, PromptSource) and "num" in new:
        new["num"] = min(new["num"], PROMPTS)
    return dataclasses.replace(config, **new)


def shrunk(e):
    """Returns a small version of a recipe, for tests of what it computes, not of what it learns."""
    small = dataclasses.replace
    base = e.base
    if isinstance(base, TrainedBase):
        vision = small(base.model.vision, hidden_size=16, num_layers=2, num_heads=2, mlp_size=32)
        text = small(
            base.model.text, hidden_size=32, num_layers=2, num_heads=2, num_kv_heads=2, head_dim=16,
            mlp_size=32, rope_sections=(4, 2, 2) if base.model.text.rope_sections else (),
        )  # fmt: skip
        base = small(base, model=small(base.model, vision=vision, text=text))
        base = small(base, steps=20, batch_size=8, prompts=small(base.prompts, num=160))
    sampling = small(e.rollout.sampling, max_new_tokens=min(e.rollout.sampling.max_new_tokens, 12))
    batch_size = min(e.train.batch_size, 8 * e.train.micro_batches)
    evals = [fewer(x) for x in e.evals if isinstance(x, Evaluation)][:1]
    return small(
        e,
        base=base,
        prompts=fewer(e.prompts),
        rollout=small(e.rollout, sampling=sampling, batch_size=16),
        lora=small(e.lora, rank=min(e.lora.rank, 2)),
        train=small(e.train, batch_size=batch_size, max_steps=3, log_every=1, feature_cache=""),
        compute=small(e.compute, row_shapes=1),
        evals=tuple(small(x, max_new_tokens=4) for x in evals),
        report=small(e.report, num_pairs=4, num_examples=2),
    )


def plausible(workdir):
    """Replaces rollouts by the truth and wrong answers, as of a model that has learned something.

    A model that was trained for a few steps says the same twice, so there would be no pairs.
    """
    records, rng = read_rollouts(workdir), np.random.default_rng(0)
    for record in records:
        if "kind" in record["meta"]:
            record["clean"] = record["meta"]["answer"]
            prompt = json_records.prompt_from(record)
            record["corrupted"] = [wrong_answer(prompt, rng)[0] for _ in record["corrupted"]]
            if "arrangement" in record["meta"]:  # MIA-DPO compares wrong answers with the truth
                record["clean"] = wrong_answer(prompt, rng)[0]
    files.write_records(workdir / RECORDS, records)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Returns the folder of all recipes; later ones take the base model from earlier ones."""
    return tmp_path_factory.mktemp("recipes")


@pytest.mark.slow
@pytest.mark.parametrize("path", TINY, ids=lambda p: p.stem)
def test_a_tiny_recipe_trains(path, folder, capsys):
    """It reaches the report with finite losses; run again, it has nothing left to do."""
    stages = table(after={"rollouts": lambda ctx: plausible(ctx.workdir.path)})
    others = [found.parent for found in folder.rglob("*/stages.json")]
    for index, experiment in enumerate(read_configs(path)[:2]):  # two runs of a sweep
        workdir = folder / path.stem / str(index)
        whole = dataclasses.replace(experiment, workdir=str(workdir))
        runs = tuple(map(shrunk, runs_of(whole)))
        train.run_all(runs, others, stages)
        finished = 0
        for run in runs:
            rows = [row for row in read_metrics(Path(run.workdir)) if row["stage"] == "align"]
            assert rows
            assert np.isfinite([row["loss"] for row in rows]).all()
            assert np.isfinite([row["grad_norm"] for row in rows]).all()
            done = read_stages(Path(run.workdir))
            assert {"pairs", "align", "report"} <= done.keys()
            finished += len(done)
        assert (workdir / "rounds.html").exists() == (len(runs) > 1)
        capsys.readouterr()
        train.run_all(runs, others, stages)
        shown = capsys.readouterr().out
        assert shown.count("done before") == finished
        assert "▶" not in shown
        others += [Path(run.workdir) for run in runs]


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["tiny_llava_onevision", "tiny_qwen2_vl", "tiny_qwen2_5_vl", "tiny_qwen3_vl"]
)
def test_a_recipe_trains_on_videos(tmp_path, name):
    """Four frames are one video, with noise on all and in other orders."""
    (path,) = (path for path in TINY if path.stem == name)
    (recipe,) = read_configs(path)
    videos = WorldSequences(dataclasses.replace(recipe.prompts.world, max_objects=1), video=True)
    recipe = dataclasses.replace(
        recipe,
        workdir=str(tmp_path / "run"),
        base=dataclasses.replace(recipe.base, prompts=videos),
        prompts=videos,
        corrupt=(DiffusionNoise(500), Drop(), Shuffle(), Reverse()),
    )
    stages = table(after={"rollouts": lambda ctx: plausible(ctx.workdir.path)})
    (run,) = map(shrunk, runs_of(recipe))
    train.run_all((run,), [], stages)
    rows = [row for row in read_metrics(tmp_path / "run") if row["stage"] == "align"]
    assert rows
    assert np.isfinite([row["loss"] for row in rows]).all()
    assert {"pairs", "align", "report"} <= read_stages(tmp_path / "run").keys()
