"""The families beside LLaVA-1.5 against transformers on random directories: logits and answers."""

import dataclasses

import numpy as np
import pytest

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch")

from helpers_families import batch, random_model  # noqa: E402
from helpers_llava import PAD, VOCAB, save  # noqa: E402

import seva_jax  # noqa: E402
from seva_jax.convert import SpecialTokens  # noqa: E402

NEW = 8
MODELS = {
    "next": ("llava_next", {}),
    "next mistral": (
        "llava_next",
        {"kind": "mistral", "text": {"sliding_window": None}, "vision_feature_layer": 1},
    ),
    "onevision": ("llava_onevision", {}),
    "onevision tied, smaller": (
        "llava_onevision",
        {"tie_word_embeddings": True, "vision_aspect_ratio": "anyres_max_1"},
    ),
    "internvl": ("internvl", {"tie_word_embeddings": False}),
    "internvl tied, qk norm": (
        "internvl",
        {"vision": {"use_qk_norm": True, "attention_bias": False}, "vision_feature_layer": 2},
    ),
}
# Odd sizes, wide and tall, one tile and many.
WIDE, TALL, SMALL, LARGE = (61, 200), (333, 47), (13, 9), (150, 131)
NUMS = {WIDE: (4, 1), TALL: (2, 1), SMALL: (1, 1), LARGE: (6, 1)}  # tiles of InternVL


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Returns a function from a name in `MODELS` to (transformers' model, ours), made once."""
    made = {}

    def get(name):
        if name not in made:
            family, options = MODELS[name]
            model = random_model(family, **options)
            directory = save(model, tmp_path_factory.mktemp("model"))
            made[name] = model, seva_jax.from_pretrained(directory)
        return made[name]

    return get


def of_family(model, rows):
    if model.config.model_type != "internvl":
        return rows
    return [[NUMS[size] for size in row] for row in rows]


def check_logits(theirs, ours, arrays):
    with torch.no_grad():
        expected = theirs(**{name: torch.tensor(x) for name, x in arrays.items()}).logits.numpy()
    got = ours.logits(**arrays)
    assert got.dtype == np.float32
    assert got.shape == (*arrays["input_ids"].shape, VOCAB)
    real = arrays["attention_mask"].astype(bool)
    assert expected[real].std() > 0.5  # a mistake of any kind shows far above 1e-4
    np.testing.assert_allclose(got[real], expected[real], rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_logits_of_one_image_each(pair, name):
    theirs, ours = pair(name)
    for size in (WIDE, TALL, SMALL, LARGE):
        rows = of_family(theirs, [[size]])
        check_logits(theirs, ours, batch(theirs, rows, [7]))
    rows = of_family(theirs, [[WIDE], [SMALL], [TALL]])
    for padding in ("left", "right"):
        check_logits(theirs, ours, batch(theirs, rows, [5, 9, 2], padding, seed=1))


@pytest.mark.parametrize("name", MODELS)
def test_logits_of_several_images_and_of_none(pair, name):
    theirs, ours = pair(name)
    check_logits(theirs, ours, batch(theirs, [[], []], [5, 9]))
    rows = of_family(theirs, [[LARGE, WIDE], [], [TALL], [SMALL, SMALL, TALL]])
    check_logits(theirs, ours, batch(theirs, rows, [9, 6, 3, 8], seed=2))


@pytest.mark.parametrize("name", MODELS)
def test_greedy_answers(pair, name):
    theirs, ours = pair(name)
    rows = of_family(theirs, [[WIDE], [], [SMALL, TALL]])
    arrays = batch(theirs, rows, [9, 12, 8], seed=3)
    prompt = arrays["input_ids"].shape[1]
    tensors = {name: torch.tensor(x) for name, x in arrays.items()}

    def answers(**options):
        with torch.no_grad():
            return theirs.generate(**tensors, do_sample=False, max_new_tokens=NEW, **options)

    free = answers(eos_token_id=VOCAB).numpy()[0, prompt:]
    first = [list(free).index(token) for token in free[: NEW - 2]]
    stop = int(free[max(first)])  # ends the first answer early, but not at once
    expected = answers(eos_token_id=stop, pad_token_id=PAD).numpy()
    ours = dataclasses.replace(ours, special=SpecialTokens((stop,), PAD))
    np.testing.assert_array_equal(ours.generate(**arrays, max_new_tokens=NEW), expected)
