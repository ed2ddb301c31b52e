"""LoRA adapters that users bring: merged into the base, trained further, or refused by name."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers_adapters import (
    LANGUAGE,
    LAYERS,
    PROJECTOR,
    SPELLINGS,
    base_tensors,
    expected_tensors,
    pair,
    spelled,
    wholes,
    write_adapter,
    write_base,
)
from helpers_llava import their_tensors, write_llava, write_original
from safetensors.numpy import load_file, save_file
from tiny_models import TINY_HF

import seva_jax
from seva_jax.batches.trees import RowShape
from seva_jax.config import Checkpoint, config_directory, read_config
from seva_jax.convert import load_params, lora_of, read_adapter, read_lora
from seva_jax.models import Llava, LoraConfig, abstract_stored, abstract_variables
from seva_jax.plan.options import PlanOptions, variants
from seva_jax.plan.program import lower_step
from seva_jax.sharding import MeshShape, placed, variable_shardings
from seva_jax.types import DataError


@pytest.fixture
def base(tmp_path):
    """Writes a small Hugging Face directory with a processor."""
    return write_base(tmp_path / "base")


def merged(base, adapter, **options):
    """Returns the tensors of a base with an adapter merged into it, in the names of the table."""
    params = load_params(base, TINY_HF, adapter=read_adapter(adapter, TINY_HF), **options)
    return their_tensors(jax.tree.map(np.asarray, params))


def assert_merged(found, pairs, scales=lambda module: 3 / 2, whole=()):
    """Compares tensors with W + scale * B A: those not adapted must be equal bit for bit."""
    expected = expected_tensors(pairs, scales, whole)
    adapted = {f"{module}.weight" for module in pairs}
    for name, values in found.items():
        if name in adapted:
            assert np.abs(values - base_tensors()[name]).max() > 1e-2, f"{name} is unchanged"
            np.testing.assert_allclose(values, expected[name], rtol=0, atol=1e-5, err_msg=name)
        else:
            np.testing.assert_array_equal(values, expected[name], err_msg=name)


@pytest.mark.parametrize("where", SPELLINGS)
def test_names_of_every_version(base, tmp_path, where):
    """Adapters fit a base in whatever version of transformers or LLaVA they were trained."""
    modules = (
        *LANGUAGE, "language_model.lm_head", "multi_modal_projector.linear_1",
        "vision_tower.encoder.layers.0.self_attn.q_proj", "vision_tower.encoder.layers.1.mlp.fc2",
    )  # fmt: skip
    pairs = write_adapter(tmp_path / "a", modules, where)
    assert_merged(merged(base, tmp_path / "a"), pairs)


@pytest.mark.parametrize(("prefix", "middle"), [("", ""), ("base_model.model.", ".default")])
def test_names_of_other_writers(base, tmp_path, prefix, middle):
    """Without peft's prefix, or with the adapter's name, as in a dump of a state dict."""
    pairs = write_adapter(tmp_path / "a", prefix=prefix, middle=middle)
    assert_merged(merged(base, tmp_path / "a"), pairs)


# The fields of adapter_config.json, a module's rank, and its scale by peft's rule
# (tuners/lora/layer.py, update_layer: alpha / r, and alpha / sqrt(r) with use_rslora; patterns as
# in utils/other.py, get_pattern_key: the first that fits the end of the module's name).
SCALED = {
    "rsLoRA": ({"use_rslora": True}, lambda m: 2, lambda m: 3 / math.sqrt(2)),
    "ranks and alphas of a projection": (
        {"rank_pattern": {"q_proj": 4}, "alpha_pattern": {"mlp.down_proj": 5}},
        lambda m: 4 if "q_proj" in m else 2,
        lambda m: {"q_proj": 3 / 4, "o_proj": 3 / 2, "down_proj": 5 / 2}[m.rpartition(".")[2]],
    ),
    "of a layer, as a regular expression": (
        {"rank_pattern": {r"layers\.0\..*_proj": 1, "q_proj": 3}, "use_rslora": True},
        lambda m: 1 if "layers.0" in m else 3 if "q_proj" in m else 2,
        lambda m: 3 / math.sqrt(1 if "layers.0" in m else 3 if "q_proj" in m else 2),
    ),
    "the whole name": (
        {"alpha_pattern": {"^model.language_model.layers.1.self_attn.q_proj": 6}},
        lambda m: 2,
        lambda m: 3 if "layers.1.self_attn.q_proj" in m else 3 / 2,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", SCALED)
def test_scales(base, tmp_path, case):
    fields, ranks, scales = SCALED[case]
    pairs = write_adapter(tmp_path / "a", ranks=ranks, **fields)
    assert_merged(merged(base, tmp_path / "a"), pairs, scales)


def test_what_is_stored_whole(base, tmp_path):
    """A projector, a head and an embedding of modules_to_save replace the base's, bit for bit."""
    names = (
        *PROJECTOR,
        "language_model.lm_head.weight",
        "language_model.model.embed_tokens.weight",
    )
    saved = ["multi_modal_projector", "lm_head", "embed_tokens"]
    pairs = write_adapter(tmp_path / "a", whole=names, modules_to_save=saved)
    assert_merged(merged(base, tmp_path / "a"), pairs, whole=names)


