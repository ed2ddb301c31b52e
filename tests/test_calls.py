"""What pair builders ask of the model: kept as it comes, gone on with, never mistaken."""

import dataclasses
import json
from types import SimpleNamespace

import pytest
from test_rollout import MODEL, PROMPTS, SAMPLING, asker, load_image
from test_sampler import random_variables

from seva_jax.calls import Calls
from seva_jax.data.sources import PromptSet
from seva_jax.rollout.sampler import Sampling
from seva_jax.terminal import Progress
from seva_jax.types import DataError, Prompt


class Parts(SimpleNamespace):
    """What `Calls` needs of a run; counts what is asked, and may stop in the middle."""

    def __init__(self, path, stop_after=10**9):
        def bar(name, total, unit, initial=0):
            return Progress(name, total, unit, initial, shown=False)

        workdir = SimpleNamespace(path=path, writes=True, bar=bar)
        super().__init__(
            experiment=SimpleNamespace(seed=1), workdir=workdir, base_model=MODEL, asked=[],
            stop_after=stop_after,
        )  # fmt: skip

    def asker(self, variables, model):
        """As `Parts.asker`."""
        assert model is MODEL
        one = asker(variables, refill=4)

        def ask(prompts, load, sampling, start=0):
            for batch in one.ask(prompts, load, sampling, start=start):
                if len(self.asked) >= self.stop_after:
                    raise KeyboardInterrupt
                self.asked += [a.prompt.id for a in batch]
                yield batch

        return SimpleNamespace(ask=ask)


@pytest.fixture(scope="module")
def variables():
    """Of a model whose answers differ."""
    return random_variables(MODEL)


@pytest.fixture
def make(variables, tmp_path):
    """(stop_after) -> calls in one work directory, with how often the model was loaded."""

    def make(stop_after=10**9):
        parts, loads = Parts(tmp_path, stop_after), []

        def load():
            loads.append(1)
            return variables

        return Calls(parts, PromptSet(PROMPTS, load_image), load), parts.asked, loads

    return make


def test_answers_are_kept_and_gone_on_with(make, tmp_path):
    """Interrupted in the middle, the call goes on after the finished lines, with the same end."""
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
    """Prompts, beginnings, images or sampling: a stale file is not taken for this call's."""
    before = make()[0].answer("x", PROMPTS[:4], Sampling(6))
    changed = [
        (PROMPTS[:3], Sampling(6)),
        (PROMPTS[:4], Sampling(5)),
        (PROMPTS[:4], Sampling(6, repetition_penalty=1.5)),
        ([dataclasses.replace(p, start="a b") for p in PROMPTS[:4]], Sampling(6)),
        ([dataclasses.replace(p, images=("9",)) for p in PROMPTS[:4]], Sampling(6)),
        (PROMPTS[:4], Sampling(6)),
    ]
    assert "started again" not in capsys.readouterr().out
    for prompts, sampling in changed:
        calls, asked, _ = make()
        found = calls.answer("x", prompts, sampling)
        assert len(asked) == len(prompts)
        assert "x.jsonl holds a call with other arguments; started again" in capsys.readouterr().out
    assert found == before
    header, *lines = (tmp_path / "calls" / "x.jsonl").read_text().splitlines()
    assert list(json.loads(header)) == ["call"]
    assert len(lines) == 4


def test_nothing_asked_loads_nothing(make):
    """A builder may have nothing to ask."""
    calls, _, loads = make()
    assert calls.answer("none", [], SAMPLING) == []
    assert not loads


@pytest.mark.parametrize("name", ["", "a/b", "..", "a.b", "a\0b", "/etc"])
def test_names_of_calls(make, name):
    """They are names of files."""
    with pytest.raises(DataError, match="cannot name a call"):
        make()[0].answer(name, [], SAMPLING)


def test_two_calls_of_a_name(make):
    """The second would throw away what the first kept, in every run."""
    calls, _, _ = make()
    calls.answer("x", PROMPTS[:2], SAMPLING)
    with pytest.raises(DataError, match="two calls"):
        calls.answer("x", PROMPTS[2:4], SAMPLING)


def test_answers_go_on_from_a_start(make):
    """A beginning as the model itself would have said it changes nothing of the rest."""
    prompt = Prompt("p", "what is it", ("1",))
    whole = make()[0].answer("whole", [prompt], Sampling(6))[0].text
    words = whole.split()
    assert len(words) >= 4
    for number in (1, 3):
        start = " ".join(words[:number])
        begun = dataclasses.replace(prompt, start=start)
        reply = make()[0].answer(f"from {number}", [begun], Sampling(6 - number))[0]
        assert start + reply.text == whole
