"""Rows that are done take new prompts: the same answers as whole batches, in order."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest
from test_sampler import random_variables
from test_step import CONFIG

from seva_jax.corrupt import DiffusionNoise
from seva_jax.images.preprocess import ImageProcessing
from seva_jax.inference.rollouts import RolloutEngine, rollout_rows
from seva_jax.models import Llava
from seva_jax.sharding import MeshShape
from seva_jax.text.encode import Encoder
from seva_jax.text.sampling import Sampling
from seva_jax.text.templates import PLAIN
from seva_jax.text.tokenizer import word_tokenizer
from seva_jax.types import ExampleError, Prompt

TOKENIZER = word_tokenizer(("USER", "ASSISTANT", ":", "what", "is", "it", *"abcdefghijklmnopqrs"))
IMAGE = TOKENIZER.convert_tokens_to_ids("<image>")
CONFIG_HERE = dataclasses.replace(
    CONFIG,
    image_token_id=IMAGE,
    text=dataclasses.replace(CONFIG.text, vocab_size=len(TOKENIZER)),
)
MODEL = Llava(CONFIG_HERE)
PROMPTS = [
    Prompt(f"p{i}", " ".join(["what is it"] + ["a b c d e"] * (i % 3)), (f"{i}",) * (i % 4 != 3))
    for i in range(23)
]


@pytest.fixture(scope="module")
def variables():
    """Answers differ in content and in length."""
    return jax.tree.map(np.asarray, random_variables(MODEL))


def load_image(name):
    """Noise of its own for every image; two of them are broken."""
    if name in ("5", "6"):
        raise ExampleError("truncated file", "unreadable image")
    return np.random.default_rng(int(name)).integers(0, 256, (8, 8, 3), np.uint8)


def engine(variables, batch_size=8, mesh=(1, 1, 1), **options):
    devices = jax.devices()[: int(np.prod(mesh))]
    return RolloutEngine(
        model=MODEL,
        variables=variables,
        encoder=Encoder(TOKENIZER, PLAIN, IMAGE, CONFIG_HERE.tokens_per_image, 64),
        processing=ImageProcessing(size=8),
        mesh=MeshShape(*mesh).make(devices),
        batch_size=batch_size,
        seed=1,
        **options,
    )


SAMPLING = Sampling(12, temperature=1.5)
CORRUPT = (DiffusionNoise(step=500),)


def rounds(one, sampling=SAMPLING, start=0, corrupt=CORRUPT):
    return list(one.answer(PROMPTS, load_image, sampling, corrupt, start))


def ask(*arguments, **options):
    return list(itertools.chain(*rounds(*arguments, **options)))


@pytest.fixture(scope="module")
def expected(variables):
    """By whole batches."""
    found = ask(engine(variables))
    assert [a.prompt for a in found] == PROMPTS
    assert [a.prompt.id for a in found if a.dropped] == ["p5", "p6"]
    lengths = {len(text.split()) for a in found for text in a.answers}
    assert len(lengths) > 5  # or there is nothing to refill
    return found


@pytest.mark.parametrize(("refill", "batch_size"), [(2, 7), (8, 16)])
def test_refilled_rows_answer_the_same(variables, expected, refill, batch_size):
    """Whatever neighbours a row has, and whenever its answer began."""
    assert ask(engine(variables, batch_size, refill=refill)) == expected


def test_a_repetition_penalty_under_refill(variables):
    """A row that takes a new prompt forgets the tokens of the old one."""
    sampling = Sampling(12, repetition_penalty=1.3)
    plain, expected = ask(engine(variables), Sampling(12)), ask(engine(variables), sampling)
    assert plain != expected
    assert ask(engine(variables, 7, refill=4), sampling) == expected
    int8 = ask(engine(variables, cache="int8"), sampling)
    assert ask(engine(variables, refill=4, cache="int8"), sampling) == int8
    assert ask(engine(variables, 16, (1, 2, 2), refill=2), sampling) == expected


def test_answers_come_as_they_complete(variables, expected):
    """Not all at the end; and from any start on."""
    assert len(rounds(engine(variables, refill=4))) > 5
    assert ask(engine(variables, refill=4), start=9) == expected[9:]
    assert ask(engine(variables, refill=4), start=len(PROMPTS)) == []


def test_one_token_answers(variables):
    """Rows that are done when they start."""
    whole = ask(engine(variables), Sampling(1))
    assert ask(engine(variables, refill=4), Sampling(1)) == whole
    assert {len(a.answers) for a in whole} == {0, 2}


@pytest.mark.parametrize("mesh", [(2, 2, 1), (1, 2, 2)], ids=str)
def test_rows_over_devices(variables, expected, mesh):
    """Each device refills its own rows."""
    assert ask(engine(variables, 16, mesh, refill=2)) == expected


def test_int8_cache_is_close(variables):
    """Most greedy answers on clean images stay, in both ways of batching the very same."""
    exact = ask(engine(variables), Sampling(6), corrupt=())
    int8 = ask(engine(variables, cache="int8"), Sampling(6), corrupt=())
    assert ask(engine(variables, refill=4, cache="int8"), Sampling(6), corrupt=()) == int8
    same = [a == b for a, b in zip(exact, int8, strict=True)]
    assert np.mean(same) > 0.7


def test_layout_of_rows():
    """Rows and fresh rows divide by devices and hold a prompt's variants."""
    for size, refill, variants in ((64, 4, 2), (5, 4, 3), (64, 100, 2), (1, 1, 4)):
        for shape in ((1, 1, 1), (2, 2, 1), (4, 2, 1)):
            mesh = MeshShape(*shape).make(jax.devices()[: int(np.prod(shape))])
            found = rollout_rows(size, refill, variants, mesh, 1)
            assert found.parts == np.prod(shape)
            assert found.rows % found.parts == found.fresh % found.parts == 0
            assert variants <= found.fresh <= found.rows
            assert found.group * variants <= found.rows
