"""Judges: an endpoint that fails in every way, a transcript, estimated cost, and a secret key."""

import json

import pytest
from helpers_judge import chat, server

from seva_jax.config.config_files import read_config
from seva_jax.config.experiment import Experiment
from seva_jax.config.source import flatten, to_source
from seva_jax.evals.endpoint import OpenAICompatible
from seva_jax.evals.judge import Case, Judge, Judged, LocalJudge, Verdict, exact_or_nothing
from seva_jax.evals.suites import MMVet
from seva_jax.types import DataError, ExampleError, Prompt

KEY = "sk-very-secret"


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", KEY)


def case(answer="4", low=0.0, high=1.0):
    return Case("Score it.", "2 + 2?", "4", (answer,), low, high)


def judge(url, tmp_path, **more):
    options = {"backoff_s": 0.01, "timeout_s": 0.3, "concurrency": 1, **more}
    transcript = str(tmp_path / "transcripts" / "judge.jsonl")
    return OpenAICompatible(url, "big-model", "JUDGE_KEY", transcript, **options)


def test_a_verdict_is_asked_for_once(tmp_path, capsys):
    """Another run reuses the transcript; the key is in the header and nowhere else."""
    with server(chat([0.5])) as (url, seen):
        first = judge(url, tmp_path).all([case(), case(), case("5")])
        again = judge(url, tmp_path).all([case("5"), case()])
        assert first == [Verdict((0.5,), "because")] * 3
        assert again == first[:2]
        assert len(seen) == 2
        path, authorization, body = seen[0]
    assert (path, authorization) == ("/v1/chat/completions", f"Bearer {KEY}")
    prompt = body["messages"][0]["content"]
    for part in ("Score it.", "2 + 2?", "[Answer 1]\n4", "from 0 to 1"):
        assert part in prompt
    shown = capsys.readouterr()
    assert "2 of 3 cases to ask" in shown.out
    kept = "".join(p.read_text() for p in tmp_path.rglob("*") if p.is_file())
    assert "2 + 2?" in kept
    assert KEY not in kept + shown.out + shown.err


def test_trouble_is_retried(tmp_path):
    """Rate limits, server errors, nonsense, silence and replies without a verdict are retried."""
    trouble = (
        (429, {"Retry-After": "0.01"}, {}),
        (500, {}, b"oops"),
        (200, {}, b"<html>"),
        (200, {}, {"choices": []}),
        "hang",
        (200, {}, {"choices": [{"message": {"content": "Good answer!"}}]}),
        chat([1]),
    )
    with server(*trouble) as (url, seen):
        assert judge(url, tmp_path, retries=6)(case()) == Verdict((1.0,), "because")
        assert len(seen) == len(trouble)


def test_waiting_grows(tmp_path, monkeypatch):
    """The delay doubles each time, unless the server says how long to wait."""
    slept = []
    monkeypatch.setattr("seva_jax.evals.endpoint.time.sleep", slept.append)
    busy = (503, {}, {})
    with server(busy, busy, (429, {"Retry-After": "7"}, {}), busy, chat([1])) as (url, _):
        judge(url, tmp_path, backoff_s=2.0)(case())
    assert slept == [2.0, 4.0, 7.0, 16.0]


@pytest.mark.parametrize(
    ("scores", "reason"), [([2], "score out of range"), ([1, 1], "wrong number of scores")]
)
def test_a_verdict_that_is_none_is_not_kept(tmp_path, scores, reason):
    """It is asked for at most twice, counted, and asked for again by the next run."""
    with server(chat(scores), chat(scores), chat([1])) as (url, seen):
        (found,) = judge(url, tmp_path).all([case()])
        assert isinstance(found, ExampleError)
        assert found.reason == reason
        assert len(seen) == 2
        assert judge(url, tmp_path)(case()).scores == (1.0,)


@pytest.mark.parametrize("status", [400, 401, 302])
def test_errors_of_ours_are_not_retried(tmp_path, status):
    """A redirect does not carry the key elsewhere, and no message shows it."""
    with server(chat([1])) as (elsewhere, never):
        body = f"invalid key {KEY}".encode()
        with server((status, {"Location": f"{elsewhere}/chat/completions"}, body)) as (url, seen):
            with pytest.raises(DataError, match=f"HTTP {status}; check base_url") as caught:
                judge(url, tmp_path)(case())
            assert len(seen) == 1
        assert not never
    assert KEY not in str(caught.value)


def test_giving_up_keeps_what_was_answered(tmp_path):
    """The next run asks only for the rest."""
    with server(chat([1]), (500, {}, {})) as (url, seen):
        with pytest.raises(DataError, match="gave up after 3 tries: HTTP 500"):
            judge(url, tmp_path, retries=2).all([case("1"), case("2")])
        assert len(seen) == 4
        assert judge(url, tmp_path)(case("1")).scores == (1.0,)
        assert len(seen) == 4


def test_cost_is_estimated_before_asking(tmp_path, capsys):
    """It is tokens times the given prices, and a limit stops the run."""
    prices = {"usd_per_million_in": 4e6, "usd_per_million_out": 1e6, "max_tokens": 100}
    with server(chat([1])) as (url, seen):
        judge(url, tmp_path, **prices)(case())
        num_chars = len(seen[0][2]["messages"][0]["content"])
        shown = capsys.readouterr().out
        assert f"about {num_chars // 4} tokens in and up to 100 out" in shown
        assert f"${4 * (num_chars // 4) + 100:.2f}" in shown
        with pytest.raises(DataError, match="above max_usd 1;"):
            judge(url, tmp_path, **prices, max_usd=1.0)(case("other"))
        assert len(seen) == 1


def test_a_judge_that_is_not_set_up(tmp_path, monkeypatch):
    with pytest.raises(DataError, match="give both"):
        judge("", tmp_path)(case())
    monkeypatch.delenv("JUDGE_KEY")
    with pytest.raises(DataError, match="set the environment variable JUDGE_KEY"):
        judge("http://127.0.0.1:9/v1", tmp_path)(case())


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("base_url", f"https://me:{KEY}@host/v1", "a user, a password or a query"),
        ("base_url", f"https://host/v1?api_key={KEY}", "a user, a password or a query"),
        ("api_key_env", KEY, "not the name of an environment variable"),
    ],
)
def test_a_key_cannot_get_into_a_config(field, value, message):
    """Configs are written to files, and the error does not repeat the key."""
    with pytest.raises(DataError, match=message) as caught:
        OpenAICompatible(**{"model": "m", "base_url": "https://host/v1"} | {field: value})
    assert KEY not in str(caught.value)


def test_a_config_names_judges(tmp_path):
    """A written config rebuilds them, functions included."""
    for chosen in (LocalJudge(exact_or_nothing), OpenAICompatible("https://x/v1", "m")):
        experiment = Experiment(evals=(MMVet(path="mm-vet.json", judge=chosen),))
        (tmp_path / "c.py").write_text(to_source(experiment))
        assert read_config(tmp_path / "c.py") == experiment
        json.dumps(flatten(experiment))


def test_own_judges_are_checked():
    """A subclass with a call is a judge."""

    class Broken(Judge):
        def __call__(self, case):
            return Verdict((5.0,))

    prompt = Prompt("p", "q?", (), {"reference": "r"})
    result = Judged("judged", Broken())(lambda prompts: ["a"], [prompt])
    assert result.metrics["unjudged"].value == 1.0
    assert result.records[0]["why"] == "score out of range"
