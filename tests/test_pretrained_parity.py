"""`seva_jax.from_pretrained` against transformers on random directories: logits and answers."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch")

from helpers_llava import (  # noqa: E402
    EOS,
    IMAGE_TOKEN,
    PAD,
    VOCAB,
    padded_ids,
    random_llava,
    save,
)
from safetensors.numpy import load_file, save_file  # noqa: E402

import seva_jax  # noqa: E402
from seva_jax.convert import SpecialTokens, load_params, read_llava_config  # noqa: E402
from seva_jax.inference.qwen_arrays import ImageArrays  # noqa: E402
from seva_jax.inference.sampler import generate  # noqa: E402
from seva_jax.pretrained import to_rows  # noqa: E402
from seva_jax.text.sampling import Sampling  # noqa: E402

# Each setting shows by itself in tests/test_models_parity.py; here they meet, because every config
# costs a compilation.
CONFIGS = {
    "plain": {},
    "grouped heads, layer 1, full": {
        "text": {"num_key_value_heads": 2, "head_dim": 16},
        "vision_feature_layer": 1,
        "vision_feature_select_strategy": "full",
    },
    "tied head, last layer": {
        "text": {"tie_word_embeddings": True},
        "tie_word_embeddings": True,
        "vision_feature_layer": -1,
    },
    "rope base, gelu tower, no projector bias": {
        "text": {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
        "vision": {"hidden_act": "gelu"},
        "multimodal_projector_bias": False,
    },
}
PLAIN, GROUPED, TIED, ROPE = CONFIGS
NEW = 8  # tokens generated


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Returns a function from the name of a config to (transformers' model, ours), made once."""
    made = {}

    def get(name):
        if name not in made:
            model = random_llava(**CONFIGS[name])
            directory = save(model, tmp_path_factory.mktemp("llava"))
            made[name] = model, seva_jax.from_pretrained(directory)
        return made[name]

    return get


def inputs(images, texts, padding, tile_features=4, seed=0):
    """A batch as the processor makes it.

    Args:
        images: number of images of each row.
        texts: number of text tokens of each row.
        padding: side, "left" or "right".
        tile_features: image tokens for each image.
        seed: of tokens and pixels.

    Returns:
        input_ids, pixel_values (None without images), attention_mask.
    """
    rng = np.random.default_rng(seed)
    rows = []
    for num_images, num_text in zip(images, texts, strict=True):
        parts = np.array_split(rng.integers(3, IMAGE_TOKEN, num_text), num_images + 1)
        row = list(parts[0])
        for part in parts[1:]:
            row += [IMAGE_TOKEN] * tile_features + list(part)
        rows.append(row)
    input_ids, mask = padded_ids(rows, padding)
    pixels = rng.standard_normal((sum(images), 3, 28, 28)).astype(np.float32)
    return input_ids, pixels if len(pixels) else None, mask


def tensors(input_ids, pixels, mask):
    named = {"input_ids": input_ids, "pixel_values": pixels, "attention_mask": mask}
    return {name: torch.tensor(x) for name, x in named.items() if x is not None}


