"""The record of all safety tests by prompt. Each test of another policy spends more of the failure probability.

A journal holds the events of all splits, one per line. Each line contains the fingerprint of the line before it, and
the length and last fingerprint of the journal are stored in a second place. An edited, removed or shortened journal is
therefore detected; a line that a full disk or a kill left unfinished was never counted and is dropped.

Two tests are the same only if split, candidate and question are. Every other test whose prompts overlap, whatever the
split's name, order, size or spelling, is a further test, and so is a test of the same policy on other prompts. What all
of them spend must stay within the failure probability that was declared before the first one.

Events are also written to the default journal if another folder is chosen, so that another folder forgets no test.
Deleting all these files at once cannot be detected. Each certificate therefore names the journal, its length and its
last fingerprint, and how many tests its prompts have served, for a reader to compare.
"""

import fcntl
import json
import os
import pwd
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from support.errors import ConfigError
from support.files import atomic_write_text, cache_folder, fingerprint, parse_json
from support.prompt_identity import known_fingerprints, split_fingerprint

_START = "0" * 64


def _home() -> Path:
    """The user's folder as the system knows it, which the variable HOME does not move."""
    try:
        return Path(pwd.getpwuid(os.getuid()).pw_dir)
    except KeyError:  # a user without an entry, as in a container
        return Path.home()


#: the journal of a user who sets neither test.ledger, nor the cache's folder, nor HOME
DEFAULT = _home() / ".cache" / "lightning-posttrain" / "ledgers" / "journal.jsonl"


class Journal:
    """A file of chained events, one per line.

    Args:
        folder: folder of the file.
    """

    def __init__(self, folder: Path) -> None:
        place = folder.resolve()
        self.path = place / "journal.jsonl"
        self._head = cache_folder("ledger_heads", f"{fingerprint([str(place)])[:24]}.json")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Context in which no other process can write."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path.with_suffix(".lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            try:
                yield
            finally:
                fcntl.flock(lock, fcntl.LOCK_UN)

    def events(self) -> list[dict[str, Any]]:
        """All events, oldest first. Raises ConfigError if the journal was changed after it was written."""
        return self._read()[0]

    def _read(self) -> tuple[list[dict[str, Any]], int]:
        """(events, length in bytes of their lines); an unfinished line behind them was never counted."""
        try:
            if self.path.exists() and not self.path.is_file():
                raise ValueError("it is not a regular file")
            content = self.path.read_bytes() if self.path.is_file() else b""
            whole = content[: content.rfind(b"\n") + 1]
            head: dict[str, Any] = (
                parse_json(self._head.read_text()) if self._head.is_file() else {"events": 0, "hash": _START}
            )
            events = [parse_json(line) for line in whole.decode().splitlines()]
            last = _START
            if type(head["events"]) is not int or head["events"] < 0:
                raise ValueError("its recorded length is not a number of lines")
            for number, event in enumerate(events, 1):
                _check(event)
                if event["previous"] != last or event["hash"] != _hash(event):
                    raise ValueError(f"line {number} was changed, or a line before it removed")
                last = event["hash"]
            if len(events) < head["events"]:
                raise ValueError(f"it has {len(events)} line(s), but {head['events']} were written")
            if head["events"] and events[head["events"] - 1]["hash"] != head["hash"]:
                raise ValueError("it is not the journal that was written")
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise ConfigError(
                f"the ledger of safety tests, {self.path}, cannot be trusted: {error}. It is therefore unknown how "
                "often these prompts were tested. Restore the file, or use another safety split with another folder "
                "in test.ledger."
            ) from error
        return events, len(whole)

    def append(self, facts: dict[str, Any]) -> dict[str, Any]:
        """Add an event with a time and the chain's fingerprints. Returns it.

        Raises:
            ConfigError: it could not be written; the journal is then as before.
        """
        events, length = self._read()
        event = dict(facts)
        if events and event["time"] < events[-1]["time"]:
            event["clock"] = f"the clock is behind the last event's time, {events[-1]['time']}"
        event["previous"] = events[-1]["hash"] if events else _START
        event["hash"] = _hash(event)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "ab") as file:
            try:
                file.truncate(length)
                _write(file, json.dumps(event).encode() + b"\n")
            except BaseException as error:
                os.ftruncate(file.fileno(), length)
                if not isinstance(error, OSError):
                    raise
                raise ConfigError(
                    f"the ledger of safety tests, {self.path}, cannot be written: {error}. Nothing was tested; free "
                    "space on the disk, or correct the permissions, and run the same command again."
                ) from error
        atomic_write_text(self._head, json.dumps({"events": len(events) + 1, "hash": event["hash"]}))
        return event

    def facts(self) -> dict[str, Any]:
        """The entries of a certificate about the journal."""
        events = self.events()
        return {"path": str(self.path), "events": len(events), "hash": events[-1]["hash"] if events else _START}


