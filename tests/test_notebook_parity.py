"""`seva_jax.open` against transformers on a random directory: answers, and log-probs of answers."""

import json

import numpy as np
import pytest

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch")

from helpers_llava import random_llava, save  # noqa: E402
from PIL import Image  # noqa: E402
from transformers import CLIPImageProcessor, LlavaProcessor  # noqa: E402

import seva_jax  # noqa: E402
from seva_jax.convert.processor import write_chat_template  # noqa: E402
from seva_jax.text import Template  # noqa: E402
from seva_jax.text.tokenizer import word_tokenizer  # noqa: E402

WORDS = ["USER", "ASSISTANT", ":", "A", "chat", ".", "?", *(f"w{i}" for i in range(500))]
TEMPLATE = Template("A chat.")
QUESTION, ANSWERS = "w1 w2 w3 ?", ["w4 w5 w6 .", "w7", "w8 w9 w10 w11 w12"]


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Returns transformers' model and processor, and ours, of one directory."""
    tokenizer = word_tokenizer(WORDS)
    theirs = random_llava(image_token_index=4, text={"vocab_size": 512})
    theirs.generation_config.pad_token_id = 0
    directory = save(theirs, tmp_path_factory.mktemp("llava"))
    tokenizer.save_pretrained(directory)
    size = {"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}}
    images = CLIPImageProcessor(**size)
    images.save_pretrained(directory)
    fields = {"image_processor_type": "CLIPImageProcessor", **size}
    (directory / "preprocessor_config.json").write_text(json.dumps(fields))
    write_chat_template(directory, TEMPLATE)
    processor = LlavaProcessor(
        image_processor=images, tokenizer=tokenizer, patch_size=14,
        vision_feature_select_strategy="default", num_additional_image_tokens=1,
    )  # fmt: skip
    return theirs, processor, seva_jax.open(directory, dtype="float32")


@pytest.fixture(scope="module")
def picture():
    """Returns an image whose preparation resizes nothing: resizing is compared elsewhere."""
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (28, 28, 3), np.uint8))


def test_log_probs_of_answers(pair, picture):
    theirs, processor, ours = pair
    prompt = f"A chat. USER: <image>\n{QUESTION} ASSISTANT:"
    start = processor(images=picture, text=prompt, return_tensors="pt").input_ids.shape[1]
    scored = ours.score(picture, QUESTION, ANSWERS)
    for answer, one in zip(ANSWERS, scored, strict=True):
        text = f"{prompt} {answer}</s>"
        inputs = processor(images=picture, text=text, return_tensors="pt")
        with torch.no_grad():
            logits = theirs(**inputs).logits[0].float()
        ids = inputs.input_ids[0]
        logps = torch.log_softmax(logits[start - 1 : -1], -1)
        expected = logps[torch.arange(len(ids) - start), ids[start:]].numpy()
        assert one.tokens == (*answer.split(), "</s>")
        assert np.ptp(expected) > 0.5
        np.testing.assert_allclose(one.logps, expected, rtol=0, atol=1e-4)
        assert one.total == pytest.approx(float(expected.sum()), abs=1e-3)


def test_answers(pair, picture):
    theirs, processor, ours = pair
    for question in (QUESTION, "w20 w21 ?", "w30 ?"):
        prompt = f"A chat. USER: <image>\n{question} ASSISTANT:"
        inputs = processor(images=picture, text=prompt, return_tensors="pt")
        ids = theirs.generate(**inputs, max_new_tokens=8, do_sample=False)
        new = ids[0, inputs.input_ids.shape[1] :]
        expected = processor.tokenizer.decode(
            new, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        assert ours.answer(picture, question, max_new_tokens=8) == expected.strip()
