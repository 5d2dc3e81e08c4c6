"""The record of all safety tests by prompt. Each test of another policy spends more of the failure probability.

One journal holds the events of all splits, one per line. Each line contains the fingerprint of the line before it, and
the length and last fingerprint of the journal are stored in a second place. An edited, removed or shortened journal is
therefore detected. A split that shares prompts with a tested one counts as the same split, whatever its name, order or
spelling. Deleting both places at once cannot be detected. Each certificate therefore states how many tests its split
has served, for a reader to compare.
"""

import fcntl
import json
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from support.errors import ConfigError
from support.files import atomic_write_text, cache_folder, fingerprint
from support.prompt_identity import prompt_fingerprints, split_fingerprint

_START = "0" * 64


class Ledger:
    """The tests that used any of these prompts.

    Args:
        prompts: prompts of the safety split.
        folder: the journal's folder; by default $LIGHTNING_POSTTRAIN_CACHE/ledgers or
            ~/.cache/lightning-posttrain/ledgers.
    """

    def __init__(self, prompts: Iterable[Any], folder: str | None = None) -> None:
        prompts = list(prompts)
        self.split, self.prompts = split_fingerprint(prompts), prompt_fingerprints(prompts)
        place = (Path(folder) if folder else cache_folder("ledgers")).resolve()
        self.path = place / "journal.jsonl"
        self._head = cache_folder("ledger_heads", f"{fingerprint([str(place)])[:24]}.json")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Context in which no other process can start a test."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path.with_suffix(".lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            try:
                yield
            finally:
                fcntl.flock(lock, fcntl.LOCK_UN)

    def events(self) -> list[dict[str, Any]]:
        """The whole journal, oldest first. Raises ConfigError if it was changed after it was written."""
        try:
            lines = self.path.read_text().splitlines() if self.path.is_file() else []
            events = [json.loads(line) for line in lines]
            last = _START
            for number, event in enumerate(events, 1):
                if event["previous"] != last or event["hash"] != _hash(event):
                    raise ValueError(f"line {number} was changed, or a line before it removed")
                last = event["hash"]
            head: dict[str, Any] = (
                json.loads(self._head.read_text()) if self._head.is_file() else {"events": 0, "hash": _START}
            )
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
        return events

    def tests(self) -> list[dict[str, Any]]:
        """Tests that used any of these prompts, oldest first; an interrupted test has no verdict."""
        tests: dict[tuple[str, str], dict[str, Any]] = {}
        for event in self.events():
            if self.prompts & set(event["prompts"]):
                key = event["candidate"], event["question"]
                tests[key] = tests.get(key, {}) | {name: value for name, value in event.items() if name != "prompts"}
        return list(tests.values())

    def find(self, candidate: str, question: str) -> dict[str, Any] | None:
        """The finished test of this policy and question (cost model, threshold, ...) on this split; None if none."""
        same = (
            e
            for e in self.events()
            if e["split"] == self.split and e["candidate"] == candidate and e["question"] == question
        )
        return next((event for event in same if "verdict" in event), None)

    def begin(self, candidate: str, question: str, delta: float, allowance: int) -> float:
        """Spend one test before it runs, so that interrupting it does not give it back.

        Args:
            candidate, question: fingerprints of the policy and of the test's settings.
            delta: failure probability of all tests together.
            allowance: number of tests that delta is divided among (Bonferroni).

        Returns:
            The failure probability that this test may use. An interrupted test of the same candidate continues without
            spending more.

        Raises:
            ConfigError: the allowance is used up.
        """
        tests = self.tests()
        if any(test["candidate"] == candidate and test["question"] == question for test in tests):
            return delta / allowance
        if len(tests) >= allowance:
            others = sum(test["split"] != self.split for test in tests)
            shared = f", {others} of them under another split that shares prompts with it" if others else ""
            raise ConfigError(
                f"this safety split has been tested {len(tests)} time(s){shared} and test.allowance is {allowance}: "
                "another test would exceed the failure probability delta. The trained policy is in its run's "
                f"checkpoints, and the ledger is {self.path}. Use a fresh safety split (for procedural data another "
                "--seed_everything) or raise test.allowance, which divides delta among the tests, and run `python "
                "main.py test --ckpt_path ...` to test without training again."
            )
        self._append({"candidate": candidate, "question": question, "delta": delta / allowance})
        return delta / allowance

    def record(self, candidate: str, question: str, outcome: dict[str, Any]) -> dict[str, Any]:
        """Add the outcome of a test to the journal. Returns the event."""
        return self._append({"candidate": candidate, "question": question, **outcome})

    def _append(self, facts: dict[str, Any]) -> dict[str, Any]:
        events = self.events()
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        event = {"split": self.split, "prompts": sorted(self.prompts), "time": now, **facts}
        if events and now < events[-1]["time"]:
            event["clock"] = f"the clock is behind the last event's time, {events[-1]['time']}"
        event["previous"] = events[-1]["hash"] if events else _START
        event["hash"] = _hash(event)
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(event) + "\n")
            file.flush()
            os.fsync(file.fileno())
        atomic_write_text(self._head, json.dumps({"events": len(events) + 1, "hash": event["hash"]}))
        return event


def _hash(event: dict[str, Any]) -> str:
    return fingerprint([{name: value for name, value in event.items() if name != "hash"}])