def _check(event: dict[str, Any]) -> None:
    """Raise ValueError or KeyError for an event that lacks what a count of tests reads."""
    prompts, numbers = event["prompts"], [event["delta"], event.get("declared_delta", 0.0)]
    texts = [event["split"], event["candidate"], event["question"], event["time"], *prompts]
    if not isinstance(prompts, list) or not all(isinstance(text, str) for text in texts):
        raise ValueError("an event has something else than texts")
    if not all(type(number) in (int, float) and 0 <= number <= 1 for number in numbers):
        raise ValueError("an event spends something else than a probability")
    if type(event.get("declared_tests", 1)) is not int:
        raise ValueError("an event declares something else than a number of tests")


def _write(file: Any, line: bytes) -> None:
    file.write(line)
    file.flush()
    os.fsync(file.fileno())


class Ledger:
    """The tests that used any of these prompts, or tested this policy on others.

    A policy that failed on one split and passes on a fresh one has had two chances, so both tests are paid for.

    Args:
        prompts: prompts of the safety split.
        policy: fingerprint of the weights under test; None counts tests by prompts only, as before a training.
        folder: a folder whose journal is kept in addition to the one in the cache, $LIGHTNING_POSTTRAIN_CACHE/ledgers
            or ~/.cache/lightning-posttrain/ledgers.
    """

    def __init__(self, prompts: Iterable[Any], folder: str | None = None, policy: str | None = None) -> None:
        prompts, self.policy = list(prompts), policy
        self.split, self.prompts = split_fingerprint(prompts), known_fingerprints(prompts)
        places = {path.resolve(): path for path in [*([Path(folder)] if folder else []), cache_folder("ledgers")]}
        self.journals = [Journal(place) for place in places]
        self.path = self.journals[0].path

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Context in which no other process can start a test."""
        with ExitStack() as stack:
            for journal in sorted(self.journals, key=lambda journal: journal.path):
                stack.enter_context(journal.locked())
            yield

    def tests(self) -> list[dict[str, Any]]:
        """Tests of any of these prompts or of this policy, oldest first; an interrupted test has no verdict."""
        tests: dict[tuple[str, ...], dict[str, Any]] = {}
        for event in (event for journal in self.journals for event in journal.events()):
            shares = not self.prompts.isdisjoint(event["prompts"])
            if shares or (self.policy is not None and event.get("policy") == self.policy):
                key = event["split"], event["candidate"], event["question"]
                facts = {name: value for name, value in event.items() if name != "prompts"}
                tests[key] = tests.get(key, {}) | facts | {"on_other_prompts": not shares}
        return list(tests.values())

    def find(self, candidate: str, question: str) -> dict[str, Any] | None:
        """The finished test of this policy and question (cost model, threshold, ...) on this split; None if none."""
        same = self._same(candidate, question)
        return same if same is not None and "verdict" in same else None

    def _same(self, candidate: str, question: str) -> dict[str, Any] | None:
        wanted = self.split, candidate, question
        return next((t for t in self.tests() if (t["split"], t["candidate"], t["question"]) == wanted), None)

    def budget(self, delta: float, allowance: int) -> tuple[float, int, float]:
        """(failure probability of all tests of these prompts, number of tests, what they have spent).

        The first two are the smallest that any of the tests declared: a declaration that is raised later buys nothing.
        """
        tests = self.tests()
        deltas = [delta, *(test["declared_delta"] for test in tests if "declared_delta" in test)]
        allowances = [allowance, *(test["declared_tests"] for test in tests if "declared_tests" in test)]
        return min(deltas), min(allowances), sum(test["delta"] for test in tests)

    def begin(self, candidate: str, question: str, delta: float, allowance: int) -> float:
        """Spend one test before it runs, so that interrupting it does not give it back.

        Args:
            candidate, question: fingerprints of what generates and of the test's settings.
            delta: failure probability of all tests of these prompts together.
            allowance: number of tests that delta is divided among (Bonferroni).

        Returns:
            The failure probability that this test may use. An interrupted test of the same candidate on the same split
            continues with what it has spent, and the ledger counts its interruptions.

        Raises:
            ConfigError: the tests of these prompts may spend no more.
        """
        same = self._same(candidate, question)
        if same is not None:
            if "verdict" in same:
                raise ValueError("this test is finished; `find` returns it")
            self._append({**_kept(same), "interrupted": same.get("interrupted", 0) + 1})
            return float(same["delta"])
        tests = self.tests()
        limit, number, spent = self.budget(delta, allowance)
        share = delta / allowance
        if len(tests) >= number or spent + share > limit * (1 + 1e-9):
            elsewhere = sum(test["on_other_prompts"] for test in tests)
            others = sum(test["split"] != self.split for test in tests) - elsewhere
            shared = f", {others} of them under another split that shares prompts with it" if others else ""
            shared += f", {elsewhere} of them of the same policy on other prompts" if elsewhere else ""
            raise ConfigError(
                f"this safety split has been tested {len(tests)} time(s){shared}, which spent {spent:.4g} of a failure "
                f"probability of {limit:.4g} for {number} test(s), as declared before the first; test.allowance "
                f"{allowance} with constraint.delta {delta:g} would spend {share:.4g} more. The trained policy is in "
                f"its run's checkpoints, and the ledger is {self.path}. Train another policy, test it on a fresh "
                "safety split (for procedural data another --seed_everything), and declare test.allowance before the "
                "first test of a policy that shall be tested again on fresh prompts."
            )
        declared = {"declared_delta": delta, "declared_tests": allowance}
        policy = {} if self.policy is None else {"policy": self.policy}
        self._append({"candidate": candidate, "question": question, "delta": share, **declared, **policy})
        return share

    def record(self, candidate: str, question: str, outcome: dict[str, Any]) -> dict[str, Any]:
        """Add the outcome of a test that has begun to the journals. Returns the test."""
        begun = self._same(candidate, question)
        if begun is None:
            raise ValueError("this test has not begun; call `begin` first")
        self._append({**outcome, **_kept(begun)})
        return self._same(candidate, question) or {}

    def facts(self) -> dict[str, Any]:
        """The entries of a certificate about the ledger: its journal's path, number of events and last fingerprint."""
        return self.journals[0].facts()

    @property
    def place(self) -> str:
        """A remark for the certificate's page if the journal is in another folder than the default; "" otherwise."""
        if self.path == DEFAULT.resolve():
            return ""
        return f"The ledger is not in the default place, {DEFAULT}: tests that are recorded there only are not counted."

    def _append(self, facts: dict[str, Any]) -> None:
        event = {"split": self.split, "prompts": sorted(self.prompts), "time": _now(), **facts}
        for journal in self.journals:
            journal.append(event)


def _kept(test: dict[str, Any]) -> dict[str, Any]:
    """The facts that later events of a test repeat from its first."""
    names = ("candidate", "question", "delta", "declared_delta", "declared_tests", "interrupted", "policy")
    return {name: test[name] for name in names if name in test}


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _hash(event: dict[str, Any]) -> str:
    return fingerprint([{name: value for name, value in event.items() if name != "hash"}])