def test_an_adapted_embedding(base, tmp_path):
    """Peft stores the embedding itself beside its adapter; the change is scale * (B A)^T."""
    name = "language_model.model.embed_tokens"
    more = {"base_model.model.model.language_model.embed_tokens.base_layer.weight": wholes(
        [f"{name}.weight"])[f"{name}.weight"]}  # fmt: skip
    pairs = write_adapter(tmp_path / "a", (*LANGUAGE, name), more=more)
    assert_merged(merged(base, tmp_path / "a"), pairs, whole=[f"{name}.weight"])


def test_only_some_layers(base, tmp_path):
    """layers_to_transform needs nothing: what is not in the file is not changed."""
    modules = [m for m in LANGUAGE if ".layers.1." in m]
    pairs = write_adapter(tmp_path / "a", modules, layers_to_transform=[1], layers_pattern="layers")
    assert_merged(merged(base, tmp_path / "a"), pairs)


def test_a_layer_above_the_features(base, tmp_path):
    """The last layer of the tower, which the model does not use, may have an adapter."""
    extra = "vision_tower.encoder.layers.2.self_attn.q_proj"
    a, b = np.ones((2, 16), np.float32), np.ones((16, 2), np.float32)
    name = f"base_model.model.{spelled(extra, 'transformers 5')}"
    more = {f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b}
    pairs = write_adapter(tmp_path / "a", more=more)
    assert_merged(merged(base, tmp_path / "a"), pairs)


def test_sums_are_rounded_once(base, tmp_path):
    """In bfloat16 each weight is the nearest to base + change in float32."""
    pairs = write_adapter(tmp_path / "a")
    found = merged(base, tmp_path / "a", dtype="bfloat16")
    expected = expected_tensors(pairs, lambda _: 3 / 2)
    for name, values in found.items():
        nearest = expected[name].astype(np.float32).astype(jnp.bfloat16)
        assert np.mean(values != nearest) < 5e-3, name  # a sum may be rounded the other way


def test_an_adapter_in_bfloat16(base, tmp_path):
    """The adapter's dtype may be another one than the base's."""
    pairs = write_adapter(tmp_path / "a")
    file = tmp_path / "a" / "adapter_model.safetensors"
    save_file({n: x.astype(jnp.bfloat16) for n, x in load_file(file).items()}, file)
    rounded = {
        m: tuple(np.asarray(x, jnp.bfloat16).astype("f4") for x in p) for m, p in pairs.items()
    }
    assert_merged(merged(base, tmp_path / "a"), rounded)


