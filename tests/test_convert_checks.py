"""What an export refuses: another base, another step than the last, adapters beside a model."""

import json

import jax
import pytest
from helpers_llava import CONFIG_V4, write_llava, write_run
from safetensors.numpy import load_file, save_file

import seva_jax
from seva_jax.config import fingerprint, read_config
from seva_jax.config.base_models import Checkpoint
from seva_jax.config.experiment import Experiment
from seva_jax.config.options import ComputeOptions
from seva_jax.config.prior_run import PriorRun, base_fingerprint
from seva_jax.convert import __main__ as command
from seva_jax.convert import load_params, read_llava_config
from seva_jax.convert.__main__ import open_source
from seva_jax.convert.load import read_headers
from seva_jax.convert.peft import to_peft
from seva_jax.convert.rewrite import to_hf
from seva_jax.run.weights import reference_params
from seva_jax.sharding import MeshShape
from seva_jax.training.checkpoint import checksum
from seva_jax.training.options import TrainOptions
from seva_jax.types import DataError


@pytest.fixture
def checkpoint(tmp_path):
    (tmp_path / "model").mkdir()
    return write_llava(tmp_path / "model")


# --- the base and the last checkpoint are those of the run


def record(directory, in_step=False, **compute):
    """Returns the fact that a run on a checkpoint records, see `fitting.checkpoint_facts`."""
    options = ComputeOptions(**compute)
    params = load_params(
        directory,
        read_llava_config(directory),
        options.param_dtype,
        base_weights=options.base_weights,
    )
    frozen = {name: x for name, x in params.items() if in_step or name != "projector"}
    return {"frozen weights": fingerprint(checksum({"params": frozen}))}


def put_another_model(directory):
    """Replaces one tensor of a checkpoint, as another fine-tuned model differs."""
    tensors = load_file(directory / "model.safetensors")
    name = next(n for n in tensors if n.endswith("layers.0.mlp.up_proj.weight"))
    save_file(tensors | {name: tensors[name] + 1}, directory / "model.safetensors")


@pytest.mark.parametrize(
    ("reference", "compute"),
    [
        ("cached", {}),
        ("in_step", {"param_dtype": "bfloat16"}),
        ("cached", {"base_weights": "nf4"}),
    ],
)
@pytest.mark.parametrize("export", [to_hf, to_peft])
def test_the_base_is_the_one_that_was_trained_on(checkpoint, tmp_path, reference, compute, export):
    if "base_weights" in compute:
        pytest.importorskip("qwix")
    write_run(
        tmp_path / "run",
        checkpoint,
        facts=record(checkpoint, reference == "in_step", **compute),
        compute=ComputeOptions(**compute),
        train=TrainOptions(trained=("lora", "projector"), reference=reference),
    )
    export(open_source(tmp_path / "run"), tmp_path / "out")
    put_another_model(checkpoint)
    with pytest.raises(DataError, match=r"other weights than when .*/run was trained") as said:
        export(open_source(tmp_path / "run"), tmp_path / "other")
    assert str(checkpoint) in str(said.value)
    assert "\n" not in str(said.value)
    # Quantisation may round differently elsewhere: only then is there another way.
    assert ("--same-base" in str(said.value)) == ("base_weights" in compute)
    export(open_source(tmp_path / "run", same_base=True), tmp_path / "trusted")


@pytest.mark.parametrize("merge", [False, True])
def test_the_base_of_the_first_of_several_runs(checkpoint, tmp_path, merge):
    """This also holds where a run continues the adapters of the run before it."""
    first, second = tmp_path / "first", tmp_path / "second"
    write_run(first, checkpoint, facts=record(checkpoint))
    (first / "stages.json").write_text('{"align": {"fingerprint": "a"}}')
    write_run(second, checkpoint, facts={"frozen weights": "x"}, base=PriorRun(str(first), merge))
    recorded = base_fingerprint(read_config(second / "config.py"))
    stages = {"base": {"fingerprint": recorded}, "align": {}}
    (second / "stages.json").write_text(json.dumps(stages))
    assert len(open_source(second).before) == merge
    (first / "stages.json").write_text('{"align": {"fingerprint": "b"}}')
    with pytest.raises(DataError, match=r"first has another result now than when .*/second"):
        open_source(second)
    (first / "stages.json").write_text('{"align": {"fingerprint": "a"}}')
    put_another_model(checkpoint)
    with pytest.raises(DataError, match=r"other weights than when .*/first was trained"):
        open_source(second)


