"""What pair builders ask of the model: answers are kept, resumed and never mistaken for others."""

import dataclasses
import json

import numpy as np
import pytest
from helpers_rollout import CONFIG, MODEL, PROMPTS, SAMPLING, TOKENIZER, load_image
from tiny_models import noisy_variables

from seva_jax.config import (
    Assets,
    BaseModel,
    ComputeOptions,
    Experiment,
    RolloutOptions,
    TextOptions,
)
from seva_jax.data import PromptSet
from seva_jax.images import ImageProcessing, InternvlProcessing
from seva_jax.images.compose import Box
from seva_jax.inference import rollouts
from seva_jax.inference.rollouts import RolloutEngine
from seva_jax.run.context import RunContext
from seva_jax.run.recorded_model import RecordedModel
from seva_jax.text import PLAIN, Sampling
from seva_jax.training import TrainOptions
from seva_jax.types import DataError, Prompt, View

PROCESSING = ImageProcessing(size=8)


@dataclasses.dataclass(frozen=True)
class TinyBase(BaseModel):
    """The tiny model of `helpers_rollout`."""

    processing: ImageProcessing = PROCESSING

    def assets(self):
        return Assets(CONFIG, TOKENIZER, self.processing)


@pytest.fixture(scope="module")
def variables():
    """Returns weights with which answers differ."""
    return noisy_variables(MODEL)


@pytest.fixture
def make(variables, tmp_path, monkeypatch, one_device):
    """Returns a function of `stop_after` that makes the model in one work directory.

    It returns the model, what it was asked, and how often it was loaded. Answered prompts and read
    images are counted, and after `stop_after` of them the call is interrupted.
    """
    answer = RolloutEngine.answer

    def make(stop_after=10**9, processing=PROCESSING):
        config = Experiment(
            workdir=str(tmp_path),
            seed=1,
            base=TinyBase(processing),
            rollout=RolloutOptions(batch_size=4, refill=4),
            text=TextOptions(PLAIN, PLAIN, max_length=64),
            train=TrainOptions(batch_size=8, micro_batches=2),
            compute=ComputeOptions("float32", dtype="float32", remat="none", row_shapes=1),
        )
        asked, loads = [], []

        def load(name):
            if len(asked) >= stop_after:
                raise KeyboardInterrupt
            asked.append(name)
            return load_image(name)

        def answer_some(self, data, sampling, start=0):
            for batch in answer(self, PromptSet(data.prompts, load_image), sampling, start=start):
                if len(asked) >= stop_after:
                    raise KeyboardInterrupt
                asked.extend(a.prompt.id for a in batch)
                yield batch

        def loaded():
            loads.append(1)
            return variables

        monkeypatch.setattr(RolloutEngine, "answer", answer_some)
        data = PromptSet(PROMPTS, load)
        ctx = RunContext.open(config)
        return RecordedModel(ctx, data, loaded, lambda: variables), asked, loads

    return make


def test_answers_are_kept_and_resumed(make, tmp_path):
    """An interrupted call continues after the finished lines and ends the same."""
    whole = make()[0].answer("whole", PROMPTS, SAMPLING)
    assert [r.dropped for r in whole].count("unreadable image") == 2
    assert len({r.text for r in whole}) > 10

    calls, asked, _ = make(stop_after=7)
    with pytest.raises(KeyboardInterrupt):
        calls.answer("part", PROMPTS, SAMPLING)
    assert 7 <= len(asked) < len(PROMPTS)
    path = tmp_path / "calls" / "part.jsonl"
    with path.open("ab") as file:
        file.write(b'{"text": "cut off by a ki')
    calls, again, loads = make()
    replies = calls.answer("part", PROMPTS, SAMPLING)
    assert [*asked, *again] == [f"part/{p.id}" for p in PROMPTS]
    assert len(loads) == 1

    calls, third, loads = make()
    assert calls.answer("part", PROMPTS, SAMPLING) == replies
    assert (third, loads) == ([], [])  # the model is not even loaded

    # At temperature 0 the name of a call makes no difference.
    greedy = [make()[0].answer(name, PROMPTS, Sampling(6)) for name in ("a", "b")]
    assert greedy[0] == greedy[1]
    assert replies != whole