@pytest.mark.parametrize("mesh", [(1, 8, 1), (2, 2, 2)], ids=str)
def test_on_a_mesh(base, tmp_path, mesh):
    """Every device reads its slices of weights and adapters; values are those of one device."""
    write_adapter(
        tmp_path / "a", (*LANGUAGE, "multi_modal_projector.linear_2"), whole=PROJECTOR[:1]
    )
    adapter = read_adapter(tmp_path / "a", TINY_HF)
    devices = MeshShape(*mesh).make()
    boxed = abstract_variables(Llava(TINY_HF, lora=LoraConfig(2, 3.0, ("q_proj", "down_proj"))))
    shardings = variable_shardings(devices, abstract_stored(boxed["params"], "float", "float32"))
    alone = load_params(base, TINY_HF, adapter=adapter)
    found = load_params(base, TINY_HF, "float32", shardings, adapter=adapter)
    for a, b, sharding in zip(*map(jax.tree.leaves, (found, alone, shardings)), strict=True):
        assert a.sharding.is_equivalent_to(sharding, a.ndim)
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)
    like = placed(boxed["lora"], variable_shardings(devices, boxed["lora"]))
    lora = read_lora(adapter, like)
    for target, module in (("q_proj", "self_attn.q_proj"), ("down_proj", "mlp.down_proj")):
        both = [pair(f"language_model.model.layers.{i}.{module}", 2) for i in LAYERS]
        for number, side in enumerate("ab"):
            values = lora["language"]["layers"][target][side]
            wanted = like["language"]["layers"][target][side].sharding
            assert values.sharding.is_equivalent_to(wanted, 3)
            np.testing.assert_array_equal(values, np.stack([p[number].T for p in both]))


def test_a_quantised_base(base, tmp_path):
    """Kernels are quantised with the adapter in them."""
    pytest.importorskip("qwix")
    write_adapter(tmp_path / "a")
    adapter = read_adapter(tmp_path / "a", TINY_HF)
    (tmp_path / "merged").mkdir()
    params = load_params(base, TINY_HF, adapter=adapter)
    write_llava(tmp_path / "merged", jax.tree.map(np.asarray, params))
    found = load_params(base, TINY_HF, base_weights="int8", adapter=adapter)
    expected = load_params(tmp_path / "merged", TINY_HF, base_weights="int8")
    for a, b in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_llava_s_own_directory(tmp_path):
    """adapter_model and non_lora_trainables, on a base in the original layout."""
    base = write_original(tmp_path / "base")
    pairs = write_adapter(tmp_path / "a", where="LLaVA")
    projector = {
        f"base_model.model.{spelled(name, 'LLaVA')}": values
        for name, values in wholes(PROJECTOR).items()
    }
    assert "base_model.model.model.mm_projector.0.weight" in projector  # as LLaVA's train.py has it
    save_file(projector, tmp_path / "a" / "non_lora_trainables.safetensors")
    (tmp_path / "a" / "config.json").write_text(json.dumps({"mm_hidden_size": 16}))
    expected = expected_tensors(pairs, lambda _: 3 / 2, PROJECTOR)
    model = seva_jax.from_pretrained(base, adapter=tmp_path / "a")
    language = dict(model.params["language"])
    layers = [language.pop(f"layers_{i}") for i in LAYERS]
    language["layers"] = jax.tree.map(lambda *parts: np.stack(parts), *layers)
    found = their_tensors(jax.tree.map(np.asarray, model.params | {"language": language}))
    for name, values in found.items():
        np.testing.assert_allclose(values, expected[name], rtol=0, atol=1e-5, err_msg=name)
    # The same files fit the Hugging Face layout of the same model.
    (tmp_path / "hf").mkdir()
    again = seva_jax.from_pretrained(write_llava(tmp_path / "hf"), adapter=tmp_path / "a")
    jax.tree.map(np.testing.assert_array_equal, again.params, model.params)


# --- what is refused ------------------------------------------------------------------------------

