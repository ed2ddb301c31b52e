"""Adapters on tower and connector against peft on transformers: logits, and files both ways."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")

from helpers_families import batch, random_model  # noqa: E402
from helpers_llava import IMAGE_TOKEN, random_llava, save  # noqa: E402
from helpers_qwen import QWEN, random_qwen  # noqa: E402
from helpers_qwen import batch as qwen_batch  # noqa: E402
from transformers import AutoModelForImageTextToText  # noqa: E402

import seva_jax  # noqa: E402
from seva_jax.config import Checkpoint  # noqa: E402
from seva_jax.convert import load_params, read_lora  # noqa: E402
from seva_jax.convert.__main__ import open_source  # noqa: E402
from seva_jax.convert.load import leaves_by_path  # noqa: E402
from seva_jax.convert.peft import to_peft  # noqa: E402
from seva_jax.convert.rewrite import to_hf  # noqa: E402
from seva_jax.inference.qwen_arrays import ImageArrays  # noqa: E402
from seva_jax.models import Llava, LoraConfig, abstract_variables, merge_adapters  # noqa: E402
from seva_jax.sharding import MeshShape, placed, variable_shardings  # noqa: E402

pytestmark = [
    pytest.mark.parity,
    # peft 0.21 asks transformers 5.23 for a name that transformers deprecates.
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*save_embedding_layers:UserWarning"),
]

ROWS = {
    "llava_next": [[(61, 200)], [(13, 9)]],
    "llava_onevision": [[(150, 131)], [(13, 9), (61, 200)]],
    "internvl": [[(4, 1)], [(1, 1)]],
}
TARGETS = {
    "everything": "all-linear",
    "some": ["q_proj", "v_proj", "fc2"],  # of decoder and tower; InternViT's fc2, too
    "images alone": r".*(vision_tower.*|multi_modal_projector)\."
    r"(q_proj|k_proj|v_proj|out_proj|projection_layer|fc1|fc2|linear_1|linear_2)"
    r"|.*visual\.(blocks|merger|deepstack_merger_list)\..*"
    r"(qkv|proj|gate_proj|up_proj|down_proj|fc\d|mlp\.0|mlp\.2)",
}
SOME_OF_QWEN = ["q_proj", "v_proj", "qkv"]


@pytest.fixture(scope="module", params=["llava", *ROWS, *QWEN])
def model(request, tmp_path_factory):
    """Returns a directory with a small model of a family, and arrays as its processor makes them.

    The features of LLaVA-1.5 and LLaVA-NeXT are those below the tower's last layer.
    """
    family = request.param
    directory = tmp_path_factory.mktemp(family) / "model"
    if family == "llava":
        ids = np.random.default_rng(0).integers(3, 400, (2, 12))
        ids[:, 2:6] = IMAGE_TOKEN
        pixels = np.random.default_rng(1).normal(size=(2, 3, 28, 28)).astype(np.float32)
        return save(random_llava(), directory), {"input_ids": ids, "pixel_values": pixels}
    if family in QWEN:
        arrays = qwen_batch(family, [[(91, 260)], [(56, 60), (30, 31)]], [7, 9])
        return save(random_qwen(family), directory), arrays
    made = random_model(family)
    return save(made, directory), batch(made, ROWS[family], [7, 9])


def their_model(directory):
    return AutoModelForImageTextToText.from_pretrained(directory, dtype=torch.float32).eval()


def with_random_adapters(directory, **fields):
    """Returns a PeftModel."""
    base = their_model(directory)
    made = peft.get_peft_model(base, peft.LoraConfig(**{"r": 4, "lora_alpha": 6} | fields))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.requires_grad:
                parameter += 0.15 * torch.randn(parameter.shape, generator=generator)
    return made


def their_logits(model, arrays):
    with torch.no_grad():
        given = {name: torch.tensor(x) for name, x in arrays.items()}
        return model.eval()(**given).logits.numpy()


def opened(directory, adapter):
    """Returns the module of a run that trains an adapter further, its variables, and its rows."""
    ours = seva_jax.from_pretrained(directory)
    start = Checkpoint(str(directory), adapter=str(adapter), merge=False)
    module = Llava(ours.config, lora=start.lora(LoraConfig()))
    boxed = abstract_variables(module)["lora"]
    mesh = MeshShape(data=1).make(jax.devices()[:1])
    found = start.open_adapter(ours.config)
    variables = {
        "params": load_params(directory, ours.config),
        "lora": read_lora(found, placed(boxed, variable_shardings(mesh, boxed))),
    }
    return ours, module, variables


def our_logits(ours, module, variables, arrays):
    images = {name: x for name, x in arrays.items() if name in ImageArrays._fields}
    given = ours._rows(arrays["input_ids"], arrays.get("attention_mask"), ImageArrays(**images))
    length = given.tokens_BS.shape[1]
    causal = jnp.tril(jnp.ones((length, length), bool)) & jnp.asarray(given.mask_BS)[:, None]
    positions = given.positions_BS3
    if positions is None:
        positions = jnp.broadcast_to(jnp.arange(length), given.tokens_BS.shape)
    logits = module.apply(
        variables, given.tokens_BS, positions, causal | jnp.eye(length, dtype=bool),
        given.patch_BS, given.pixels_BIHWC, given.blend, given.place_BI5,
    )  # fmt: skip
    return np.asarray(logits)


def check(found, expected, arrays):
    real = arrays.get("attention_mask", np.ones_like(arrays["input_ids"])).astype(bool)
    np.testing.assert_allclose(found[real], expected[real], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("which", TARGETS)
def test_logits(model, tmp_path, which):
    """Ours with the adapter beside the weights, and merged into them, are those of peft."""
    directory, arrays = model
    targets = TARGETS[which]
    if which == "some" and "mm_token_type_ids" in arrays:
        targets = SOME_OF_QWEN
    theirs = with_random_adapters(directory, target_modules=targets)
    theirs.save_pretrained(tmp_path / "adapter")
    expected = their_logits(theirs, arrays)
    ours, module, variables = opened(directory, tmp_path / "adapter")
    found = our_logits(ours, module, variables, arrays)
    check(found, expected, arrays)
    bare = our_logits(ours, module, {"params": variables["params"]}, arrays)
    check(bare, their_logits(their_model(directory), arrays), arrays)
    assert np.abs(found - bare).max() > 0.1
    images = {
        part: variables["lora"][part]
        for part in ("vision", "projector")
        if part in variables["lora"]
    }
    assert ("vision" in images, "projector" in images) == (True, which != "some")
    for part in images:  # each of them matters
        without = {x: values for x, values in variables["lora"].items() if x != part}
        other = our_logits(ours, module, variables | {"lora": without}, arrays)
        assert np.abs(other - found).max() > 1e-2, part
    shardings = jax.tree.map(lambda x: x.sharding, variables["params"])
    merged = merge_adapters(
        variables["params"], variables["lora"], module.lora, jnp.dtype("float32"), shardings
    )
    check(our_logits(ours, Llava(ours.config), {"params": merged}, arrays), expected, arrays)


def test_what_to_peft_writes(model, tmp_path):
    """It is read without a missing tensor, and adapts no other layer; to-hf merges it.

    Ranks and scales of decoder, tower and connector differ, and a linear layer of the decoder that
    has the name of one of the tower has a rank of its own.
    """
    directory, arrays = model
    ours = seva_jax.from_pretrained(directory)
    lora = LoraConfig(
        4, 6.0, vision=True, connector=True,
        rank_pattern=(("q_proj", 2), ("vision", 3), ("connector", 5)),
        alpha_pattern=(("v_proj", 9.0), ("connector", 4.0)),
    )  # fmt: skip
    module = Llava(ours.config, lora=lora)
    shapes = abstract_variables(module)["lora"]
    rng = np.random.default_rng(5)
    adapters = jax.tree.map(
        lambda leaf: rng.normal(0, 0.2, leaf.value.shape).astype(np.float32),
        shapes, is_leaf=lambda x: hasattr(x, "names"),
    )  # fmt: skip
    values = leaves_by_path({"lora": adapters})
    source = dataclasses.replace(
        open_source(directory),
        lora=lora,
        trained={name: leaf.shape for name, leaf in values.items()},
        read=lambda names: [values[name] for name in names],
    )
    to_peft(source, tmp_path / "peft")
    expected = our_logits(
        ours, module, {"params": load_params(directory, ours.config), "lora": adapters}, arrays
    )
    base = their_model(directory)
    theirs = peft.PeftModel.from_pretrained(base, tmp_path / "peft")
    check(their_logits(theirs, arrays), expected, arrays)
    zeros = [n for n, x in theirs.named_parameters() if "lora_B" in n and not x.any()]
    assert not zeros  # an adapter that the file does not hold would be left as it begins
    _, again, variables = opened(directory, tmp_path / "peft")
    assert again.lora == lora
    jax.tree.map(np.testing.assert_array_equal, variables["lora"], adapters)
    to_hf(source, tmp_path / "merged")
    check(their_logits(their_model(tmp_path / "merged"), arrays), expected, arrays)