def test_a_call_with_other_arguments_is_started_again(make, tmp_path, capsys):
    """Other prompts, starts, images or sampling never get the answers of an old file."""
    before = make()[0].answer("x", PROMPTS[:4], Sampling(6))
    changed = [
        (PROMPTS[:3], Sampling(6)),
        (PROMPTS[:4], Sampling(6, repetition_penalty=1.5)),
        ([dataclasses.replace(p, start="a b") for p in PROMPTS[:4]], Sampling(6)),
        ([dataclasses.replace(p, images=("9",)) for p in PROMPTS[:4]], Sampling(6)),
        (PROMPTS[:4], Sampling(6)),
    ]
    assert "is started again" not in capsys.readouterr().out
    for prompts, sampling in changed:
        calls, asked, _ = make()
        found = calls.answer("x", prompts, sampling)
        assert len(asked) == len(prompts)
        assert "x.jsonl was made from other inputs; it is started again" in capsys.readouterr().out
    assert found == before
    header, *lines = (tmp_path / "calls" / "x.jsonl").read_text().splitlines()
    assert list(json.loads(header)) == ["call"]
    assert len(lines) == 4


def test_nothing_asked_loads_nothing(make):
    """A builder may have nothing to ask."""
    calls, _, loads = make()
    assert calls.answer("none", [], SAMPLING) == []
    assert not loads


def test_weights_move_once_for_all_calls(make, monkeypatch):
    """A builder may ask several times, and measure in between."""
    moves, form = [], rollouts.answering_form
    monkeypatch.setattr(rollouts, "answering_form", lambda *args: moves.append(1) or form(*args))
    calls, asked, loads = make()
    for name in ("a", "b"):
        calls.answer(name, PROMPTS[:2], SAMPLING)
    assert len(asked) == 4
    assert (len(moves), len(loads)) == (1, 1)


@pytest.mark.parametrize("name", ["", "a/b", "..", "a.b", "a\0b", "/etc"])
def test_names_of_calls(make, name):
    """They become names of files."""
    with pytest.raises(DataError, match="cannot name a call"):
        make()[0].answer(name, [], SAMPLING)


def test_two_calls_of_a_name(make):
    """In every run the second would discard what the first had kept."""
    calls, _, _ = make()
    calls.answer("x", PROMPTS[:2], SAMPLING)
    with pytest.raises(DataError, match="two calls"):
        calls.answer("x", PROMPTS[2:4], SAMPLING)


def test_answers_continue_from_a_start(make):
    """A start that the model itself would have said does not change the rest."""
    prompt = Prompt("p", "what is it", ("1",))
    whole = make()[0].answer("whole", [prompt], Sampling(6))[0].text
    words = whole.split()
    assert len(words) >= 4
    for number in (1, 3):
        start = " ".join(words[:number])
        begun = dataclasses.replace(prompt, start=start)
        reply = make()[0].answer(f"from {number}", [begun], Sampling(6 - number))[0]
        assert start + reply.text == whole


# --- measures -------------------------------------------------------------------------------------

VIEWS = [View(p, (("a b", "c", "k l m n")[i % 3], "not read")) for i, p in enumerate(PROMPTS)]
NUM = CONFIG.tile_features
LATER = np.arange(NUM) >= NUM // 2  # the lower half of an image
TARGETS = [np.tile(LATER, len(v.prompt.images)) for v in VIEWS]


def equal(found, others):
    """Returns whether two lists of measures are the same, bit for bit."""
    for one, other in zip(found, others, strict=True):
        assert (one is None) == (other is None)
        for a, b in zip(one or (), other or (), strict=True):
            np.testing.assert_array_equal(a, b)


def test_measures_are_kept_and_resumed(make):
    """Numbers are the same after an interruption; None stands for what cannot be read."""
    views = [*VIEWS[:7], View(Prompt("long", "what " * 80, ()), ("a",)), *VIEWS[7:]]
    targets = [*TARGETS[:7], np.zeros(0, bool), *TARGETS[7:]]
    whole = make()[0].measure("whole", views, 1, targets)
    assert [i for i, m in enumerate(whole) if m is None] == [5, 6, 7]
    calls, _, _ = make(stop_after=12)
    with pytest.raises(KeyboardInterrupt):
        calls.measure("part", views, 1, targets)
    equal(make()[0].measure("part", views, 1, targets), whole)
    calls, read, loads = make()
    equal(calls.measure("part", views, 1, targets), whole)
    assert (read, loads) == ([], [])

    for view, one in zip(views, whole, strict=True):
        if one is None:
            continue
        assert len(one.logp_T) == len(view.answers[0].split()) + 1  # and the end token
        assert (one.best_logp_T >= one.logp_T).all()
        assert np.isnan(one.attention) == (not view.prompt.images)
    # Shares of the two halves of an image make one.
    others = [~target for target in targets]
    for one, other in zip(whole, make()[0].measure("rest", views, 1, others), strict=True):
        if one is not None and not np.isnan(one.attention):
            np.testing.assert_allclose(one.attention + other.attention, 1, atol=1e-6)
            assert 0.02 < one.attention < 0.98
    (first, *_), (again, *_) = whole, make()[0].measure("none", views[:4])
    assert np.isnan(again.attention)
    np.testing.assert_allclose(first.logp_T, again.logp_T, atol=1e-5)


