"""What has been tested on which safety prompts: each test of another policy spends more of the failure probability.

One journal for all splits, a line an event, each line carrying the fingerprint of the one before; how long the journal is and how it
ends is kept in a second place. So an edited, removed or shortened journal is noticed, and a split that shares prompts with a tested
one is the same split, whatever its name, order or spelling. Who removes both places at once cannot be noticed here: certificates name
the journal's state, so that a reader can.
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
    """The tests that any of these prompts served.

    Args:
        prompts: of the safety split.
        folder: where the journal is; $LIGHTNING_POSTTRAIN_CACHE/ledgers or ~/.cache/lightning-posttrain/ledgers by default.
    """

    def __init__(self, prompts: Iterable[Any], folder: str | None = None) -> None:
        prompts = list(prompts)
        self.split, self.prompts = split_fingerprint(prompts), prompt_fingerprints(prompts)
        place = (Path(folder) if folder else cache_folder("ledgers")).resolve()
        self.path = place / "journal.jsonl"
        self._head = cache_folder("ledger_heads", f"{fingerprint([str(place)])[:24]}.json")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from testing meanwhile."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path.with_suffix(".lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            try:
                yield
            finally:
                fcntl.flock(lock, fcntl.LOCK_UN)

    def events(self) -> list[dict[str, Any]]:
        """The whole journal, oldest first. Raises ConfigError if it is not what was written."""
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
                raise ValueError(f"it has {len(events)} line(s), and {head['events']} were written")
            if head["events"] and events[head["events"] - 1]["hash"] != head["hash"]:
                raise ValueError("it is another journal than the one that was written")
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise ConfigError(
                f"the ledger of safety tests, {self.path}, cannot be trusted: {error}. It is therefore unknown how often these prompts were tested; restore the "
                f"file, or use another safety split with another folder in test.ledger."
            ) from error
        return events

    def tests(self) -> list[dict[str, Any]]:
        """Tests that used any of these prompts, oldest first; of one that was interrupted only its beginning."""
        found: dict[tuple[str, str], dict[str, Any]] = {}
        for event in self.events():
            if self.prompts & set(event["prompts"]):
                key = event["candidate"], event["question"]
                found[key] = found.get(key, {}) | {name: value for name, value in event.items() if name != "prompts"}
        return list(found.values())

    def find(self, candidate: str, question: str) -> dict[str, Any] | None:
        """The finished test of this very policy and question (cost model, threshold, ...) on this split, if there was one."""
        same = (
            e
            for e in self.events()
            if e["split"] == self.split and e["candidate"] == candidate and e["question"] == question
        )
        return next((event for event in same if "verdict" in event), None)

    def begin(self, candidate: str, question: str, delta: float, allowance: int) -> float:
        """Spend one test before it is done, so that a test whose outcome displeases cannot be interrupted and forgotten.

        Args:
            candidate, question: fingerprints of the policy and of what is asked.
            delta: of all tests together. allowance: number of tests that it is divided among (Bonferroni).

        Returns:
            The failure probability that this test may use. An interrupted test of the same candidate goes on without spending more.

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
                f"this safety split has been tested {len(tests)} time(s){shared} and test.allowance is {allowance}: a further test would spend more than the promised "
                f"failure probability. Use a fresh safety split (for procedural data, another --seed_everything), or raise test.allowance, which "
                f"divides delta among the tests; a policy that is already trained is kept in its run's checkpoints, and `main.py test --ckpt_path ...` "
                f"tests it without training again. The ledger is {self.path}."
            )
        self._append({"candidate": candidate, "question": question, "delta": delta / allowance})
        return delta / allowance

    def record(self, candidate: str, question: str, outcome: dict[str, Any]) -> dict[str, Any]:
        """Write down how a test ended; returns the event."""
        return self._append({"candidate": candidate, "question": question, **outcome})

    def _append(self, facts: dict[str, Any]) -> dict[str, Any]:
        events = self.events()
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        event = {"split": self.split, "prompts": sorted(self.prompts), "time": now, **facts}
        if events and now < events[-1]["time"]:
            event["clock"] = f"the clock stands before the last event's {events[-1]['time']}"
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
