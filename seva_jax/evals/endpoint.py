"""A judge behind an OpenAI-compatible endpoint.

What lives here: `OpenAICompatible`, with requests, retries, a cost estimate, and a transcript so
that nothing is asked twice. What does not: what is asked (`judge.py`, `suites/`). Read next:
`suites/judged.py`.

The API key is read from an environment variable whenever a request is sent. It is put into the
header of that request and nowhere else.
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
from typing import Annotated, Any

from typing_extensions import override

from seva_jax.evals.judge import Case, Judge, Verdict, check
from seva_jax.ranges import ABOVE_0, FROM_0, FROM_1
from seva_jax.runtime.journal import Journal
from seva_jax.runtime.processes import say
from seva_jax.runtime.progress import Progress
from seva_jax.runtime.stores import as_path
from seva_jax.types import DataError, ExampleError

_CHARS_PER_TOKEN = 4  # in English text, for the cost estimate
_ASK_FOR_JSON = (
    "Reply with one JSON object and nothing else: "
    '{"scores": [one number for each answer, in order], "explanation": "one or two sentences"}. '
)


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Refuses redirects, which would carry the API key to another address."""

    @override
    def redirect_request(self, *args: Any, **kwargs: Any) -> None: ...


class _Retry(Exception):
    """A failed request that is worth retrying, after `wait_s` seconds if the server gave a time."""

    def __init__(self, message: str, wait_s: float = 0.0) -> None:
        super().__init__(message)
        self.wait_s = wait_s