def test_targets_and_layers_must_fit(make):
    """The problem is named before the model is loaded."""
    calls, _, loads = make()
    with pytest.raises(DataError, match=r"layer 2, and the model's are 0 to 1"):
        calls.measure("x", VIEWS[:1], 2, TARGETS[:1])
    with pytest.raises(DataError, match="has 4 image tokens"):
        calls.measure("x", VIEWS[:1], 1, [np.ones(3, bool)])
    assert not loads


def test_tokens_of_an_image_and_of_a_box(make):
    """They are all of an image, or the part that the processing shows."""
    calls, _, _ = make()
    prompt = Prompt("p", "what is it", ("1", "2"))
    first, second = [True] * NUM + [False] * NUM, [False] * NUM + [True] * NUM
    assert calls.image_tokens(prompt, 0).tolist() == first
    assert calls.image_tokens(prompt, 1).tolist() == second
    part = [False] * NUM + [True, False] * (NUM // 2)
    assert calls.image_tokens(prompt, 1, Box(0, 0, 5, 10, 10, 10)).tolist() == part


def test_attention_to_parts_of_pictures_in_tiles(make):
    """The shares of a part and of the rest make one, whatever tiles a picture becomes."""
    calls, _, _ = make(processing=InternvlProcessing(size=8, min_tiles=2, max_tiles=6))
    views = [view for view in VIEWS[:5] if view.prompt.images]
    box = Box(0, 0, 5, 10, 10, 10)
    targets = [calls.image_tokens(view.prompt, 0, box) for view in views]
    for target in targets:
        assert len(target) > NUM
        assert 0 < target.sum() < len(target)
    parts = calls.measure("parts", views, 1, targets)
    rest = calls.measure("rest", views, 1, [~target for target in targets])
    for one, other in zip(parts, rest, strict=True):
        if not np.isnan(one.attention):  # of an answer of one token
            np.testing.assert_allclose(one.attention + other.attention, 1, atol=1e-6)
            assert 0.02 < one.attention < 0.98
    with pytest.raises(DataError, match=f"has {len(targets[0])} image tokens"):
        calls.measure("x", views[:1], 1, [targets[0][1:]])


# --- features -------------------------------------------------------------------------------------


def test_features_are_kept_and_resumed(make, capsys):
    """They have length 1; an unreadable image is reported and has zeros."""
    names = [str(i) for i in (0, 1, 5, 2, 3, 0, 4)]
    whole = make()[0].features("whole", names)
    assert "whole: 1 of 7 images cannot be read" in capsys.readouterr().out
    assert whole.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(whole, axis=1), [1, 1, 0, 1, 1, 1, 1], atol=1e-6)
    np.testing.assert_allclose(whole[0], whole[5], atol=1e-6)
    assert (whole[0] @ whole[[1, 3, 4]].T < 0.9999).all()

    calls, _, _ = make(stop_after=5)
    with pytest.raises(KeyboardInterrupt):
        calls.features("part", names)
    calls, read, _ = make()
    np.testing.assert_array_equal(calls.features("part", names), whole)
    assert sorted(read) == ["0", "3", "4"]  # without the four of the first group
    calls, read, loads = make()
    np.testing.assert_array_equal(calls.features("part", names), whole)
    assert (read, loads) == ([], [])


def test_features_are_means_of_the_tower(make, variables):
    """The mean is over the patches that the model selects."""
    (found,) = make()[0].features("x", ["2"])
    pixels = PROCESSING(load_image("2"))[None, None]
    features = np.asarray(MODEL.apply(variables, pixels, method="features"))[0]
    mean = features.mean(0)
    np.testing.assert_allclose(found, mean / np.linalg.norm(mean), atol=1e-6)
