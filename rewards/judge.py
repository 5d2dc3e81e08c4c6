"""A judge that is called over HTTP: a served reward model, a grader, another team's scorer."""

import functools
import http.client
import json
import os
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from rewards.base import Failure, Reward
from rewards.failures import failure_rate, within
from rewards.scores import LARGEST
from rollouts import RolloutBatch
from support.errors import ConfigError, printable

T = TypeVar("T")
LONGEST = 1 << 20  # maximum size of a reply, in bytes


class _Failed(Exception):
    """(kind, message, whether another try could help)"""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Refuses redirects: a redirected POST would lose its body and send the token to another host."""

    def redirect_request(self, *arguments: Any) -> None:
        return None


class _Request(urllib.request.Request):
    """A request whose connections can be closed from another thread.

    The library's time-out is for each read: a reply in small pieces, or endless headers, would never time out.
    """

    def __init__(self, url: str, body: bytes, headers: dict[str, str]) -> None:
        super().__init__(url, body, headers)
        self.sockets: list[socket.socket] = []
        self.abandoned = False

    def connection(self, kind: type[http.client.HTTPConnection], host: str, **settings: Any) -> Any:
        """A connection that tells the request its socket."""
        made, request = kind(host, **settings), self
        connect = made.connect

        def connected() -> None:
            connect()
            request.sockets.append(made.sock)
            if request.abandoned:
                request.abandon()

        made.connect = connected  # type: ignore[method-assign]
        return made

    def abandon(self) -> None:
        """Close the connections; whoever waits for one of them gets an error."""
        self.abandoned = True
        for one in self.sockets:
            try:
                one.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # closed already


class _HTTP(urllib.request.HTTPHandler):
    def http_open(self, request: Any) -> Any:
        return self.do_open(functools.partial(request.connection, http.client.HTTPConnection), request)


class _HTTPS(urllib.request.HTTPSHandler):
    def https_open(self, request: Any) -> Any:
        kind = functools.partial(request.connection, http.client.HTTPSConnection)
        return self.do_open(kind, request, context=self._context)  # type: ignore[attr-defined]


class HTTPJudge(Reward):
    """Scores of an HTTP endpoint, which replies to POST {"prompts": [...], "completions": [...], <column>: [...]}.

    The reply is {"scores": [...]} or the list itself. A reply that is late, is not such a list, or contains anything
    but a number of at most 1e15 for a completion is a failure of those completions. Time-outs, broken connections,
    malformed replies and the statuses 429 and 5xx are retried; other statuses are not.

    Args:
        url: URL of the endpoint, http:// or https://.
        timeout_s: time limit for one request with its whole reply, in seconds.
        retries: number of retries.
        backoff_s: seconds before the first retry, doubled for each further one.
        max_failure_rate: maximum fraction of failed completions per rollout; more end the run.
        columns: data columns to send along.
        per_request: completions per request.
        workers: number of parallel requests.
        token_variable: environment variable with a bearer token, so that the token is not in the configuration.
        weight, name: as in every reward.
    """

    waits = True

    def __init__(
        self,
        url: str,
        timeout_s: float = 30.0,
        retries: int = 2,
        backoff_s: float = 1.0,
        max_failure_rate: float = 0.05,
        columns: list[str] | None = None,
        per_request: int = 8,
        workers: int = 4,
        token_variable: str | None = None,
        weight: float = 1.0,
        name: str | None = None,
    ) -> None:
        super().__init__(weight, name or "http_judge")
        if not url.startswith(("http://", "https://")):
            raise ConfigError(f"HTTPJudge: url is {url!r}; it must begin with http:// or https://.")
        if timeout_s <= 0 or retries < 0 or backoff_s < 0 or per_request < 1 or workers < 1:
            raise ConfigError(
                "HTTPJudge: needs timeout_s > 0, retries >= 0, backoff_s >= 0, per_request >= 1 and workers >= 1, got "
                f"{timeout_s}, {retries}, {backoff_s}, {per_request} and {workers}."
            )
        if token_variable and not os.environ.get(token_variable):
            raise ConfigError(
                f"HTTPJudge: the environment variable {token_variable!r} of token_variable is not set; export it, or "
                "change token_variable."
            )
        self.url, self.timeout_s, self.retries, self.backoff_s = url, timeout_s, retries, backoff_s
        self.columns, self.per_request, self.workers, self.token_variable = (
            columns or [],
            per_request,
            workers,
            token_variable,
        )
        self.max_failure_rate = failure_rate(max_failure_rate, "HTTPJudge")
        self.opener = urllib.request.build_opener(_NoRedirect, _HTTP, _HTTPS)

    def check_columns(self, row: dict[str, Any]) -> None:
        for column in self.columns:
            if column not in row:
                raise ConfigError(
                    f"the reward {self.name!r} (HTTPJudge) sends the data column {column!r}, which row "
                    f"{row.get('id')!r} lacks; map it in data.columns, or remove it from `columns`."
                )

    def score(self, batch: RolloutBatch) -> list[float | Failure]:
        payload = {"prompts": batch.column("prompt"), "completions": batch.completions}
        return self.replies(payload | {c: batch.column(c) for c in self.columns}, "scores", _number)

    def replies(
        self, payload: dict[str, list[Any]], key: str, read: Callable[[object], T | Failure]
    ) -> list[T | Failure]:
        """One entry of the endpoint's replies for each entry of the payload's columns.

        Args:
            payload: columns of equal length, sent `per_request` entries at a time.
            key: name of the reply's list.
            read: turns an entry of the reply into a value, or into a Failure.
        """
        count = len(next(iter(payload.values())))
        parts = [
            {name: values[start : start + self.per_request] for name, values in payload.items()}
            for start in range(0, count, self.per_request)
        ]
        with ThreadPoolExecutor(self.workers) as pool:
            answered = pool.map(lambda part: self._asked(part, key, read), parts)
            return [reply for replies in answered for reply in replies]

    def _asked(self, part: dict[str, Any], key: str, read: Callable[[object], T | Failure]) -> list[T | Failure]:
        count = len(next(iter(part.values())))
        for attempt in range(self.retries + 1):
            try:
                return [read(one) for one in self._answer(json.dumps(part).encode(), count, key)]
            except _Failed as error:
                kind, message, again = error.args
                failure = Failure(kind, printable(f"{self.url}: {message}"))
            if not again:
                break
            if attempt < self.retries:
                time.sleep(self.backoff_s * 2**attempt)
        return [failure] * count

    def _answer(self, body: bytes, count: int, key: str) -> list[Any]:
        headers = {"Content-Type": "application/json"}
        if self.token_variable:
            headers["Authorization"] = f"Bearer {os.environ[self.token_variable]}"
        request = _Request(self.url, body, headers)
        try:
            answer = json.loads(within(self.timeout_s, lambda: self._reply(request)))
        except TimeoutError as error:
            request.abandon()
            raise _Failed("timeout", f"no answer within {self.timeout_s:g} s", True) from error
        except urllib.error.URLError as error:
            kind = "timeout" if isinstance(error.reason, TimeoutError) else "error"
            raise _Failed(kind, f"no connection: {error.reason}", True) from error
        except (OSError, http.client.HTTPException, ValueError, RecursionError) as error:
            raise _Failed("error", f"{type(error).__name__}: {error}", True) from error
        entries = answer.get(key) if isinstance(answer, dict) else answer
        if not isinstance(entries, list) or len(entries) != count:
            raise _Failed("error", f"expected a list of {count} {key}, got {str(answer)[:100]!r}", True)
        return entries

    def _reply(self, request: "_Request") -> bytes:
        """The whole reply, headers and body."""
        try:
            with self.opener.open(request, timeout=self.timeout_s) as response:
                text: bytes = response.read(LONGEST + 1)
        except urllib.error.HTTPError as error:
            detail = error.read(200).decode(errors="replace")
            raise _Failed("error", f"status {error.code}: {detail}", error.code == 429 or error.code >= 500) from error
        if len(text) > LONGEST:
            raise _Failed("error", f"the answer is longer than {LONGEST} bytes", False)
        return text


def _number(score: object) -> float | Failure:
    if isinstance(score, bool) or not isinstance(score, (int, float)):
        return Failure("error", f"the score {str(score)[:50]!r} is not a number")
    try:
        return float(score) if abs(score) <= LARGEST else Failure("error", f"the score is {float(score):g}")
    except OverflowError:
        return Failure("error", "the score is too large")