def check_logits(theirs, ours, batch):
    with torch.no_grad():
        expected = theirs(**tensors(*batch)).logits.numpy()
    got = ours.logits(*batch)
    assert got.dtype == np.float32
    assert got.shape == (*batch[0].shape, VOCAB)
    real = batch[2].astype(bool)
    # Random weights of 0.2 make logits of about 1; a mistake of any kind shows far above 1e-4.
    assert expected[real].std() > 0.5
    np.testing.assert_allclose(got[real], expected[real], rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_of_every_config(pair, name):
    theirs, ours = pair(name)
    per_image = ours.config.tile_features
    assert per_image == (5 if name == GROUPED else 4)
    for padding in ("left", "right"):
        check_logits(theirs, ours, inputs((1, 1), (7, 4), padding, per_image))


@pytest.mark.parametrize(
    ("images", "texts"),
    [((2, 2), (5, 9)), ((0, 0), (5, 9)), ((0, 2, 1), (9, 3, 3))],
    ids=["two images", "no image", "mixed"],
)
def test_logits_of_every_batch(pair, images, texts):
    for padding in ("left", "right"):
        check_logits(*pair(PLAIN), inputs(images, texts, padding))


def test_logits_without_attention_mask(pair):
    theirs, ours = pair(PLAIN)
    input_ids, pixels, _ = inputs((1, 1), (7, 4), "left")
    with torch.no_grad():
        expected = theirs(torch.tensor(input_ids), torch.tensor(pixels)).logits.numpy()
    np.testing.assert_allclose(ours.logits(input_ids, pixels), expected, rtol=0, atol=1e-4)


def test_images_change_the_logits_and_so_does_their_order(pair):
    _, ours = pair(PLAIN)
    input_ids, pixels, mask = inputs((2, 2), (5, 9), "left")
    logits = ours.logits(input_ids, pixels, mask)
    swapped = ours.logits(input_ids, pixels[[1, 0, 2, 3]], mask)
    assert np.abs(logits[0] - swapped[0]).max() > 0.1
    np.testing.assert_array_equal(logits[1], swapped[1])


def their_answers(model, batch, **options):
    with torch.no_grad():
        return model.generate(**tensors(*batch), do_sample=False, **options).numpy()


def a_stop(free_T):
    """Returns a token of an answer that ends it early, but not at once."""
    first = [list(free_T).index(token) for token in free_T[: NEW - 2]]
    return int(free_T[max(first)])


@pytest.mark.parametrize(
    ("name", "images", "texts"),
    [
        (PLAIN, (1, 1, 1), (7, 4, 12)),
        (GROUPED, (0, 2, 1), (9, 3, 3)),
        (TIED, (0, 1), (2, 6)),
        (ROPE, (1,), (5,)),
    ],
)
def test_greedy_answers_with_early_stop(pair, name, images, texts):
    theirs, ours = pair(name)
    batch = inputs(images, texts, "left", ours.config.tile_features, seed=1)
    prompt = batch[0].shape[1]
    # Untrained models rarely say </s>: make a token of the first answer the stop token.
    free = their_answers(theirs, batch, max_new_tokens=NEW, eos_token_id=VOCAB)
    stop = a_stop(free[0, prompt:])
    options = {"max_new_tokens": NEW, "eos_token_id": stop, "pad_token_id": PAD}
    expected = their_answers(theirs, batch, **options)
    assert (expected[0] == stop).any()
    if len(images) > 1:
        assert (expected[0, -1], expected.shape[1]) == (PAD, prompt + NEW)  # others go on

    ours = dataclasses.replace(ours, special=SpecialTokens((stop,), PAD))
    got = ours.generate(*batch, max_new_tokens=NEW)
    assert got.dtype == np.int64
    np.testing.assert_array_equal(got, expected)
    # Both infer the mask from the pad token.
    unmasked = (*batch[:2], None)
    np.testing.assert_array_equal(their_answers(theirs, unmasked, **options), expected)
    np.testing.assert_array_equal(ours.generate(*unmasked[:2], max_new_tokens=NEW), expected)
    # transformers answers right-padded prompts after the padding; we answer the prompts.
    right = inputs(images, texts, "right", ours.config.tile_features, seed=1)
    got = ours.generate(*right, max_new_tokens=NEW)
    np.testing.assert_array_equal(got[:, :prompt], right[0])
    np.testing.assert_array_equal(got[:, prompt:], expected[:, prompt:])


@pytest.mark.parametrize("penalty", [1.1, 3.0, 0.8])
def test_repetition_penalty(pair, penalty):
    """It counts tokens of prompt and answer, row by row, because theirs counts padding too."""
    theirs, ours = pair(PLAIN)
    free = {1.0: [], penalty: []}
    for images, text, seed in ((1, 7, 1), (0, 9, 2), (2, 5, 3)):
        batch = inputs((images,), (text,), "left", ours.config.tile_features, seed)
        options = {"max_new_tokens": 2 * NEW, "eos_token_id": VOCAB}
        for value, found in free.items():
            expected = their_answers(theirs, batch, repetition_penalty=value, **options)
            found.append(expected[0, batch[0].shape[1] :].tolist())
            got = generate(
                ours.model, {"params": ours.params},
                to_rows(ours.config, batch[0], batch[2], ImageArrays(batch[1])),
                jax.random.key(0)[None], Sampling(2 * NEW, repetition_penalty=value), (), PAD,
            )  # fmt: skip
            np.testing.assert_array_equal(got[0], found[-1])
    assert free[1.0] != free[penalty]


def test_stop_and_pad_tokens_come_from_the_directory(pair, tmp_path):
    theirs, ours = pair(PLAIN)
    batch = inputs((1, 1), (7, 4), "left", seed=1)
    prompt = batch[0].shape[1]
    free = their_answers(theirs, batch, max_new_tokens=NEW, eos_token_id=VOCAB)
    stops = [int(free[0, prompt + 1]), int(free[1, prompt + 3])]
    directory = tmp_path / "llava"
    shutil.copytree(ours.directory, directory)
    path = directory / "generation_config.json"
    fields = json.loads(path.read_text()) | {"eos_token_id": stops}
    del fields["pad_token_id"]  # then the first stop token pads
    path.write_text(json.dumps(fields))
    expected = their_answers(type(theirs).from_pretrained(directory), batch, max_new_tokens=20)
    assert expected.shape[1] == prompt + 4
    np.testing.assert_array_equal(
        seva_jax.from_pretrained(directory).generate(*batch, max_new_tokens=20), expected
    )


def test_sampling_depends_on_the_seed_but_not_on_padding(pair):
    _, ours = pair(PLAIN)
    draws = []
    for side, seed in (("left", 0), ("right", 0), ("left", 1)):
        batch = inputs((1, 0), (3, 12), side)
        draw = ours.generate(*batch, max_new_tokens=NEW, temperature=1.5, top_p=0.9, seed=seed)
        draws.append(draw[:, batch[0].shape[1] :])
    np.testing.assert_array_equal(draws[0], draws[1])
    assert (draws[0] != draws[2]).any()


def test_arrays_of_the_processor_fit(pair, tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import CLIPImageProcessor, LlavaProcessor, PreTrainedTokenizerFast

    theirs, ours = pair(PLAIN)
    vocabulary = {f"w{i}": i for i in range(VOCAB)}
    for token, i in {"</s>": EOS, "<image>": IMAGE_TOKEN, "<pad>": PAD, "<unk>": 0}.items():
        vocabulary = {t: j for t, j in vocabulary.items() if j != i} | {token: i}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        padding_side="left",
        additional_special_tokens=["<image>"],
    )
    processor = LlavaProcessor(
        CLIPImageProcessor(
            size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}, do_rescale=True
        ),
        fast,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    rng = np.random.default_rng(0)
    photos = [rng.integers(0, 256, (40, 50, 3), np.uint8) for _ in range(3)]
    arrays = processor(
        images=photos,
        text=["w5 <image> w6 <image> w7", "w8 <image> w9 w10", "w11 w12"],
        padding=True,
        return_tensors="np",
    )
    assert (arrays["input_ids"] == IMAGE_TOKEN).sum() == 12
    arrays = {name: arrays[name] for name in ("input_ids", "pixel_values", "attention_mask")}
    expected = their_answers(theirs, tuple(arrays.values()), max_new_tokens=5)
    np.testing.assert_array_equal(ours.generate(**arrays, max_new_tokens=5), expected)

    directory = tmp_path / "llava"
    shutil.copytree(ours.directory, directory)
    processor.save_pretrained(directory)
    again = seva_jax.from_pretrained(directory)
    assert again.tokenizer("w5 <image>")["input_ids"] == [5, IMAGE_TOKEN]
    np.testing.assert_allclose(
        again.processing(photos[0]), arrays["pixel_values"][0].transpose(1, 2, 0), atol=1e-5
    )


def test_spellings_and_shards_give_the_same_parameters(tmp_path):
    model = random_llava(**CONFIGS[GROUPED])
    saved = save(model, tmp_path / "saved")
    config = read_llava_config(saved)
    expected = load_params(saved, config)
    tensors = load_file(saved / "model.safetensors")
    # What transformers 5 saves today; if this changes, the table follows.
    assert {name.split(".")[0] for name in tensors} == {
        "vision_tower",
        "multi_modal_projector",
        "language_model",
    }

    def hub(name):
        return name.replace("vision_tower.", "vision_tower.vision_model.")

    def runtime(name):
        name = name.replace("language_model.lm_head", "lm_head")
        name = name.replace("language_model.model.", "language_model.")
        name = hub(name)
        return name if name.startswith("lm_head") else f"model.{name}"

    assert set(model.state_dict()) == {
        runtime(name).replace("vision_model.", "") for name in tensors
    }
    unused = {
        "vision_tower.vision_model.embeddings.position_ids": np.arange(5)[None],
        "language_model.model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(8, np.float32),
    }
    for rename, extra in ((hub, unused), (runtime, {})):
        directory = tmp_path / rename.__name__
        shutil.copytree(saved, directory)
        renamed = {rename(name): tensor for name, tensor in tensors.items()} | extra
        save_file(renamed, directory / "model.safetensors")
        jax.tree.map(np.testing.assert_array_equal, load_params(directory, config), expected)
        # transformers reads these files too, so they are what they claim to be.
        again, report = type(model).from_pretrained(directory, output_loading_info=True)
        assert not report["missing_keys"]
        for name, parameter in again.named_parameters():
            assert torch.equal(parameter, model.get_parameter(name)), name

    sharded = save(model, tmp_path / "sharded", max_shard_size="40KB")
    assert len(list(sharded.glob("*.safetensors"))) > 2
    jax.tree.map(np.testing.assert_array_equal, load_params(sharded, config), expected)