def test_a_run_that_starts_from_another_one(checkpoint, tmp_path):
    """Its reference is the earlier run's model, not other weights with the same adapters."""
    write_run(tmp_path / "first", checkpoint, facts=record(checkpoint))
    (tmp_path / "first" / "stages.json").write_text('{"align": {"fingerprint": "a"}}')
    config = Experiment(base=PriorRun(str(tmp_path / "first")))
    model, mesh = read_llava_config(checkpoint), MeshShape().make(jax.devices()[:1])
    reference_params(config, model, mesh)
    put_another_model(checkpoint)
    with pytest.raises(DataError, match=r"other weights than when .*/first was trained"):
        reference_params(config, model, mesh)


def test_only_the_last_step_of_a_finished_run(checkpoint, tmp_path, capsys, monkeypatch):
    """An earlier one is exported only if asked for, and the refusal is one line."""
    write_run(tmp_path / "run", checkpoint, steps=(29, 360), facts={"steps": 360})
    to_hf(open_source(tmp_path / "run"), tmp_path / "out")
    saved = tmp_path / "run" / "checkpoints" / "align" / "360" / "state"
    data = max(saved.rglob("*"), key=lambda path: path.is_file() * path.stat().st_size)
    data.write_bytes(data.read_bytes()[:-1])
    capsys.readouterr()
    argv = ["convert", "to-hf", str(tmp_path / "run"), str(tmp_path / "x")]
    monkeypatch.setattr("sys.argv", argv)
    with pytest.raises(SystemExit) as said:
        command.main()
    message = str(said.value.code)
    assert "no intact checkpoint of step 360, the last one (360: " in message
    assert "--step 29" in message
    assert "\n" not in message
    assert not (tmp_path / "x").exists()
    monkeypatch.setattr("sys.argv", [*argv, "--step", "29"])
    command.main()
    assert (tmp_path / "x" / "model.safetensors").exists()
    assert "not used" not in capsys.readouterr().out
    with pytest.raises(DataError, match=r"no intact checkpoint of step 3 .*; it holds 29, 360"):
        open_source(tmp_path / "run", step=3)
    with pytest.raises(DataError, match="no intact checkpoint of step 360"):
        open_source(tmp_path / "run", step=360)
    with pytest.raises(DataError, match="has no step 3"):
        open_source(checkpoint, step=3)


def test_the_result_of_an_earlier_run_is_its_last_step_too(checkpoint, tmp_path):
    write_run(tmp_path / "first", checkpoint, steps=(3,), facts={"steps": 9})
    write_run(tmp_path / "second", checkpoint, base=PriorRun(str(tmp_path / "first")))
    (tmp_path / "first" / "stages.json").write_text('{"align": {"fingerprint": "a"}}')
    with pytest.raises(DataError, match=r"first/checkpoints/align has no intact .* step 9"):
        open_source(tmp_path / "second")


# --- adapters


def test_a_base_with_an_adapter_is_refused(checkpoint):
    """Transformers would apply it."""
    for name in ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"):
        (checkpoint / name).write_text("{}")
        for read in (
            read_llava_config,
            read_headers,
            open_source,
            seva_jax.from_pretrained,
            lambda path: Checkpoint(str(path)).assets(),
        ):
            with pytest.raises(DataError, match=rf"whole model and a LoRA adapter \({name}\)") as e:
                read(checkpoint)
            assert "--base.adapter DIR" in str(e.value)
        (checkpoint / name).unlink()


def test_an_adapter_alone_is_not_a_model(tmp_path):
    """Its pickles are no reason to recommend `from-bin`, which makes no model of them."""
    lora = tmp_path / "lora"  # what LLaVA's training with LoRA leaves
    lora.mkdir()
    for name in ("adapter_config.json", "adapter_model.bin", "non_lora_trainables.bin"):
        (lora / name).write_text("{}")
    for config in ("", json.dumps(CONFIG_V4)):
        if config:
            (lora / "config.json").write_text(config)
        with pytest.raises(DataError, match=r"holds a LoRA adapter .*, not a whole model") as said:
            read_llava_config(lora)
        assert f"--base.adapter {lora}" in str(said.value)
        assert "from-bin" not in str(said.value)


def test_pickles_of_a_projector_are_not_a_model(checkpoint):
    """`from-bin` would refuse them, so it is not recommended."""
    (checkpoint / "model.safetensors").unlink()
    (checkpoint / "mm_projector.bin").write_bytes(b"")
    with pytest.raises(DataError, match=r"none is pytorch_model.*the weights of a whole") as said:
        read_headers(checkpoint)
    assert "from-bin" not in str(said.value)


def test_an_adapter_names_a_base_that_opens(checkpoint, tmp_path, monkeypatch):
    """Also from a relative path, and at home: peft does not know `~`."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "run", "model")
    to_peft(open_source(tmp_path / "run"), tmp_path / "out")
    fields = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert fields["base_model_name_or_path"] == str(checkpoint)
