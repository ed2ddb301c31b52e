"""Exports of the families beside LLaVA-1.5: transformers and peft give the logits of our model."""

import json

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")

from helpers_families import GRID, SIDE, batch, random_model  # noqa: E402
from helpers_hub import check_hub_spelling  # noqa: E402
from helpers_llava import save, write_run  # noqa: E402
from safetensors.numpy import load_file, save_file  # noqa: E402
from transformers import AutoModelForImageTextToText  # noqa: E402

import seva_jax  # noqa: E402
from seva_jax.convert import load_params  # noqa: E402
from seva_jax.convert.__main__ import open_source  # noqa: E402
from seva_jax.convert.families import family_of  # noqa: E402
from seva_jax.convert.peft import to_peft  # noqa: E402
from seva_jax.convert.processor import write_processor  # noqa: E402
from seva_jax.convert.rewrite import require_llava_opens, to_hf, write_new  # noqa: E402
from seva_jax.convert.table import canonical, is_unused  # noqa: E402
from seva_jax.images.internvl import InternvlProcessing  # noqa: E402
from seva_jax.images.llava_next import LlavaNextProcessing  # noqa: E402
from seva_jax.images.llava_onevision import LlavaOnevisionProcessing  # noqa: E402
from seva_jax.inference.qwen_arrays import ImageArrays  # noqa: E402
from seva_jax.models import Llava  # noqa: E402
from seva_jax.pretrained import to_rows  # noqa: E402
from seva_jax.text import CHATML  # noqa: E402
from seva_jax.text.tokenizer import word_tokenizer  # noqa: E402
from seva_jax.training.step import merge  # noqa: E402
from seva_jax.types import DataError  # noqa: E402

pytestmark = [
    pytest.mark.parity,
    # peft 0.21 asks transformers 5.23 for a name that transformers deprecates.
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),
]
RESOLUTIONS = tuple((height, width) for height, width in GRID)
PROCESSING = {
    "llava_next": LlavaNextProcessing(size=SIDE, resolutions=RESOLUTIONS),
    "llava_onevision": LlavaOnevisionProcessing(size=SIDE, resolutions=RESOLUTIONS),
    "internvl": InternvlProcessing(size=SIDE),
}
IMAGES = {"internvl": [[(3, 1)], [(1, 1)]]}


@pytest.fixture(scope="module", params=PROCESSING)
def made(request, tmp_path_factory):
    """Returns a directory, transformers' model of it, and a batch."""
    family = request.param
    root = tmp_path_factory.mktemp(family)
    options = {"tie_word_embeddings": False} if family == "internvl" else {}
    theirs = random_model(family, **options)
    directory = save(theirs, root / "model", max_shard_size="100kB")
    config = seva_jax.from_pretrained(directory).config
    write_processor(directory, config, PROCESSING[family])
    arrays = batch(theirs, IMAGES.get(family, [[(61, 200)], [(30, 30)]]), [5, 7])
    return root, theirs, arrays


def their_logits(model, arrays):
    with torch.no_grad():
        return model.eval()(**{name: torch.tensor(x) for name, x in arrays.items()}).logits.numpy()


def merged_logits(base, source, trained, arrays):
    """Returns our logits with adapters applied, not merged into files."""
    model = Llava(base.config, lora=source.lora)
    variables = merge({"params": load_params(base.directory, base.config)}, trained)
    images = {name: x for name, x in arrays.items() if name in ImageArrays._fields}
    rows = to_rows(
        base.config, arrays["input_ids"], arrays["attention_mask"], ImageArrays(**images),
        base.layouts,
    )  # fmt: skip
    length = rows.tokens_BS.shape[1]
    causal = np.tril(np.ones((length, length), bool))
    mask = (causal & rows.mask_BS[:, None]) | np.eye(length, dtype=bool)
    positions = np.broadcast_to(np.arange(length), rows.tokens_BS.shape)
    return np.asarray(
        model.apply(
            variables, rows.tokens_BS, positions, mask, rows.patch_BS, rows.pixels_BIHWC, rows.blend
        )
    )


