"""Runs that start from a user's LoRA adapter: the reference, resuming, evaluation, exports."""

import contextlib
import dataclasses
import json
import shutil
from pathlib import Path

import helpers_run
import jax
import numpy as np
import pytest
from helpers_devices import limited_devices
from helpers_train import opened, table
from safetensors.numpy import load_file, save_file

from seva_jax import evaluate, train
from seva_jax.config import Checkpoint, PriorRun, read_config
from seva_jax.convert import load_params
from seva_jax.convert.__main__ import open_source
from seva_jax.convert.peft import to_peft
from seva_jax.convert.rewrite import to_hf
from seva_jax.inference.answer_logps import answer_logps
from seva_jax.models import LoraConfig
from seva_jax.run.stage import Stage
from seva_jax.runtime.run_records import read_metrics
from seva_jax.types import DataError
from seva_jax.worlds import WorldPairs

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_device")]


@pytest.fixture(scope="module")
def one_device():
    """Limits runs to one device; the process joins no others."""
    with limited_devices(1), pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate, "joined", lambda options: contextlib.nullcontext())
        yield


def experiment(workdir, **fields):
    """Returns a config with sixteen pairs, all of them in each of four steps."""
    e = helpers_run.get_config()
    small = dataclasses.replace
    sizes = small(e.train, batch_size=16, max_steps=4, log_every=1, save_every=1, epochs=4)
    suite = small(e.evals[0], prompts=small(e.evals[0].prompts, num=20))
    run = small(
        e,
        workdir=str(workdir),
        prompts=WorldPairs(kinds=("color",), num=16),
        optim=small(e.optim, lr=3e-3, warmup_ratio=0.0),
        train=small(sizes, trained=("lora", "projector")),
        evals=(suite,),
    )
    return small(run, **fields)


@pytest.fixture(scope="module")
def first(tmp_path_factory, one_device):
    """Trains a model and adapters; returns the run, a checkpoint of the base, and the adapter."""
    folder = tmp_path_factory.mktemp("first")
    run = train.run(experiment(folder / "run"))
    to_hf(open_source(folder / "run"), folder / "aligned")
    to_peft(open_source(folder / "run"), folder / "adapter")
    return run, folder / "run" / "base-hf", folder / "adapter"


def on_adapter(workdir, first, merge, adapter=None, reference="cached", **fields):
    """Returns a config of a run that starts from the adapter; its own lora is another one."""
    _, base, own = first
    start = Checkpoint(str(base), pad_to_square=None, adapter=str(adapter or own), merge=merge)
    e = experiment(workdir, base=start, lora=LoraConfig(rank=4), **fields)
    return dataclasses.replace(e, train=dataclasses.replace(e.train, reference=reference))


def logps(out, variables):
    """Returns the log-probs of all answers under some variables, joined."""
    ctx = out.ctx
    found = answer_logps(
        ctx.model_of(variables), variables, out.training_rows, ctx.pass_layout, ctx.step_options,
        lambda num: None,
    )  # fmt: skip
    return np.concatenate([x for branches in found for x in branches])


def aligned_rows(workdir):
    return [row for row in read_metrics(Path(workdir)) if row["stage"] == "align"]


@pytest.mark.parametrize("reference", ["cached", "in_step"])
@pytest.mark.parametrize("merge", [True, False])
def test_the_reference_is_the_model_with_the_adapter(first, tmp_path, merge, reference):
    """The first loss is log 2 with margins of 0, and log-probs are those of the first run's end.

    So it is in TRL, whose reference is a frozen copy of the adapter (trainer/dpo_trainer.py,
    `model.add_adapter("ref", ...)`).
    """
    config = on_adapter(tmp_path / "run", first, merge, reference=reference)
    run = train.run(config)
    begun, *_, last = aligned_rows(tmp_path / "run")
    assert begun["loss"] == pytest.approx(np.log(2), abs=1e-6)
    assert begun["rewards/margins"] == pytest.approx(0, abs=1e-5)
    assert abs(last["rewards/margins"]) > 1e-3
    expected = logps(first[0], first[0].aligned)
    bare = logps(first[0], {"params": first[0].base})
    assert np.abs(expected - bare).max() > 1e-2
    for variables in (run.reference, run.start):
        np.testing.assert_allclose(logps(run, variables), expected, rtol=0, atol=1e-4)
    if reference == "cached":
        kept = np.concatenate([x for row in run.training_rows.reference for x in row])
        np.testing.assert_allclose(kept, expected, rtol=0, atol=1e-4)
    assert run.ctx.config.lora == (LoraConfig(rank=4) if merge else first[0].ctx.config.lora)
    assert ("lora" in run.start) == (not merge)
    page = (tmp_path / "run" / "report.html").read_text("utf-8")
    assert "with the adapter" in page
    # What the step computes of the reference is what was computed before training.
    other = "in_step" if reference == "cached" else "cached"
    train.run(on_adapter(tmp_path / "other", first, merge, reference=other))
    # Adam divides by the size of a gradient, so what is rounded otherwise grows from step to step.
    for a, b in zip(*map(aligned_rows, (tmp_path / "run", tmp_path / "other")), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=1e-4)