REFUSED = {
    "use_dora is True": {"use_dora": True},
    "peft_type is 'IA3', and only LORA": {"peft_type": "IA3"},
    "peft_type is 'PREFIX_TUNING'": {"peft_type": "PREFIX_TUNING"},
    "peft_type is 'ADALORA'": {"peft_type": "ADALORA"},
    "bias is 'all', supported: 'none'": {"bias": "all"},
    "fan_in_fan_out is True": {"fan_in_fan_out": True},
    "lora_bias is True": {"lora_bias": True},
    "layer_replication is ": {"layer_replication": [[0, 1], [0, 1]]},
    "init_lora_weights is 'pissa', which changes the base": {"init_lora_weights": "pissa"},
    "trainable_token_indices is": {"trainable_token_indices": [3]},
    "use_a_later_kind is": {"use_a_later_kind": {"some": 1}},
    "lora_alpha is 0": {"lora_alpha": 0},
    "r is 2.0": {"r": 2.0},
    r"rank_pattern has '\('": {"rank_pattern": {"(": 2}},
    "'k_proj' of rank_pattern or alpha_pattern matches no": {"alpha_pattern": {"k_proj": 2}},
    r"misshapen: .*q_proj.lora_A.weight \[2, 16\] .* expected \[4, 16\]": {"r": 4},
    "missing: lora_A and lora_B of .*layers.0.self_attn.k_proj": {
        "target_modules": ["q_proj", "k_proj", "o_proj", "down_proj"]
    },
    "missing: embed_tokens, which modules_to_save": {"modules_to_save": ["embed_tokens"]},
}  # fmt: skip


@pytest.mark.parametrize("message", REFUSED)
def test_kinds_that_are_refused(tmp_path, message):
    write_adapter(tmp_path / "a", **REFUSED[message])
    with pytest.raises(DataError, match=message):
        read_adapter(tmp_path / "a", TINY_HF)


Q = "base_model.model.model.language_model.layers.0.self_attn.q_proj"
ONES = np.ones((2, 16), np.float32)
TENSORS = {
    r"unexpected: .*lora_magnitude_vector": {f"{Q}.lora_magnitude_vector": ONES[0]},
    r"unexpected: .*layers\.7\.": {f"{Q.replace('.0.', '.7.')}.lora_A.weight": ONES},
    r"unexpected: base_model.model.layers.0.*mlp.up_proj.lora_A": {
        "base_model.model.layers.0.mlp.up_proj.lora_A.weight": ONES  # of a model without its head
    },
    r"unexpected: .*token_adapter": {"base_model.model.model.token_adapter.x": ONES},
    "missing: lora_B that belongs to .*k_proj.lora_A": {
        f"{Q.replace('q_proj', 'k_proj')}.lora_A.weight": ONES
    },
    "is the same tensor as": {f"{Q}.lora_A.default.weight": ONES},
    "not a linear layer: .*patch_embedding": {
        "base_model.model.model.vision_tower.embeddings.patch_embedding.lora_A.weight": ONES
    },
    r"dtype: .*mlp.up_proj.lora_A.* is I32": {
        f"{Q.replace('self_attn.q', 'mlp.up')}.lora_A.weight": ONES.astype(np.int32)
    },
    r"misshapen: .*lm_head.weight \[41, 16\]": {
        "base_model.model.lm_head.weight": np.ones((41, 16), np.float32)
    },
}


@pytest.mark.parametrize("message", TENSORS)
def test_every_tensor_is_used(tmp_path, message):
    write_adapter(tmp_path / "a", more=TENSORS[message])
    with pytest.raises(DataError, match=message):
        read_adapter(tmp_path / "a", TINY_HF)


def test_a_tied_head(tmp_path):
    """Where the head is the embedding, one cannot be changed without the other."""
    tied = dataclasses.replace(TINY_HF, text=dataclasses.replace(TINY_HF.text, tied_head=True))
    write_adapter(tmp_path / "a", whole=["language_model.model.embed_tokens.weight"])
    with pytest.raises(DataError, match="tie_word_embeddings"):
        read_adapter(tmp_path / "a", tied)


def test_files_that_are_missing_or_pickles(base, tmp_path):
    write_adapter(tmp_path / "a")
    adapter = tmp_path / "a"
    (adapter / "non_lora_trainables.bin").write_bytes(b"pickle")
    with pytest.raises(DataError, match=r"pickles \(non_lora_trainables.bin\).*from-bin .*/a OUT"):
        read_adapter(adapter, TINY_HF)
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    with pytest.raises(DataError, match=r"\(adapter_model.bin, non_lora_trainables.bin\)"):
        read_adapter(adapter, TINY_HF)
    (adapter / "adapter_model.bin").unlink()
    (adapter / "non_lora_trainables.bin").unlink()
    with pytest.raises(DataError, match=r"holds no adapter_model\.safetensors: fetch"):
        read_adapter(adapter, TINY_HF)
    with pytest.raises(DataError, match=r"'/no/where' holds no adapter_config\.json"):
        read_adapter("/no/where", TINY_HF)
    write_adapter(tmp_path / "b")
    (tmp_path / "b" / "config.json").write_text((base / "config.json").read_text())
    with pytest.raises(DataError, match=r"holds a LoRA adapter .*--base\.adapter"):
        load_params(tmp_path / "b", TINY_HF)


