"""The families beside LLaVA-1.5 against transformers on random directories: logits and answers."""

import dataclasses
import shutil

import numpy as np
import pytest

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch")

from helpers_families import GRID, SIDE, batch, random_model  # noqa: E402
from helpers_llava import EOS, IMAGE_TOKEN, PAD, VOCAB, save  # noqa: E402

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


def tokenizer_of(image):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    specials = {"</s>": EOS, image: IMAGE_TOKEN, "<pad>": PAD, "<unk>": 0}
    specials |= {"<img>": 502, "</img>": 503, "<video>": 504}
    taken = {i: token for token, i in specials.items()}
    vocabulary = {taken.get(i, f"w{i}"): i for i in range(VOCAB)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="</s>", pad_token="<pad>", unk_token="<unk>",
        padding_side="left", additional_special_tokens=[image, "<img>", "</img>", "<video>"],
        extra_special_tokens={
            "start_image_token": "<img>", "end_image_token": "</img>",
            "context_image_token": image, "video_token": "<video>",
        },
    )  # fmt: skip


def processor_of(model):
    """Returns the family's own processor, which needs torchvision for videos only."""
    import transformers
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
    from transformers.models.llava_next.image_processing_pil_llava_next import (
        LlavaNextImageProcessorPil,
    )
    from transformers.models.llava_onevision.image_processing_pil_llava_onevision import (
        LlavaOnevisionImageProcessorPil,
    )

    def unchecked(kind):
        check = {"check_argument_for_proper_class": lambda self, name, value: (type(value),)}
        return type(kind.__name__, (kind,), check)

    square = {"height": SIDE, "width": SIDE}
    match model.config.model_type:
        case "llava_next":
            return transformers.LlavaNextProcessor(
                LlavaNextImageProcessorPil(
                    size={"shortest_edge": SIDE}, crop_size=square, image_grid_pinpoints=GRID
                ),
                tokenizer_of("<image>"), patch_size=14, vision_feature_select_strategy="default",
                num_additional_image_tokens=1,
            )  # fmt: skip
        case "llava_onevision":
            return unchecked(transformers.LlavaOnevisionProcessor)(
                LlavaOnevisionImageProcessorPil(size=square, image_grid_pinpoints=GRID),
                tokenizer_of("<image>"), None, num_image_tokens=16,
                vision_feature_select_strategy="full",
                vision_aspect_ratio=model.config.vision_aspect_ratio,
            )  # fmt: skip
        case _:
            return unchecked(transformers.InternVLProcessor)(
                GotOcr2ImageProcessorPil(size=square, crop_to_patches=True, max_patches=4),
                tokenizer_of("<IMG_CONTEXT>"), None, image_seq_length=4,
            )  # fmt: skip


@pytest.mark.parametrize("name", ["next", "onevision tied, smaller", "internvl"])
def test_arrays_of_the_processor_fit(pair, name, tmp_path):
    theirs, ours = pair(name)
    processor, family = processor_of(theirs), theirs.config.model_type
    rng = np.random.default_rng(0)
    photos = [rng.integers(0, 256, (*size, 3), np.uint8) for size in (WIDE, SMALL, LARGE)]
    image = processor.image_token
    texts = [f"w5 {image} w6 {image} w7", f"w8 {image} w9 w10"]
    nested = [photos[:2], photos[2:]] if family == "llava_onevision" else photos
    arrays = dict(processor(images=nested, text=texts, padding=True, return_tensors="np"))
    check_logits(theirs, ours, arrays)
    with torch.no_grad():
        expected = theirs.generate(
            **{name: torch.tensor(x) for name, x in arrays.items()}, do_sample=False,
            max_new_tokens=5,
        )  # fmt: skip
    np.testing.assert_array_equal(ours.generate(**arrays, max_new_tokens=5), expected)

    # Our own processing of the directory gives the same pixels.
    directory = tmp_path / "model"
    shutil.copytree(ours.directory, directory)
    processor.image_processor.save_pretrained(directory)
    processing = seva_jax.from_pretrained(directory).processing
    assert type(processing) is ours.family.processing
    tiles = [
        processing.tiles(photo, alone)
        for photo, alone in zip(photos, (False, False, True), strict=True)
    ]
    pixels = arrays["pixel_values"]
    if family == "internvl":
        pixels = np.split(pixels, np.cumsum([len(x) for x in tiles])[:-1])
    for own, given in zip(tiles, pixels, strict=True):
        np.testing.assert_allclose(own.transpose(0, 3, 1, 2), given[: len(own)], atol=1e-5)
