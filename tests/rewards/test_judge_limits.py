"""A judge has one time limit for everything, and what it says neither ends a run nor reaches the terminal."""

import math
import socket
import threading
import time
from contextlib import contextmanager

import pytest
import torch

from rewards import FunctionReward, Guarded, HTTPJudge
from support.errors import ConfigError, printable
from tests.rewards.test_failures import ROWS
from tests.rewards.test_rewards import batch_of

LIMIT = 0.4


@contextmanager
def speaking(say):
    """A server that answers every connection by `say(socket)`, without any rule of HTTP."""
    listener = socket.create_server(("127.0.0.1", 0))
    ends = []

    def talk(connection):
        with connection:
            try:
                connection.recv(65536)
                say(connection)
            except OSError:
                pass
            ends.append(time.monotonic())

    def accept():
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=talk, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/score", ends
    finally:
        listener.close()


def drip(before, piece):
    def say(connection):
        connection.sendall(before)
        for _ in range(100):
            connection.sendall(piece)
            time.sleep(0.05)

    return say


HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 10000\r\n"
SLOW = {
    "body": drip(HEAD + b"\r\n", b" "),
    "status line": drip(b"", b"H"),
    "headers": drip(HEAD, b"X: y\r\n"),
    "one header": drip(HEAD + b"X: ", b"y"),
    "100 Continue": drip(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "error body": drip(b"HTTP/1.1 400 Bad\r\nContent-Length: 10000\r\n\r\n", b"e"),
    "chunks": drip(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n"),
    "silence": lambda connection: time.sleep(5),
}


@pytest.mark.parametrize("part", SLOW)
def test_one_limit_for_the_whole_answer(part):
    threads = threading.active_count()
    with speaking(SLOW[part]) as (url, ends):
        started = time.monotonic()
        judge = HTTPJudge(url, timeout_s=LIMIT, retries=0)
        values = judge(batch := batch_of(["a", "b"], ROWS[:1]))
        spent = time.monotonic() - started
        assert values.isnan().all() and batch.failures["http_judge"].tolist() == [2, 2] and spent < LIMIT + 1
        while part != "silence" and not ends and time.monotonic() - started < 4:
            time.sleep(0.02)
        assert part == "silence" or ends[0] - started < LIMIT + 1, "the connection was closed"
    deadline = time.monotonic() + 3
    while any(thread.name == "guarded reward" for thread in threading.enumerate()) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(thread.name == "guarded reward" for thread in threading.enumerate()), threads


def answering(body, status=b"200 OK"):
    return lambda connection: connection.sendall(
        b"HTTP/1.1 " + status + b"\r\nContent-Length: " + str(len(body)).encode() + b"\r\n\r\n" + body
    )


@pytest.mark.parametrize("score", ["1e300", "-1e300", "1e16", "1" + "0" * 400, "1e39", "NaN", "-Infinity", "true"])
def test_scores_out_of_range_are_failures_of_their_completions(score):
    with speaking(answering(f"[0.5, {score}]".encode())) as (url, _):
        batch = batch_of(["a", "b"], ROWS[:1])
        values = HTTPJudge(url, timeout_s=5, retries=0)(batch)
    assert values[0] == 0.5 and values[1].isnan() and batch.failures["http_judge"].tolist() == [0, 1]


@pytest.mark.parametrize("score", [1e300, -1e16, math.inf])
def test_guarded_rewards_have_the_same_range(score):
    batch = batch_of(["a", "b"], ROWS[:1])
    guarded = Guarded(FunctionReward(lambda completions: [score if text == "a" else 1.0 for text in completions]))
    assert guarded(batch).isnan().tolist() == [True, False] and batch.failures[guarded.name].tolist() == [1, 0]


def test_scores_in_range_can_be_averaged():
    values = torch.tensor([1e15, -1e15] * 512)
    assert values.var().isfinite() and (values**2).sum().isfinite()


@pytest.mark.parametrize(
    "say",
    [
        answering(b"\x1b[2J\x1b]0;owned\x07 no", b"400 Bad"),
        answering(b"\x1b]8;;http://x\x07[1]"),
        answering(b'["\x1b[31m", "\\u001b[2J"]'),
        lambda connection: connection.sendall(b"\x1b[2J\x9b31m\r\n\r\n"),
    ],
)
def test_no_escape_sequence_reaches_a_message(say):
    with speaking(say) as (url, _):
        judge = HTTPJudge(url, timeout_s=5, retries=0)
        judge(batch_of(["a", "b"], ROWS[:1]))
    assert judge.last_failure and all(c.isprintable() or c == "\n" for c in judge.last_failure)


def test_messages_show_control_characters_by_their_code():
    error = ConfigError("a\x1b[2Jb\x07\x9b\u202ec\r\nd\te")
    assert str(error) == "a\\x1b[2Jb\\x07\\x9b\\u202ec\\r\nd\te" and printable("aé漢 ") == "aé漢 "