# --- trained further ------------------------------------------------------------------------------


def test_its_rank_alpha_and_targets(tmp_path):
    write_adapter(
        tmp_path / "a",
        ranks=lambda m: 4 if "q_proj" in m else 2,
        use_rslora=True,
        rank_pattern={"q_proj": 4},
        alpha_pattern={"down_proj": 5},
    )
    lora = lora_of(read_adapter(tmp_path / "a", TINY_HF), TINY_HF)
    assert lora.targets == ("q_proj", "o_proj", "down_proj")
    assert [lora.of(t).rank for t in lora.targets] == [4, 2, 2]
    expected = [3 / math.sqrt(4), 3 / math.sqrt(2), 5 / math.sqrt(2)]
    np.testing.assert_allclose([lora.of(t).scale for t in lora.targets], expected, rtol=1e-12)
    write_adapter(tmp_path / "plain")
    plain = lora_of(read_adapter(tmp_path / "plain", TINY_HF), TINY_HF)
    assert plain == LoraConfig(2, 3, ("q_proj", "o_proj", "down_proj"), dropout=0.05)


FURTHER = {
    "multi_modal_projector.linear_1.weight is changed": {
        "modules": (*LANGUAGE, "multi_modal_projector.linear_1")
    },
    "q_proj of 1 of 2 layers": {
        "modules": [m for m in LANGUAGE if m != LANGUAGE[0]], "target_modules": ".*",
    },
    "q_proj has ranks or alphas that differ": {"alpha_pattern": {"layers.0.self_attn.q_proj": 9}},
}  # fmt: skip


@pytest.mark.parametrize("message", FURTHER)
def test_what_cannot_be_trained_further(base, tmp_path, message):
    write_adapter(tmp_path / "a", **FURTHER[message])
    with pytest.raises(DataError, match=rf"base.merge True.*(?s:.*){message}"):
        Checkpoint(str(base), adapter=str(tmp_path / "a"), merge=False).lora(LoraConfig())
    asked = LoraConfig(5)
    assert Checkpoint(str(base), adapter=str(tmp_path / "a")).lora(asked) == asked


def test_nothing_to_train_further(base):
    with pytest.raises(DataError, match=r"base\.adapter is empty; give"):
        Checkpoint(str(base), merge=False).lora(LoraConfig())


def test_the_planner(tmp_path):
    """It plans with the adapter's rank, and counts the adapters of the reference in the step."""
    base = write_original(tmp_path / "base")
    write_adapter(tmp_path / "a", where="LLaVA")
    tiny = read_config(config_directory() / "tiny.py")
    start = Checkpoint(str(base), adapter=str(tmp_path / "a"), merge=False)
    train = dataclasses.replace(tiny.train, reference="in_step")
    run = dataclasses.replace(tiny, base=start, train=train, mesh=MeshShape(1, 1, 1))
    (variant,) = variants(run, PlanOptions(("v5e:1x1",), size=("base",)))
    assert variant.name == "base LoRA r=2"
    shape = RowShape(64, 1, 2, 8, 1, 16)
    mesh = MeshShape(1, 1, 1).make(jax.devices()[:1])

    def bytes_of(merge):
        e = dataclasses.replace(variant.experiment, base=dataclasses.replace(start, merge=merge))
        compiled = lower_step(e, TINY_HF, mesh, shape).compile()
        return compiled.memory_analysis().argument_size_in_bytes

    adapters = sum(x.size for pair in write_adapter(tmp_path / "b").values() for x in pair)
    assert bytes_of(merge=False) - bytes_of(merge=True) == 4 * adapters
