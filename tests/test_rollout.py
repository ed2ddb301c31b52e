"""Finished rows take new prompts, and give the same answers as whole batches, in order."""

import collections
import hashlib
import itertools

import jax
import numpy as np
import pytest
from helpers_devices import mesh_of
from helpers_rollout import MODEL, PROMPTS, SAMPLING, engine, prompt_set
from tiny_models import noisy_variables

from seva_jax.corrupt import (
    DiffusionNoise,
    RandomInvert,
    Reverse,
    corruption_key,
    diffusion_schedule,
)
from seva_jax.images.preprocess import ImageProcessing
from seva_jax.inference import corrupted, rollouts
from seva_jax.inference.prefill_shapes import Prefills, PrefillShape
from seva_jax.inference.rollout_rows import RolloutRows, rollout_rows
from seva_jax.text.sampling import Sampling
from seva_jax.types import Prompt


@pytest.fixture(scope="module")
def variables():
    """Returns weights with which answers differ in content and in length."""
    return jax.tree.map(np.asarray, noisy_variables(MODEL))


CORRUPT = (DiffusionNoise(step=500),)


def rounds(one, sampling=SAMPLING, start=0, corrupt=CORRUPT):
    return list(one.answer(prompt_set(PROMPTS), sampling, corrupt, start))


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


def test_keys_of_rows_are_made_in_one_call(variables, expected, monkeypatch):
    """The host waits once for all rows that start together, not once for each."""
    calls, keys = [], {}

    def noted(name, real):
        def call(*arguments):
            calls.append(name)
            if name == "refill":
                given = np.asarray(jax.random.key_data(arguments[4]))
                keys.update(zip(np.asarray(arguments[5]).tolist(), given.tolist(), strict=True))
            return real(*arguments)

        return call

    for name in ("refill", "corruption_keys"):
        monkeypatch.setattr(rollouts, name, noted(name, getattr(rollouts, name)))
    monkeypatch.setattr(corrupted, "corruption_key", noted("image", corrupted.corruption_key))
    assert ask(engine(variables, 7, refill=2)) == expected
    assert calls.count("corruption_keys") == calls.count("refill") < len(PROMPTS)
    for tag in range(2 * len(PROMPTS)):
        key = jax.random.key(1, impl="threefry2x32")
        digest = hashlib.sha256(f"p{tag // 2}/answer".encode()).digest()
        for word in (*np.frombuffer(digest[:8], "<u4"), tag % 2):
            key = jax.random.fold_in(key, np.uint32(word))
        if tag // 2 not in (5, 6):
            assert keys[tag] == jax.random.key_data(key).tolist()
    assert calls.count("image") == sum(len(p.images) for p in PROMPTS if p.id not in ("p5", "p6"))


def test_images_are_prepared_once():
    """The corrupted copies of a prompt share its decoded and preprocessed images."""
    loaded, processed, processing = [], [], ImageProcessing(size=8)

    class Noted(ImageProcessing):
        def __call__(self, image_HWC):
            processed.append(1)
            return super().__call__(image_HWC)

    images = dict(
        zip("01", np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8), strict=True)
    )

    def load(name):
        loaded.append(name)
        return images[name]

    prompt = Prompt("p", "what", ("0", "1", "0"))
    corruptions = (DiffusionNoise(500), DiffusionNoise(800), RandomInvert(p=1.0), Reverse())
    made = corrupted.prompt_images(prompt, load, Noted(size=8), corruptions, 3)
    assert {variant.sizes for variant in made} == {((32, 32),) * 3}
    found = [variant.tiles_IHWC for variant in made]
    assert sorted(loaded) == ["0", "1"]
    assert len(processed) == 2 + 3  # an inverted image is another image
    clean = np.stack([processing(images[name]) for name in prompt.images])
    np.testing.assert_array_equal(found[0], clean)
    np.testing.assert_array_equal(found[4], clean[::-1])
    inverted = [processing(255 - images[name]) for name in prompt.images]
    np.testing.assert_array_equal(found[3], np.stack(inverted))
    for index, step in enumerate((500, 800)):
        root_abar, sigma = diffusion_schedule()
        noise = [
            jax.random.normal(corruption_key(3, f"p/{i}", index), clean[i].shape) for i in range(3)
        ]
        expected = root_abar[step] * clean + sigma[step] * np.stack(noise)
        np.testing.assert_allclose(found[1 + index], expected, rtol=1e-5, atol=1e-5)


def test_int8_cache_is_close(variables):
    """It keeps most greedy answers on clean images; both ways of batching give the same."""
    exact = ask(engine(variables), Sampling(6), corrupt=())
    int8 = ask(engine(variables, cache="int8"), Sampling(6), corrupt=())
    assert ask(engine(variables, refill=4, cache="int8"), Sampling(6), corrupt=()) == int8
    same = [a == b for a, b in zip(exact, int8, strict=True)]
    assert np.mean(same) > 0.7


@pytest.mark.parametrize(
    ("free", "started", "hungry"),
    [
        ([0, 1, 2, 3], 0, False),  # of one device, which starts a single row: the others go on
        ([0, 1, 4, 5], 1, False),  # the rest could start one answer of two
        ([0, 1, 4, 5, 8, 12], 2, False),
        (list(range(16)), 2, True),
    ],
)
def test_rows_that_cannot_start_wait(variables, free, started, hungry):
    """Answers are decoded meanwhile, or no other row would ever become free."""
    layout = RolloutRows(rows=16, fresh=4, parts=4, group=8)
    prefills = Prefills((PrefillShape(32, 1),), np.zeros(9, int))
    prepared = iter([rollouts._Prepared(i, [], "") for i in range(9)])
    taken = engine(variables)._take(
        prepared, collections.deque(range(9)), prefills, 0, np.array(free), layout, 2
    )
    assert (len(taken.items), taken.hungry) == (started, hungry)
    assert len({free_row // 4 for _, free_row in taken.pairs}) == 2 * started


def test_layout_of_rows():
    """Rows and fresh rows divide by devices and hold a prompt's variants."""
    for size, refill, variants in ((64, 4, 2), (5, 4, 3), (64, 100, 2), (1, 1, 4)):
        for shape in ((1, 1, 1), (2, 2, 1), (4, 2, 1)):
            found = rollout_rows(size, refill, variants, mesh_of(*shape), 1)
            assert found.parts == np.prod(shape)
            assert found.rows % found.parts == found.fresh % found.parts == 0
            assert variants <= found.fresh <= found.rows
            assert found.group * variants <= found.rows
