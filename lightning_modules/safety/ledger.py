"""What has been tested on a safety split: each test of another policy spends more of the failure probability."""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from support.errors import ConfigError
from support.files import atomic_write_text, cache_folder


class Ledger:
    """One file a split, named by the fingerprint of its prompts.

    Args:
        split: the fingerprint.
        folder: where ledgers are; $LIGHTNING_POSTTRAIN_CACHE/ledgers or ~/.cache/lightning-posttrain/ledgers by default.
    """

    def __init__(self, split: str, folder: str | None = None) -> None:
        self.split = split
        self.path = (Path(folder) if folder else cache_folder("ledgers")) / f"{split[:32]}.json"

    def entries(self) -> list[dict[str, Any]]:
        """Tests so far, oldest first. Raises ConfigError for an unreadable file: a lost ledger must not look like an unused split."""
        if not self.path.is_file():
            return []
        try:
            content = json.loads(self.path.read_text())
            if content["split"] != self.split:
                raise KeyError("split")
            return content["tests"]
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"the ledger {self.path} is damaged ({error!r}), so it is unknown how often this safety split was tested; restore it, or use another safety split."
            ) from error

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from testing on the same split meanwhile."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path.with_suffix(".lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            try:
                yield
            finally:
                fcntl.flock(lock, fcntl.LOCK_UN)

    def find(self, candidate: str, question: str) -> dict[str, Any] | None:
        """The recorded test of this very policy and question (cost model, threshold, ...), if there was one."""
        return next((e for e in self.entries() if e["candidate"] == candidate and e["question"] == question), None)

    def share(self, delta: float, allowance: int) -> float:
        """The failure probability that the next test may use. Raises ConfigError when the allowance is used up.

        Args:
            delta: of all tests together. allowance: number of tests that it is divided among (Bonferroni).
        """
        done = len(self.entries())
        if done >= allowance:
            raise ConfigError(
                f"this safety split has been tested {done} time(s) and test.allowance is {allowance}: a further test would spend more than the promised "
                f"failure probability. Use a fresh safety split (for procedural data, another --seed_everything), or raise test.allowance, which "
                f"divides delta among the tests; a policy that is already trained is kept in its run's checkpoints, and `main.py test --ckpt_path ...` "
                f"tests it without training again. The ledger is {self.path}."
            )
        return delta / allowance

    def record(self, entry: dict[str, Any]) -> None:
        """Append a test; the file is whole or unchanged."""
        content = {"split": self.split, "tests": [*self.entries(), entry]}
        atomic_write_text(self.path, json.dumps(content, indent=1))
        os.chmod(self.path, 0o644)