@dataclasses.dataclass(frozen=True)
class OpenAICompatible(Judge):
    """A model that answers POST {base_url}/chat/completions.

    Replies are kept in the transcript. No run with the same transcript asks for them again, except
    for replies without a valid verdict, which are not kept.

    Attributes:
        base_url: address of the API, for example https://api.openai.com/v1, or
            http://localhost:8000/v1 for a local vLLM server.
        model: name of the model at that address.
        api_key_env: name of the environment variable that holds the API key; empty sends no key.
        transcript: JSON lines file that keeps requests (found by their hash) and replies.
        temperature: sampling temperature of the judge.
        max_tokens: maximum length of a reply in tokens.
        concurrency: number of requests in flight at the same time.
        timeout_s: seconds to wait for a reply before trying again.
        retries: how often to retry after too many requests (HTTP 429), server errors and timeouts;
            a reply without a valid verdict is retried once at most.
        backoff_s: seconds to wait before the first retry, doubled for each further one, unless the
            server says how long to wait.
        usd_per_million_in: price of a million prompt tokens in US dollars, for the cost estimate.
        usd_per_million_out: price of a million reply tokens in US dollars, for the cost estimate.
        max_usd: refuse to start if the estimated cost in US dollars is above this; 0 sets no limit.
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
        # Configs are written to files, so they must not contain a secret.
        address = urllib.parse.urlsplit(self.base_url)
        if "@" in address.netloc or address.query:
            raise DataError(
                "the judge's base_url contains a user, a password or a query, and configs are "
                "written to files; put the key into an environment variable and name it in "
                "api_key_env"
            )
        if self.api_key_env and not re.fullmatch("[A-Za-z_][A-Za-z0-9_]*", self.api_key_env):
            raise DataError(
                "the judge's api_key_env is not the name of an environment variable; give the "
                "name, not the key"
            )

    @override
    def __call__(self, case: Case) -> Verdict:
        (verdict,) = self.all([case])
        if isinstance(verdict, ExampleError):
            raise verdict
        return verdict

    @override
    def all(self, cases: Sequence[Case]) -> list[Verdict | ExampleError]:
        """Asks about several cases at a time, and only about those not in the transcript."""
        self._check()
        bodies = [self._body(case) for case in cases]
        keys = [hashlib.sha256(json.dumps([self.base_url, b]).encode()).hexdigest() for b in bodies]
        transcript = Journal(as_path(self.transcript))
        known: dict[str, Any] = {line["key"]: line["reply"] for line in transcript.read()}
        waiting = {k: i for i, k in enumerate(keys) if k not in known}
        if waiting:
            self._announce([bodies[i] for i in waiting.values()], len(cases))
        failed: dict[str, ExampleError] = {}
        pool = concurrent.futures.ThreadPoolExecutor(max(self.concurrency, 1))
        progress = Progress("judge", len(cases), "answer", len(cases) - len(waiting), bool(waiting))
        jobs = {pool.submit(self._ask, bodies[i], cases[i]): k for k, i in waiting.items()}
        try:
            for job in concurrent.futures.as_completed(jobs):
                key = jobs[job]
                body = bodies[waiting[key]]
                progress.update()
                try:
                    known[key] = job.result()
                except ExampleError as error:
                    failed[key] = error
                else:
                    transcript.append([{"key": key, "request": body, "reply": known[key]}])
        finally:
            progress.close()
            pool.shutdown(cancel_futures=True)
        asked = zip(keys, cases, strict=True)
        return [failed.get(key) or _verdict(known[key], case) for key, case in asked]

    def _check(self) -> None:
        if not self.base_url.startswith(("https://", "http://")) or not self.model:
            raise DataError(
                f"the judge has base_url {self.base_url!r} and model {self.model!r}; give both, "
                "and begin base_url with https:// or http://"
            )
        if self.api_key_env and not os.environ.get(self.api_key_env):
            raise DataError(
                f"the judge's API key is missing: set the environment variable {self.api_key_env}, "
                "or api_key_env='' for an endpoint that needs no key"
            )

    def _body(self, case: Case) -> dict[str, Any]:
        numbered = enumerate(case.answers, 1)
        answers = "\n\n".join(f"[Answer {number}]\n{answer}" for number, answer in numbered)
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
        """Prints how much will be asked and its estimated cost, and checks the limit."""
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
                f"the judge would cost about ${usd:.2f}, above max_usd {self.max_usd:g}; raise it "
                "or use a cheaper model"
            )

    def _ask(self, body: dict[str, Any], case: Case) -> str:
        """Returns the text of a reply with a valid verdict.

        Raises:
            ExampleError: the last reply has no valid verdict.
            DataError: the endpoint cannot be used.
        """
        malformed = 0
        for attempt in range(self.retries + 1):
            last, wait_s = attempt == self.retries, 0.0
            try:
                reply = self._post(body)
                verdict = _verdict(reply, case)
                if not isinstance(verdict, ExampleError):
                    return reply
                malformed += 1
                if last or malformed == 2:
                    raise verdict
            except _Retry as error:
                if last:
                    raise DataError(
                        f"the judge at {self.base_url} gave up after {attempt + 1} tries: {error}; "
                        "run again later; replies so far are kept"
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
            # The server's words are not shown, because they may repeat the key.
            raise DataError(
                f"the judge at {self.base_url} answered HTTP {error.code}; check base_url, model "
                "and key"
            ) from None
        except (OSError, http.client.HTTPException) as error:  # URLError and timeouts are OSErrors
            raise _Retry(f"{type(error).__name__}: {error}") from None
        try:
            return str(json.loads(data)["choices"][0]["message"]["content"])
        except (ValueError, LookupError, TypeError):
            raise _Retry("the reply is not a chat completion") from None


def _seconds(headers: Any) -> float:
    """Returns the seconds in Retry-After, at most 60; 0 if it does not give any."""
    try:
        return min(max(float(headers.get("Retry-After", "")), 0.0), 60.0)
    except ValueError:
        return 0.0


def _verdict(reply: str, case: Case) -> Verdict | ExampleError:
    """Returns the verdict in a reply, from its first JSON object with `scores`."""
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
    return ExampleError("the judge's reply has no scores", "malformed verdict")
