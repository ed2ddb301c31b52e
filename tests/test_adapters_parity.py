"""Adapters of peft itself: PeftModel, its merged model, and ours give the same logits."""

import math

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")

from helpers_llava import IMAGE_TOKEN, random_llava, save  # noqa: E402
from transformers import LlavaForConditionalGeneration  # noqa: E402

import seva_jax  # noqa: E402
from seva_jax.config import Checkpoint  # noqa: E402
from seva_jax.convert import load_params, read_lora  # noqa: E402
from seva_jax.convert.pickles import from_bin  # noqa: E402
from seva_jax.inference.qwen_arrays import ImageArrays  # noqa: E402
from seva_jax.models import Llava, LoraConfig, abstract_variables  # noqa: E402
from seva_jax.pretrained import to_rows  # noqa: E402
from seva_jax.sharding import MeshShape, placed, variable_shardings  # noqa: E402
from seva_jax.types import DataError  # noqa: E402

pytestmark = [
    pytest.mark.parity,
    # peft 0.21 asks transformers 5.23 for a name that transformers deprecates.
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*save_embedding_layers:UserWarning"),
]

TEXT = r".*language_model\.layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.\w+_proj)"
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
VARIANTS = {
    "plain": {"target_modules": TEXT},
    "in the tower, too": {"target_modules": ["q_proj", "v_proj", "out_proj", "fc1"]},
    "rsLoRA": {"target_modules": TEXT, "use_rslora": True},
    "patterns": {
        "target_modules": TEXT,
        "rank_pattern": {"q_proj": 2, r"layers\.1\.mlp\.up_proj": 5},
        "alpha_pattern": {"o_proj": 3, r".*language_model.layers.0.self_attn.v_proj": 20},
    },
    "rsLoRA with patterns": {
        "target_modules": TEXT,
        "use_rslora": True,
        "rank_pattern": {"q_proj": 2},
        "alpha_pattern": {"o_proj": 3},
    },
    "projector saved": {
        "target_modules": TEXT,
        "modules_to_save": ["multi_modal_projector"],
    },
    "head and embedding saved": {
        "target_modules": TEXT,
        "modules_to_save": ["lm_head", "embed_tokens"],
    },
    "projector and head adapted": {
        "target_modules": [*ALL, "linear_1", "linear_2", "lm_head"],
        "exclude_modules": r".*vision_tower.*",
    },
    "embedding adapted": {"target_modules": [*ALL, "embed_tokens"]},
    "all-linear": {"target_modules": "all-linear"},
    "one layer": {"target_modules": ALL, "layers_to_transform": [1], "layers_pattern": "layers"},
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """Returns a directory with a small LLaVA, token ids with an image, and pixels."""
    directory = save(random_llava(), tmp_path_factory.mktemp("base") / "model")
    ids = np.random.default_rng(0).integers(3, 400, (2, 12))
    ids[:, 2:6] = IMAGE_TOKEN
    pixels = np.random.default_rng(1).normal(size=(2, 3, 28, 28)).astype(np.float32)
    return directory, ids, pixels


def peft_model(directory, **fields):
    """Returns a PeftModel whose adapters and saved modules are random."""
    base = LlavaForConditionalGeneration.from_pretrained(directory, dtype=torch.float32)
    model = peft.get_peft_model(base, peft.LoraConfig(**{"r": 4, "lora_alpha": 6} | fields))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.15 * torch.randn(parameter.shape, generator=generator)
    return model


def their_logits(model, ids, pixels):
    with torch.no_grad():
        output = model.eval()(input_ids=torch.tensor(ids), pixel_values=torch.tensor(pixels))
        return output.logits.numpy()


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits(inputs, tmp_path, variant):
    """Ours are those of PeftModel.from_pretrained and of merge_and_unload, within 1e-4."""
    directory, ids, pixels = inputs
    peft_model(directory, **VARIANTS[variant]).save_pretrained(tmp_path / "adapter")
    base = LlavaForConditionalGeneration.from_pretrained(directory, dtype=torch.float32)
    untrained = their_logits(base, ids, pixels)
    model = peft.PeftModel.from_pretrained(base, tmp_path / "adapter")
    expected = their_logits(model, ids, pixels)
    found = seva_jax.from_pretrained(directory, adapter=tmp_path / "adapter").logits(ids, pixels)
    np.testing.assert_allclose(found, expected, atol=1e-4, rtol=1e-4)
    assert np.abs(found - untrained).max() > 0.1  # the adapter matters
    merged = their_logits(model.merge_and_unload(), ids, pixels)
    np.testing.assert_allclose(found, merged, atol=1e-4, rtol=1e-4)


FURTHER = ["plain", "rsLoRA", "projector saved", "head and embedding saved"]


def further(directory, adapter, ids, pixels):
    """Returns our logits with an adapter in the place of a run's own, and the run's config."""
    start = Checkpoint(str(directory), adapter=str(adapter), merge=False)
    model = seva_jax.from_pretrained(directory)
    lora, opened = start.lora(LoraConfig()), start.open_adapter(model.config)
    module = Llava(model.config, lora=lora)
    boxed = abstract_variables(module)["lora"]
    mesh = MeshShape(data=1).make(jax.devices()[:1])
    variables = {
        "params": load_params(directory, model.config, adapter=opened.without_low_rank()),
        "lora": read_lora(opened, placed(boxed, variable_shardings(mesh, boxed))),
    }
    batch = to_rows(model.config, ids, None, ImageArrays(pixels))
    mask = np.tril(np.ones((12, 12), bool))[None].repeat(2, 0)
    positions = np.arange(12)[None].repeat(2, 0)
    logits = module.apply(
        variables, batch.tokens_BS, positions, mask, batch.patch_BS, batch.pixels_BIHWC
    )
    return np.asarray(logits), lora


@pytest.mark.parametrize("variant", FURTHER)
def test_logits_of_an_adapter_that_is_trained_further(inputs, tmp_path, variant):
    """A run's first policy is the PeftModel, with the adapter's targets, rank and scale."""
    directory, ids, pixels = inputs
    model = peft_model(directory, **VARIANTS[variant])
    model.save_pretrained(tmp_path / "adapter")
    found, lora = further(directory, tmp_path / "adapter", ids, pixels)
    np.testing.assert_allclose(found, their_logits(model, ids, pixels), atol=1e-4, rtol=1e-4)
    rank, scale = 4, 6 / math.sqrt(4) if variant == "rsLoRA" else 6 / 4
    assert (lora.rank, lora.targets) == (rank, tuple(ALL))
    assert lora.scale == pytest.approx(scale, rel=1e-12)


def test_patterns_of_projections_are_trained_further(inputs, tmp_path):
    directory, ids, pixels = inputs
    fields = {"rank_pattern": {"q_proj": 2, "up_proj": 5}, "alpha_pattern": {"o_proj": 3}}
    model = peft_model(directory, target_modules=TEXT, **fields)
    model.save_pretrained(tmp_path / "adapter")
    found, lora = further(directory, tmp_path / "adapter", ids, pixels)
    np.testing.assert_allclose(found, their_logits(model, ids, pixels), atol=1e-4, rtol=1e-4)
    assert [lora.of(t).rank for t in ("q_proj", "up_proj", "o_proj")] == [2, 5, 4]
    assert lora.of("o_proj").scale == 3 / 4


OTHER_KINDS = {
    "use_dora is True": lambda: peft.LoraConfig(r=2, target_modules=ALL, use_dora=True),
    "peft_type is 'IA3'": lambda: peft.IA3Config(
        target_modules=ALL, feedforward_modules=["down_proj"]
    ),
    "peft_type is 'PREFIX_TUNING'|peft_type is 'PROMPT_TUNING'": lambda: peft.PromptTuningConfig(
        num_virtual_tokens=2, task_type="CAUSAL_LM"
    ),
    "init_lora_weights is 'pissa'": lambda: peft.LoraConfig(
        r=2, target_modules=ALL, init_lora_weights="pissa"
    ),
    "init_lora_weights is 'olora'": lambda: peft.LoraConfig(
        r=2, target_modules=ALL, init_lora_weights="olora"
    ),
    "bias is 'all'": lambda: peft.LoraConfig(r=2, target_modules=ALL, bias="all"),
    "trainable_token_indices is": lambda: peft.LoraConfig(
        r=2, target_modules=ALL, trainable_token_indices=[3]
    ),
    "layer_replication is": lambda: peft.LoraConfig(
        r=2, target_modules=ALL, layer_replication=[(0, 2), (1, 2)]
    ),
}


@pytest.mark.parametrize("message", OTHER_KINDS)
def test_kinds_as_peft_writes_them(tmp_path, message):
    """Their adapter_config.json is refused by the field that makes them another kind."""
    OTHER_KINDS[message]().save_pretrained(tmp_path)
    with pytest.raises(DataError, match=message):
        seva_jax.convert.read_adapter(tmp_path, seva_jax.models.LlavaConfig())


def test_pickles_of_llava(inputs, tmp_path, capsys):
    """from-bin makes adapter_model.bin and non_lora_trainables.bin readable, bit for bit."""
    directory, ids, pixels = inputs
    model = peft_model(directory, target_modules=TEXT)
    model.save_pretrained(tmp_path / "old", safe_serialization=False)
    projector = {
        f"base_model.model.model.mm_projector.{at}.{kind}": torch.randn(shape)
        for at, kind, shape in [
            (0, "weight", (32, 32)), (0, "bias", (32,)), (2, "weight", (32, 32)), (2, "bias", (32,))
        ]
    }  # fmt: skip
    torch.save(projector, tmp_path / "old" / "non_lora_trainables.bin")
    assert not list((tmp_path / "old").glob("*.safetensors"))
    with pytest.raises(DataError, match="from-bin"):
        seva_jax.from_pretrained(directory, adapter=tmp_path / "old")
    from_bin(tmp_path / "old", tmp_path / "new")
    with torch.no_grad():
        for name, values in projector.items():
            layer = {"0": "linear_1", "2": "linear_2"}[name.split(".")[-2]]
            their = model.get_parameter(
                f"base_model.model.model.multi_modal_projector.{layer}.{name.split('.')[-1]}"
            )
            their.copy_(values)
    found = seva_jax.from_pretrained(directory, adapter=tmp_path / "new").logits(ids, pixels)
    np.testing.assert_allclose(found, their_logits(model, ids, pixels), atol=1e-4, rtol=1e-4)
    # Where one file is safetensors already, it is copied and the other one converted.
    (tmp_path / "new" / "non_lora_trainables.safetensors").unlink()
    torch.save(projector, tmp_path / "new" / "non_lora_trainables.bin")
    from_bin(tmp_path / "new", tmp_path / "newer")
    again = seva_jax.from_pretrained(directory, adapter=tmp_path / "newer").logits(ids, pixels)
    np.testing.assert_array_equal(again, found)
