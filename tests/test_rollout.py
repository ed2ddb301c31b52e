"""Finished rows take new prompts, and give the same answers as whole batches, in order."""

import itertools

import jax
import numpy as np
import pytest
from helpers_devices import mesh_of
from helpers_rollout import MODEL, PROMPTS, SAMPLING, engine, load_image
from tiny_models import noisy_variables

from seva_jax.corrupt import DiffusionNoise
from seva_jax.inference.rollouts import rollout_rows
from seva_jax.text.sampling import Sampling


@pytest.fixture(scope="module")
def variables():
    """Returns weights with which answers differ in content and in length."""
    return jax.tree.map(np.asarray, noisy_variables(MODEL))


CORRUPT = (DiffusionNoise(step=500),)


def rounds(one, sampling=SAMPLING, start=0, corrupt=CORRUPT):
    return list(one.answer(PROMPTS, load_image, sampling, corrupt, start))


def ask(*arguments, **options):
    return list(itertools.chain(*rounds(*arguments, **options)))


@pytest.fixture(scope="module")
def expected(variables):
    """Returns the answers of whole batches."""
    found = ask(engine(variables))
    assert [a.prompt for a in found] == PROMPTS
    assert [a.prompt.id for a in found if a.dropped] == ["p5", "p6"]
    lengths = {len(text.split()) for a in found for text in a.answers}
    assert len(lengths) > 5  # or there is nothing to refill
    return found


@pytest.mark.parametrize(("refill", "batch_size"), [(2, 7), (8, 16)])
def test_refilled_rows_answer_the_same(variables, expected, refill, batch_size):
    """It matters neither which neighbours a row has nor when its answer started."""
    assert ask(engine(variables, batch_size, refill=refill)) == expected


def test_a_repetition_penalty_under_refill(variables):
    """A row that takes a new prompt forgets the tokens of the old one."""
    sampling = Sampling(12, repetition_penalty=1.3)
    plain, expected = ask(engine(variables), Sampling(12)), ask(engine(variables), sampling)
    assert plain != expected
    assert ask(engine(variables, 7, refill=4), sampling) == expected
    int8 = ask(engine(variables, cache="int8"), sampling)
    assert ask(engine(variables, refill=4, cache="int8"), sampling) == int8
    assert ask(engine(variables, 16, (1, 2, 2), refill=2, tensor=2), sampling) == expected


def test_answers_come_as_they_complete(variables, expected):
    """They do not all come at the end, and may start at any prompt."""
    assert len(rounds(engine(variables, refill=4))) > 5
    assert ask(engine(variables, refill=4), start=9) == expected[9:]
    assert ask(engine(variables, refill=4), start=len(PROMPTS)) == []


def test_one_token_answers(variables):
    """Rows may be finished when they start."""
    whole = ask(engine(variables), Sampling(1))
    assert ask(engine(variables, refill=4), Sampling(1)) == whole
    assert {len(a.answers) for a in whole} == {0, 2}


@pytest.mark.parametrize(
    ("mesh", "tensor"), [((2, 2, 1), 0), ((1, 2, 2), 2), ((1, 4, 1), 2)], ids=str
)
def test_rows_over_devices(variables, expected, mesh, tensor):
    """Each group of devices refills its own rows; the layout of training does not matter."""
    assert ask(engine(variables, 16, mesh, refill=2, tensor=tensor)) == expected


def test_int8_cache_is_close(variables):
    """It keeps most greedy answers on clean images; both ways of batching give the same."""
    exact = ask(engine(variables), Sampling(6), corrupt=())
    int8 = ask(engine(variables, cache="int8"), Sampling(6), corrupt=())
    assert ask(engine(variables, refill=4, cache="int8"), Sampling(6), corrupt=()) == int8
    same = [a == b for a, b in zip(exact, int8, strict=True)]
    assert np.mean(same) > 0.7


def test_layout_of_rows():
    """Rows and fresh rows divide by devices and hold a prompt's variants."""
    for size, refill, variants in ((64, 4, 2), (5, 4, 3), (64, 100, 2), (1, 1, 4)):
        for shape in ((1, 1, 1), (2, 2, 1), (4, 2, 1)):
            found = rollout_rows(size, refill, variants, mesh_of(*shape), 1)
            assert found.parts == np.prod(shape)
            assert found.rows % found.parts == found.fresh % found.parts == 0
            assert variants <= found.fresh <= found.rows
            assert found.group * variants <= found.rows
