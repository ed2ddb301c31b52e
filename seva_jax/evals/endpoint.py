"""A judge behind an OpenAI-compatible endpoint.

What lives here: `OpenAICompatible`: requests, retries, cost estimate, and the transcript, which
keeps anything from being asked twice. What does not: what is asked (`judge.py`, `suites/`).

The API key is read from an environment variable when a request is sent and goes nowhere but into
that request's header.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import hashlib
import http.client
import json
import os
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from seva_jax.evals.judge import Case, Judge, Verdict, check
from seva_jax.ranges import ABOVE_0, FROM_0, FROM_1
from seva_jax.runtime.journal import Journal
from seva_jax.runtime.processes import say
from seva_jax.runtime.progress import Progress
from seva_jax.types import DataError, ExampleError

_CHARS_PER_TOKEN = 4  # of English text, for the estimate
_ASK_FOR_JSON = (
    "Reply with one JSON object and nothing else: "
    '{"scores": [one number for each answer, in order], "explanation": "one or two sentences"}. '
)


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect would carry the API key to another address."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        """Refuses."""


class _Retry(Exception):
    """Worth another try, after `wait_s` seconds if the server said so."""

    def __init__(self, message: str, wait_s: float = 0.0) -> None:
        super().__init__(message)
        self.wait_s = wait_s


@dataclasses.dataclass(frozen=True)
class OpenAICompatible(Judge):
    """A model that answers POST {base_url}/chat/completions.

    What it has answered is in the transcript and never asked again, also by another run with the
    same transcript; a reply that is no verdict is not kept.

    Attributes:
        base_url: for example https://api.openai.com/v1, or http://localhost:8000/v1 of vLLM.
        model: its name there.
        api_key_env: the environment variable that holds the key; empty sends none.
        transcript: JSON lines file of requests (by their hash) and replies.
        temperature: of its answers.
        max_tokens: longest reply.
        concurrency: requests under way at one time.
        timeout_s: seconds until a request without an answer counts as lost.
        retries: further tries after too many requests (429), server errors and timeouts; a reply
            that is no verdict gets one.
        backoff_s: seconds before the first further try; twice as many before each next one,
            unless the server says how long to wait.
        usd_per_million_in: price of a million prompt tokens, for the estimate.
        usd_per_million_out: price of a million reply tokens.
        max_usd: refuse to start where the estimate is above; 0 sets no limit.
    """

    base_url: str = ""
    model: str = ""
    api_key_env: str = "OPENAI_API_KEY"
    transcript: str = "judge.jsonl"
    temperature: Annotated[float, FROM_0] = 0.0
    max_tokens: Annotated[int, FROM_1] = 300
    concurrency: Annotated[int, FROM_1] = 4
    timeout_s: Annotated[float, ABOVE_0] = 60.0
    retries: Annotated[int, FROM_0] = 5
    backoff_s: Annotated[float, FROM_0] = 2.0
    usd_per_million_in: Annotated[float, FROM_0] = 0.0
    usd_per_million_out: Annotated[float, FROM_0] = 0.0
    max_usd: Annotated[float, FROM_0] = 0.0

    def __post_init__(self) -> None:
        # Configs are written to files, so a secret must not get into one.
        address = urllib.parse.urlsplit(self.base_url)
        if "@" in address.netloc or address.query:
            raise DataError(
                "the judge's base_url holds a user, a password or a query, and configs are written "
                "to files; put the key into an environment variable and name that in api_key_env"
            )
        if self.api_key_env and not re.fullmatch("[A-Za-z_][A-Za-z0-9_]*", self.api_key_env):
            raise DataError(
                "the judge's api_key_env is no name of an environment variable; give the name, not "
                "the key"
            )

    def __call__(self, case: Case) -> Verdict:
        """See `Judge`."""
        found = self.all([case])[0]
        if isinstance(found, ExampleError):
            raise found
        return found

    def all(self, cases: Sequence[Case]) -> list[Verdict | ExampleError]:
        """See `Judge.all`; several at a time, those in the transcript not at all."""
        self._check()
        bodies = [self._body(case) for case in cases]
        keys = [hashlib.sha256(json.dumps([self.base_url, b]).encode()).hexdigest() for b in bodies]
        transcript = Journal(Path(self.transcript))
        known: dict[str, Any] = {line["key"]: line["reply"] for line in transcript.read()}
        waiting = {k: i for i, k in enumerate(keys) if k not in known}
        if waiting:
            self._announce([bodies[i] for i in waiting.values()], len(cases))
        found: dict[str, Verdict | ExampleError] = {}
        pool = concurrent.futures.ThreadPoolExecutor(max(self.concurrency, 1))
        progress = Progress("judge", len(cases), "answer", len(cases) - len(waiting), bool(waiting))
        jobs = {pool.submit(self._ask, bodies[i], cases[i]): k for k, i in waiting.items()}
        try:
            done = concurrent.futures.as_completed(jobs)
            for job in done:
                key = jobs[job]
                progress.update()
                try:
                    reply = job.result()
                except ExampleError as error:
                    found[key] = error
                    continue
                body = bodies[waiting[key]]
                transcript.append([{"key": key, "request": body, "reply": reply}])
                known[key] = reply
        finally:
            progress.close()
            pool.shutdown(cancel_futures=True)
        return [
            found[k] if k in found else _verdict(known[k], case)
            for k, case in zip(keys, cases, strict=True)
        ]

    def _check(self) -> None:
        if not self.base_url.startswith(("https://", "http://")) or not self.model:
            raise DataError(
                f"the judge has base_url {self.base_url!r} and model {self.model!r}; give both, "
                "the first with https:// or http://"
            )
        if self.api_key_env and not os.environ.get(self.api_key_env):
            raise DataError(
                f"the judge's key is not there: set the environment variable {self.api_key_env}, "
                "or api_key_env='' for an endpoint that wants none"
            )

    def _body(self, case: Case) -> dict[str, Any]:
        answers = "\n\n".join(
            f"[Answer {number}]\n{answer}" for number, answer in enumerate(case.answers, 1)
        )
        scale = f"Scores are numbers from {case.low:g} to {case.high:g}."
        text = (
            f"{case.instructions}\n\n[Question]\n{case.question}\n\n[Reference]\n"
            f"{case.reference}\n\n{answers}\n\n{_ASK_FOR_JSON}{scale}"
        )
        return {
            "model": self.model,
            "messages": [{"role": "user", "content": text}],
            "temperature": self.temperature,
            "max_tokens": self.max_tokens,
        }

    def _announce(self, bodies: Sequence[dict[str, Any]], total: int) -> None:
        """Says what will be asked and about what it costs, before it does."""
        num_in = sum(len(b["messages"][0]["content"]) for b in bodies) // _CHARS_PER_TOKEN
        num_out = len(bodies) * self.max_tokens
        usd = (num_in * self.usd_per_million_in + num_out * self.usd_per_million_out) / 1e6
        priced = self.usd_per_million_in or self.usd_per_million_out
        cost = f"at most about ${usd:.2f}" if priced else "no price given"
        say(
            f"  judge {self.model}: {len(bodies):,} of {total:,} cases to ask, about {num_in:,} "
            f"tokens in and up to {num_out:,} out, {cost}"
        )
        if 0 < self.max_usd < usd:
            raise DataError(
                f"the judge would cost about ${usd:.2f}, above max_usd {self.max_usd:g}; raise it, "
                "or take a cheaper model"
            )

    def _ask(self, body: dict[str, Any], case: Case) -> str:
        """The text of a reply that holds a verdict.

        Raises:
            ExampleError: the last try had a reply without one.
            DataError: the endpoint cannot be used.
        """
        malformed = 0
        for attempt in range(self.retries + 1):
            last, wait_s = attempt == self.retries, 0.0
            try:
                reply = self._post(body)
                found = _verdict(reply, case)
                if not isinstance(found, ExampleError):
                    return reply
                malformed += 1
                if last or malformed == 2:
                    raise found
            except _Retry as error:
                if last:
                    raise DataError(
                        f"the judge at {self.base_url} gave up after {attempt + 1} tries: {error}; "
                        "run again later, what was answered is kept"
                    ) from None
                wait_s = error.wait_s
            time.sleep(wait_s or self.backoff_s * 2**attempt)
        raise AssertionError("the last try returns or raises")

    def _post(self, body: dict[str, Any]) -> str:
        headers = {"Content-Type": "application/json"}
        if self.api_key_env:
            headers["Authorization"] = f"Bearer {os.environ[self.api_key_env]}"
        request = urllib.request.Request(
            f"{self.base_url.rstrip('/')}/chat/completions", json.dumps(body).encode(), headers
        )
        opener = urllib.request.build_opener(_NoRedirects)
        try:
            with opener.open(request, timeout=self.timeout_s) as response:
                data = response.read()
        except urllib.error.HTTPError as error:
            error.close()
            if error.code == 429 or error.code >= 500:
                raise _Retry(f"HTTP {error.code}", _seconds(error.headers)) from None
            # Nothing the server says is shown: it may repeat the key.
            raise DataError(
                f"the judge at {self.base_url} answered HTTP {error.code}; check base_url, model "
                "and key"
            ) from None
        except (OSError, http.client.HTTPException) as error:  # URLError and timeouts are OSErrors
            raise _Retry(f"{type(error).__name__}: {error}") from None
        try:
            return str(json.loads(data)["choices"][0]["message"]["content"])
        except (ValueError, LookupError, TypeError):
            raise _Retry("a reply that is no chat completion") from None


def _seconds(headers: Any) -> float:
    """What Retry-After says, at most a minute; 0 where it says nothing in seconds."""
    try:
        return min(max(float(headers.get("Retry-After", "")), 0.0), 60.0)
    except ValueError:
        return 0.0


def _verdict(reply: str, case: Case) -> Verdict | ExampleError:
    """The verdict in a reply: its first JSON object with `scores`."""
    decoder = json.JSONDecoder()
    start = reply.find("{")
    while start >= 0:
        try:
            value, _ = decoder.raw_decode(reply, start)
            scores = tuple(float(score) for score in value["scores"])
            return check(Verdict(scores, str(value.get("explanation", ""))), case)
        except ExampleError as error:
            return error
        except (ValueError, LookupError, TypeError, OverflowError, RecursionError):
            start = reply.find("{", start + 1)
    return ExampleError("the judge's reply holds no scores", "malformed verdict")
