"""Exports of runs that started from a user's LoRA adapter, and the round trip of to-peft."""

import dataclasses

import jax
import numpy as np
import pytest
from helpers_adapters import (
    LANGUAGE,
    LAYERS,
    PROJECTOR,
    base_tensors,
    expected_tensors,
    wholes,
    write_adapter,
    write_base,
)
from helpers_llava import their_tensors, write_run
from safetensors.numpy import load_file
from tiny_models import TINY_HF

from seva_jax.config import Checkpoint, read_config, to_source
from seva_jax.convert import load_params, read_adapter, read_lora
from seva_jax.convert.__main__ import open_source
from seva_jax.convert.peft import to_peft
from seva_jax.convert.rewrite import to_hf, to_llava
from seva_jax.models import Llava, LoraConfig, abstract_variables
from seva_jax.sharding import MeshShape, placed, variable_shardings
from seva_jax.types import DataError

KERNELS = {"q_proj": "self_attn.q_proj", "o_proj": "self_attn.o_proj", "down_proj": "mlp.down_proj"}


@pytest.fixture
def base(tmp_path):
    """Writes a small Hugging Face directory with a processor."""
    return write_base(tmp_path / "base")


def run_on(tmp_path, base, merge, parts=("lora", "projector")):
    """Writes a finished run with adapters of rank 4 on a base with the adapter tmp_path/a."""
    trained = write_run(tmp_path / "run", base, parts=parts)
    file = tmp_path / "run" / "config.py"
    start = Checkpoint(str(base), adapter=str(tmp_path / "a"), merge=merge)
    file.write_text(to_source(dataclasses.replace(read_config(file), base=start)))
    return trained


def after_training(tensors, trained):
    """Returns tensors with the results of a run of `helpers_llava.write_run`: alpha / rank = 2."""
    tensors = dict(tensors)
    for target, module in KERNELS.items():
        a, b = (trained["lora"]["language"]["layers"][target][side] for side in "ab")
        for i in LAYERS:
            name = f"language_model.model.layers.{i}.{module}.weight"
            tensors[name] = tensors[name] + 2 * (a[i].astype("f8") @ b[i]).T
    for layer, values in trained.get("params", {}).get("projector", {}).items():
        tensors[f"multi_modal_projector.{layer}.weight"] = values["kernel"].T
        tensors[f"multi_modal_projector.{layer}.bias"] = values["bias"]
    return tensors


def assert_close(directory, expected, config=TINY_HF, tower=None):
    found = their_tensors(jax.tree.map(np.asarray, load_params(directory, config, tower=tower)))
    for name, values in found.items():
        np.testing.assert_allclose(values, expected[name], rtol=0, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("parts", [("lora", "projector"), ("lora",)])
def test_an_export_merges_both(base, tmp_path, parts):
    """The exported model is base, adapter and training, in both layouts."""
    pairs = write_adapter(tmp_path / "a", (*LANGUAGE, "language_model.lm_head"), whole=PROJECTOR)
    trained = run_on(tmp_path, base, merge=True, parts=parts)
    expected = expected_tensors(pairs, lambda _: 3 / 2, PROJECTOR)
    to_hf(open_source(tmp_path / "run"), tmp_path / "out")
    assert_close(tmp_path / "out", after_training(expected, trained))
    to_llava(open_source(tmp_path / "run"), tmp_path / "llava")
    assert_close(
        tmp_path / "llava", after_training(expected, trained),
        tower=tmp_path / "llava" / "vision_tower",
    )  # fmt: skip
    with pytest.raises(DataError, match=r"with .*/a merged, not a checkpoint that peft could load"):
        to_peft(open_source(tmp_path / "run"), tmp_path / "peft")


def test_an_export_of_an_adapter_trained_further(base, tmp_path):
    """Its first values are part of what was trained; what it stores whole stays."""
    write_adapter(
        tmp_path / "a", ranks=lambda m: 4, r=4, lora_alpha=8,
        whole=PROJECTOR, modules_to_save=["multi_modal_projector"],
    )  # fmt: skip
    trained = run_on(tmp_path, base, merge=False, parts=("lora",))
    expected = after_training(base_tensors() | wholes(PROJECTOR), trained)
    to_hf(open_source(tmp_path / "run"), tmp_path / "out")
    assert_close(tmp_path / "out", expected)
    # As an adapter, it holds the projector, and is another start like the first one.
    to_peft(open_source(tmp_path / "run"), tmp_path / "peft")
    adapter = read_adapter(tmp_path / "peft", TINY_HF)
    assert adapter.whole.keys() == set(PROJECTOR)
    found = their_tensors(jax.tree.map(np.asarray, load_params(base, TINY_HF, adapter=adapter)))
    for name, values in found.items():
        np.testing.assert_allclose(values, expected[name], rtol=0, atol=1e-5, err_msg=name)


def test_the_round_trip_is_exact(base, tmp_path):
    """What to-peft writes is read as the same config and the same bits."""
    trained = write_run(tmp_path / "run", base)
    to_peft(open_source(tmp_path / "run"), tmp_path / "peft")
    start = Checkpoint(str(base), adapter=str(tmp_path / "peft"), merge=False)
    lora = start.lora(LoraConfig())
    assert lora == read_config(tmp_path / "run" / "config.py").lora
    boxed = abstract_variables(Llava(TINY_HF, lora=lora))["lora"]
    like = placed(boxed, variable_shardings(MeshShape().make(), boxed))
    adapter = start.open_adapter(TINY_HF)
    jax.tree.map(np.testing.assert_array_equal, read_lora(adapter, like), trained["lora"])
    params = load_params(base, TINY_HF, adapter=adapter.without_low_rank())
    jax.tree.map(np.testing.assert_array_equal, params["projector"], trained["params"]["projector"])


def test_the_round_trip_of_patterns(base, tmp_path):
    """A run whose targets have ranks and alphas of their own is written and read as such."""
    write_adapter(
        tmp_path / "a", ranks=lambda m: 3 if "o_proj" in m else 4, r=4, lora_alpha=8,
        rank_pattern={"o_proj": 3}, alpha_pattern={"down_proj": 2.5},
    )  # fmt: skip
    start = Checkpoint(str(base), adapter=str(tmp_path / "a"), merge=False)
    lora = start.lora(LoraConfig())
    tensors = load_file(tmp_path / "a" / "adapter_model.safetensors")
    boxed = abstract_variables(Llava(TINY_HF, lora=lora))["lora"]
    like = placed(boxed, variable_shardings(MeshShape().make(), boxed))
    values = {
        f"lora/language/layers/{target}/{side}": np.asarray(leaf)
        for target, sides in read_lora(start.open_adapter(TINY_HF), like)["language"][
            "layers"
        ].items()
        for side, leaf in sides.items()
    }
    source = dataclasses.replace(
        open_source(base),
        lora=lora,
        trained={name: leaf.shape for name, leaf in values.items()},
        read=lambda names: [values[name] for name in names],
    )
    to_peft(source, tmp_path / "out")
    written = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert written.keys() == tensors.keys()
    for name, leaf in written.items():
        np.testing.assert_array_equal(leaf, tensors[name])
    again = dataclasses.replace(start, adapter=str(tmp_path / "out"))
    assert again.lora(LoraConfig()) == lora
    to_hf(source, tmp_path / "merged")  # its scales are those of the patterns
    expected = their_tensors(
        jax.tree.map(
            np.asarray,
            load_params(base, TINY_HF, adapter=read_adapter(tmp_path / "a", TINY_HF)),
        )
    )
    assert_close(tmp_path / "merged", expected)