def test_merged_model_in_transformers(made):
    root, theirs, arrays = made
    trained = write_run(root / "run", root / "model")
    source = open_source(root / "run")
    base = seva_jax.from_pretrained(root / "model")
    real = arrays["attention_mask"].astype(bool)
    ours = merged_logits(base, source, trained, arrays)[real]
    assert np.abs(ours - base.logits(**arrays)[real]).max() > 1  # what was trained matters
    to_hf(source, root / "merged")
    model = AutoModelForImageTextToText.from_pretrained(root / "merged", dtype=torch.float32)
    np.testing.assert_allclose(their_logits(model, arrays)[real], ours, atol=1e-4, rtol=1e-4)
    again = seva_jax.from_pretrained(root / "merged").logits(**arrays)
    np.testing.assert_allclose(again[real], ours, atol=1e-4, rtol=1e-4)
    for name in ("preprocessor_config.json", "processor_config.json"):
        same = (root / "merged" / name).read_bytes() == (root / "model" / name).read_bytes()
        assert same, name
    check_hub_spelling(root / "merged", theirs.config.model_type)
    if theirs.config.model_type != "internvl":
        said = "image_newline with the projector, .* no module that peft .* to-hf exports the whole"
        with pytest.raises(DataError, match=said):
            to_peft(source, root / "adapter of it")
        assert not (root / "adapter of it").exists()
    with pytest.raises(DataError, match="is written in the original layout"):
        require_llava_opens(source, root / "llava-original")


def test_adapter_in_peft(made):
    root, theirs, arrays = made
    parts = ("lora", "projector") if theirs.config.model_type == "internvl" else ("lora",)
    trained = write_run(root / "adapted", root / "model", parts=parts)
    source = open_source(root / "adapted")
    base = seva_jax.from_pretrained(root / "model")
    real = arrays["attention_mask"].astype(bool)
    ours = merged_logits(base, source, trained, arrays)[real]
    to_peft(source, root / "adapter")
    named = peft.PeftConfig.from_pretrained(root / "adapter").base_model_name_or_path
    model = AutoModelForImageTextToText.from_pretrained(named, dtype=torch.float32)
    model = peft.PeftModel.from_pretrained(model, root / "adapter")
    np.testing.assert_allclose(their_logits(model, arrays)[real], ours, atol=1e-4, rtol=1e-4)
    adapted = seva_jax.from_pretrained(root / "model", adapter=root / "adapter").logits(**arrays)
    np.testing.assert_allclose(adapted[real], ours, atol=1e-4, rtol=1e-4)


def test_new_directory_in_transformers(made):
    """What is trained from scratch is written in the Hub's spelling, with every file."""
    root, theirs, arrays = made
    family, out = theirs.config.model_type, root / "new"
    base = seva_jax.from_pretrained(root / "model")
    params = load_params(base.directory, base.config)

    def read(names):
        (name,) = names
        leaf = params
        for key in name.split("/")[1:]:
            leaf = leaf[key]
        return [np.asarray(leaf)]

    tokenizer = word_tokenizer(("a", "b"))
    write_new(out, base.config, tokenizer, PROCESSING[family], CHATML, read)
    check_hub_spelling(out, family)
    model, report = AutoModelForImageTextToText.from_pretrained(out, output_loading_info=True)
    # Layers behind the features are not built, so they are not there to be written.
    depth, layers = base.config.tower_depth, base.config.vision.num_layers
    assert all(is_unused(canonical(name), depth, layers) for name in report["missing_keys"])
    real = arrays["attention_mask"].astype(bool)
    expected = their_logits(theirs, arrays)[real]
    np.testing.assert_allclose(their_logits(model, arrays)[real], expected, atol=1e-4, rtol=1e-4)
    assert family_of(base.config).read_processing(out, None) == PROCESSING[family]
    assert "image_processor" not in json.loads((out / "processor_config.json").read_text())


def test_spellings_give_the_same_parameters(made, tmp_path):
    """Those of transformers 4, of modules in memory, and of transformers 5."""
    root, theirs, _ = made
    base = seva_jax.from_pretrained(root / "model")
    files = sorted((root / "model").glob("*.safetensors"))
    tensors = {name: x for path in files for name, x in load_file(path).items()}
    nested = theirs.config.model_type != "internvl"

    def hub(name):
        return name.replace("vision_tower.", "vision_tower.vision_model.") if nested else name

    def runtime(name):
        name = name.replace("language_model.lm_head", "lm_head")
        name = name.replace("language_model.model.", "language_model.")
        return name if name.startswith("lm_head") else f"model.{name}"

    assert {runtime(name) for name in tensors} == set(theirs.state_dict())
    for rename in (hub, runtime):
        directory = tmp_path / rename.__name__
        directory.mkdir()
        renamed = {rename(name): x for name, x in tensors.items()}
        if rename is hub and nested:
            renamed["vision_tower.vision_model.embeddings.position_ids"] = np.arange(17)[None]
        save_file(renamed, directory / "model.safetensors")
        (directory / "config.json").write_text((root / "model" / "config.json").read_text())
        again = seva_jax.from_pretrained(directory)
        jax.tree.map(np.testing.assert_array_equal, again.params, base.params)
