"""A tiny model with a tokenizer, prompts and images for it, and an engine that answers them."""

import dataclasses

import numpy as np
from helpers_devices import mesh_of
from tiny_models import TINY

from seva_jax.corrupt.sequence import captioned
from seva_jax.data import PromptSet
from seva_jax.images import ImageLayouts, ImageProcessing
from seva_jax.inference.rollouts import RolloutEngine
from seva_jax.models import Llava
from seva_jax.text.encode import Encoder
from seva_jax.text.sampling import Sampling
from seva_jax.text.templates import PLAIN
from seva_jax.text.tokenizer import word_tokenizer
from seva_jax.types import ExampleError, Prompt

TOKENIZER = word_tokenizer(("USER", "ASSISTANT", ":", "what", "is", "it", *"abcdefghijklmnopqrs"))
IMAGE = TOKENIZER.convert_tokens_to_ids("<image>")
CONFIG = dataclasses.replace(
    TINY, image_token_id=IMAGE, text=dataclasses.replace(TINY.text, vocab_size=len(TOKENIZER))
)
MODEL = Llava(CONFIG)
PROMPTS = [
    Prompt(f"p{i}", " ".join(["what is it"] + ["a b c d e"] * (i % 3)), (f"{i}",) * (i % 4 != 3))
    for i in range(23)
]


def _mixed(i):
    """Makes one of two kinds of prompts: short ones without images, and long ones with up to two.

    All have captions, and three cannot be answered.
    """
    long = i % 4 == 1
    words = {6: "a b c " * 40, 7: "</s>"}.get(i, "what is it")
    captions = ["a b c d e"[: 5 + 2 * (i % 3)]] * (8 if long else 2)
    meta = {"question": words, "captions": captions}
    images = tuple(map(str, range(i, i + 1 + i % 2 * (i % 3 > 0)))) if long else ()
    return Prompt(f"m{i}", captioned(words, captions), images, meta)


MIXED = [_mixed(i) for i in range(96)]
SAMPLING = Sampling(12, temperature=1.5)


def load_image(name):
    """Returns noise, other for every name; two images are broken."""
    if name in ("5", "6"):
        raise ExampleError("truncated file", "unreadable image")
    return np.random.default_rng(int(name)).integers(0, 256, (8, 8, 3), np.uint8)


def prompt_set(prompts):
    """Makes a data set of prompts about `load_image`'s images."""
    return PromptSet(prompts, load_image)


def engine(variables, batch_size=8, mesh=(1, 1, 1), **options):
    """Makes an engine on a mesh of the first devices."""
    processing = ImageProcessing(size=8)
    layouts = ImageLayouts(processing, CONFIG.tile_features)
    return RolloutEngine(
        model=MODEL,
        variables=variables,
        encoder=Encoder(TOKENIZER, PLAIN, IMAGE, layouts, 64),
        processing=processing,
        mesh=mesh_of(*mesh),
        batch_size=batch_size,
        seed=1,
        **options,
    )