@pytest.fixture(scope="module", params=[True, False], ids=["merged", "trained further"])
def second(request, first, tmp_path_factory):
    """Returns a finished run on a copy of the adapter, and the copy."""
    folder = tmp_path_factory.mktemp("second")
    shutil.copytree(first[2], folder / "adapter")
    config = on_adapter(folder / "run", first, request.param, folder / "adapter")
    return train.run(config), folder / "adapter"


def test_it_starts_again_and_is_evaluated(second, tmp_path, capsys):
    """The same command skips all stages; both models can be asked."""
    run, _ = second
    path = run.ctx.workdir.path
    train.run(read_config(path / "config.py"))
    assert capsys.readouterr().out.count("done before") == len(run.ctx.workdir.stages())
    evaluate.main(["--model", str(path), "--out", str(tmp_path / "out")])
    evaluate.main(["--config", str(path / "config.py"), "--out", str(tmp_path / "out")])
    shown = capsys.readouterr().out
    assert "aligned: 20 questions" in shown
    assert "base: 20 questions" in shown

    def scores(folder):
        return [json.loads(p.read_text()) for p in sorted((folder / "evals").glob("*/*.json"))]

    assert scores(tmp_path / "out") == scores(path)
    assert len(scores(path)) == 2


def test_its_export_is_its_model(second, tmp_path):
    """to-hf holds base, adapter and training."""
    run, _ = second
    path = run.ctx.workdir.path
    to_hf(open_source(path), tmp_path / "hf")
    alone = load_params(tmp_path / "hf", run.ctx.assets.config)
    np.testing.assert_allclose(
        logps(run, {"params": alone}), logps(run, run.aligned), rtol=0, atol=1e-4
    )
    assert np.abs(logps(run, run.aligned) - logps(run, run.start)).max() > 1e-3


def test_the_next_run(second, tmp_path):
    """A run that starts from its result starts from its model, merged or trained further."""
    run, _ = second
    path, expected = str(run.ctx.workdir.path), logps(run, run.aligned)
    for merge in (True, False):
        config = dataclasses.replace(
            run.ctx.config, base=PriorRun(path, merge), workdir=str(tmp_path / f"{merge}")
        )
        following = train.run(config)
        np.testing.assert_allclose(logps(following, following.start), expected, rtol=0, atol=1e-4)
        reference = run.aligned if merge else run.reference
        np.testing.assert_allclose(
            logps(following, following.reference), logps(run, reference), rtol=0, atol=1e-4
        )
        assert following.ctx.config.lora == run.ctx.config.lora


def test_another_adapter_at_the_path(second):
    """It is refused as another base is, when the result is asked for."""
    run, adapter = second
    path = run.ctx.workdir.path
    tensors = load_file(adapter / "adapter_model.safetensors")
    name = next(name for name in tensors if "lora_B" in name)
    tensors[name] = tensors[name] + np.float32(1e-3)
    save_file(tensors, adapter / "adapter_model.safetensors")
    with pytest.raises(DataError, match="align/4 is of another run"):
        _ = opened(read_config(path / "config.py")).aligned
    evaluating = ["--model", str(path), "--out", str(path.parent / "out")]
    merge = run.ctx.config.base.merge
    expected = f"{adapter} holds other weights" if merge else f"{adapter} holds another adapter"
    with pytest.raises((DataError, SystemExit), match=f"{expected} than when {path}"):
        evaluate.main(evaluating)
    # A run that starts from the result needs the adapter where it is in the reference, and an
    # export only where it is merged.
    base = PriorRun(str(path), merge=False)
    config = dataclasses.replace(run.ctx.config, base=base, workdir=str(path.parent / "next"))
    with pytest.raises(DataError, match=f"{expected} than when {path}"):
        _ = opened(config).reference
    if merge:
        with pytest.raises(DataError, match=expected):
            open_source(path)
    else:
        to_hf(open_source(path), path.parent / "hf")
        alone = load_params(path.parent / "hf", run.ctx.assets.config)
        np.testing.assert_allclose(
            logps(run, {"params": alone}), logps(run, run.aligned), rtol=0, atol=1e-4
        )


