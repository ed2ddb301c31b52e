"""Few shapes of prefill, chosen by lengths; answers do not depend on them."""

import dataclasses
import itertools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers_rollout import MIXED, MODEL, engine, prompt_set
from helpers_run import environment
from tiny_models import noisy_variables

from seva_jax.corrupt import DiffusionNoise, Drop
from seva_jax.inference import rollouts
from seva_jax.inference.prefill_shapes import Prefills, PrefillShape
from seva_jax.text.sampling import Sampling

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def variables():
    """Returns weights with which answers differ in content and in length."""
    return noisy_variables(MODEL)


# --- the choice -----------------------------------------------------------------------------------


def padded(lengths, widths):
    """Returns the tokens of all prompts, each padded to the smallest width that holds it."""
    return sum(min(w for w in widths if w >= length) for length in lengths)


def best(lengths, num):
    """Returns the fewest tokens with `num` widths, by trying all."""
    widths = sorted({-(-length // 32) * 32 for length in lengths})
    rest = itertools.combinations(widths[:-1], min(num, len(widths)) - 1)
    return min(padded(lengths, (*some, widths[-1])) for some in rest)


@pytest.mark.parametrize("seed", range(5))
def test_no_other_widths_need_fewer_tokens(seed):
    """One more would save less than a tenth, or there are four."""
    rng = np.random.default_rng(seed)
    spread = (2.0, 1.0, 0.5, 0.1, 0.02)[seed]
    lengths = np.exp(rng.normal(4.5, spread, 500)).astype(int).clip(1, 1000).tolist()
    shapes = Prefills.of(lengths, [1] * 500, 0.1).shapes
    assert padded(lengths, [s.width for s in shapes]) == best(lengths, len(shapes))
    for num in range(2, min(len(shapes) + 1, 4) + 1):
        worth = best(lengths, num) <= 0.9 * best(lengths, num - 1)
        assert worth == (num <= len(shapes))


def test_compiling_has_to_pay():
    """A program is worth as much as 16 prefills of the largest shape."""
    lengths = [32] * 200 + [640] * 10  # 190 of the largest can be saved
    for at_once, num in ((1, 2), (11, 2), (12, 1), (64, 1)):
        assert len(Prefills.of(lengths, [1] * 210, at_once).shapes) == num


def test_images_of_shapes():
    """Prompts that are not answered widen nothing; text alone needs no image."""
    lengths, images = [20] * 500 + [600] * 400, [0] * 500 + [1] * 390 + [2] * 10
    chosen = Prefills.of([*lengths, 0], [*images, 50], 1)
    assert chosen.shapes == ((32, 0), (608, 2))
    assert chosen.needed_N.tolist() == [0] * 500 + [1] * 400 + [0]
    assert str(chosen) == "2 prefill programs: 32 tokens and no image; 608 tokens and 2 image tiles"
    assert str(Prefills.of([600, 0], [1, 0], 1)) == "1 prefill program: 608 tokens and 1 image tile"
    for none in ([], [0, 0]):
        assert Prefills.of(none, none, 1).shapes == (PrefillShape(32, 0),)


def test_prompts_move_within_windows():
    """Neighbouring windows meet at the same shape."""
    chosen = Prefills((PrefillShape(32, 0), PrefillShape(64, 0)), np.array([1, 0, 0, 1] * 3))
    phases = chosen.phases(5)
    assert phases.tolist() == [1, 0, 0, 1, 1, 3, 3, 2, 2, 3, 4, 5]
    assert [chosen.shape_of(phase) for phase in phases] == chosen.needed_N.tolist()
    same = dataclasses.replace(chosen, needed_N=np.zeros(12, int))
    assert sorted(range(12), key=same.phases(5).tolist().__getitem__) == list(range(12))


# --- answers --------------------------------------------------------------------------------------


def ask(one, sampling, corrupt=(), start=0, prefills=None):
    answers = one.answer(prompt_set(MIXED), sampling, corrupt, start, prefills)
    return list(itertools.chain(*answers))


def one_shape(one, corrupt=()):
    """Returns the largest of the shapes alone."""
    chosen = one.prefills(prompt_set(MIXED), corrupt)
    assert len(chosen.shapes) > 1
    return Prefills(chosen.shapes[-1:], np.zeros(len(MIXED), int))


CLEAN, CHANGED = (), (DiffusionNoise(500), Drop(of="captions"))


@pytest.mark.parametrize(
    ("temperature", "corrupt"),
    [(0.0, CLEAN), (0.0, CHANGED), (1.5, CHANGED)],
    ids=["clean", "changed", "sampled"],
)
def test_answers_are_those_of_one_shape(variables, monkeypatch, temperature, corrupt):
    """It holds for dropped prompts, several images, and corrupted copies with other questions."""
    seen, widths, refill = [], {}, rollouts.refill

    def noted(sampler, variables, state, batch, keys, tags, *rest):
        seen.append((batch.tokens_BS.shape[1], batch.pixels_BIHWC.shape[1]))
        widths.update(dict.fromkeys(np.asarray(tags).tolist(), seen[-1]))
        return refill(sampler, variables, state, batch, keys, tags, *rest)

    monkeypatch.setattr(rollouts, "refill", noted)
    one, sampling = engine(variables, refill=4), Sampling(5, temperature=temperature)
    expected = ask(one, sampling, corrupt, prefills=one_shape(one, corrupt))
    assert set(seen) == {(64, 2)}
    before = len(seen)
    seen.clear()
    assert ask(one, sampling, corrupt) == expected
    assert set(seen) == {(32, 0), (64, 2)}
    needed = one.prefills(prompt_set(MIXED), corrupt).needed_N
    variants = 1 + len(corrupt)
    assert all(
        s == [(32, 0), (64, 2)][needed[tag // variants]] for tag, s in widths.items() if tag >= 0
    )
    windows = -(-len(MIXED) // (8 * (8 // variants)))
    assert len(seen) <= before + windows  # prompts of one shape start together
    assert seen.count((32, 0)) > len(seen) / 2
    assert [a.prompt for a in expected] == MIXED
    assert {a.prompt.id: a.dropped for a in expected if a.dropped} == {
        "m5": "unreadable image", "m6": "too long", "m7": "special token in question"
    }  # fmt: skip
    assert len({a.answers for a in expected}) > 20
    if corrupt:
        assert ask(one, sampling, corrupt, start=71) == expected[71:]


def test_one_shape_over_devices(variables):
    """Each device starts its own rows."""
    one, sampling = engine(variables, refill=4), Sampling(3, temperature=1.5)
    expected = ask(one, sampling, prefills=one_shape(one))
    split = engine(variables, 8, (2, 1, 2), refill=8)
    assert len(split.prefills(prompt_set(MIXED)).shapes) > 1
    assert ask(split, sampling) == expected


def test_a_prompt_that_is_too_long_widens_nothing(variables):
    """One that is dropped does not take memory from the others."""
    alone = engine(variables).prefills(prompt_set([p for p in MIXED if len(p.question) < 100]))
    assert engine(variables).prefills(prompt_set(MIXED)).shapes[-1] == alone.shapes[-1] == (64, 2)


@pytest.mark.slow
def test_processes_agree(variables, tmp_path):
    """Each tokenises and prepares its share; all start the same shape."""
    command = [
        *(ROOT / "launch" / "local.py", "--processes", 2, "--devices", 1, "--grace", 40, "--"),
        *(sys.executable, ROOT / "tests" / "lean.py", "rollout_worker", tmp_path),
    ]
    subprocess.run([sys.executable, *map(str, command)], env=environment(), timeout=300, check=True)
    one, sampling = engine(variables, refill=4), Sampling(5, temperature=1.5)
    expected = [
        [a.prompt.id, list(a.answers), a.dropped]
        for a in ask(one, sampling, CHANGED, prefills=one_shape(one, CHANGED))
    ]
    for process in range(2):
        found = json.loads((tmp_path / f"{process}.json").read_text())
        assert found["answers"] == expected
        assert {tuple(shape) for shape in found["shapes"]} == {(32, 0), (64, 2)}