@pytest.mark.parametrize("reference", ["cached", "in_step"])
@pytest.mark.parametrize("merge", [True, False])
def test_another_adapter_in_the_middle(first, tmp_path, merge, reference):
    """A run that was stopped does not continue on another adapter."""
    shutil.copytree(first[2], tmp_path / "adapter")
    config = on_adapter(tmp_path / "run", first, merge, tmp_path / "adapter", reference)

    class Stop(Exception):
        pass

    def stop(ctx):
        raise Stop

    with pytest.raises(Stop):
        train.run(config, table=table(before={"report": stop, "evaluate base": stop}))
    file = tmp_path / "run" / "stages.json"
    stages = json.loads(file.read_text())
    del stages["align"]
    file.write_text(json.dumps(stages))
    tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    name = next(name for name in tensors if "lora_B" in name)
    tensors[name] = tensors[name] + np.float32(1e-3)
    save_file(tensors, tmp_path / "adapter" / "adapter_model.safetensors")
    expected = "belongs to other pairs, weights" if reference == "cached" else "of another run: "
    with pytest.raises(DataError, match=expected):
        train.run(config)


def test_another_rank_at_the_path(first, tmp_path):
    """The adapters of a run that trains an adapter further are part of its config."""
    shutil.copytree(first[2], tmp_path / "adapter")
    config = on_adapter(tmp_path / "run", first, False, tmp_path / "adapter")
    workdir = opened(config).ctx.workdir
    workdir.run_stage(Stage("pairs", "same", lambda: "built"))
    workdir.close()
    file = tmp_path / "adapter" / "adapter_config.json"
    fields = json.loads(file.read_text())
    file.write_text(json.dumps(fields | {"lora_alpha": 1.5 * fields["lora_alpha"]}))
    with pytest.raises(DataError, match=r"another config:\s+lora.alpha: "):
        opened(config)


def test_adapters_on_tower_and_connector(tmp_path):
    """The reference is the base, training changes them, and exports and further runs have them."""
    small = dataclasses.replace
    lora = LoraConfig(rank=2, vision=True, connector=True)
    config = experiment(tmp_path / "run", lora=lora)
    model = config.base.model  # of a tower of one layer, none is run
    model = small(model, vision=small(model.vision, num_layers=2))
    base = small(config.base, model=model)
    config = small(config, base=base, train=small(config.train, trained=("lora",)))
    run = train.run(config)
    begun, *_, last = aligned_rows(tmp_path / "run")
    assert begun["loss"] == pytest.approx(np.log(2), abs=1e-6)
    assert abs(last["rewards/margins"]) > 1e-3
    kept = np.concatenate([x for row in run.training_rows.reference for x in row])
    np.testing.assert_allclose(kept, logps(run, {"params": run.base}), rtol=0, atol=1e-4)
    for part in ("vision", "projector"):
        assert all(np.asarray(x).any() for x in jax.tree.leaves(run.aligned["lora"][part]))
    expected = logps(run, run.aligned)
    to_hf(open_source(tmp_path / "run"), tmp_path / "hf")
    alone = load_params(tmp_path / "hf", run.ctx.assets.config)
    np.testing.assert_allclose(logps(run, {"params": alone}), expected, rtol=0, atol=1e-4)

    to_peft(open_source(tmp_path / "run"), tmp_path / "peft")
    base = tmp_path / "run" / "base-hf"
    start = Checkpoint(str(base), pad_to_square=None, adapter=str(tmp_path / "peft"), merge=False)
    # Features of the base's tower would be wrong, whatever the run's own config says of adapters.
    cached = small(config.train, feature_cache=str(tmp_path / "features"))
    plain = small(config, base=start, workdir=str(tmp_path / "no"), lora=LoraConfig(rank=4))
    with pytest.raises(DataError, match="feature_cache needs a vision tower that does not change"):
        train.run(small(plain, train=cached))
    merged = small(
        config, base=PriorRun(str(tmp_path / "run"), True), workdir=str(tmp_path / "second")
    )
    second = train.run(merged)
    np.testing.assert_allclose(logps(second, second.start), expected, rtol=0, atol=1e-4)
    kept = np.concatenate([x for row in second.training_rows.reference for x in row])
    np.testing.assert_allclose(kept, expected, rtol=0, atol=1e-4)
