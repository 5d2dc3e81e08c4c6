"""Verify that an exported folder matches its certificate. The certificate is not signed.

Whoever can write the folder can also write another certificate. `verify` detects files that were changed, added or
removed, certificates that contradict themselves, and certificates that this user's ledger contradicts.
"""

import json
import math
from pathlib import Path
from typing import Any

from lightning_modules.hc_rlhf.exported import folder_weights
from lightning_modules.hc_rlhf.ledger import Journal
from support.errors import ConfigError
from support.files import file_hash

CERTIFICATE = "certificate.json"
#: entries that `verify` reads, with their types
NEEDED: dict[str, Any] = {"verdict": str, "ucb": (int, float), "threshold": (int, float), "files": dict}
NEEDED |= {"policy_sha256": str, "test": dict, "ledger": dict}


def file_hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of an exported policy, except the certificate at its top.

    Raises:
        ConfigError: the folder holds something that is neither a regular file nor a folder.
    """
    hashes = {}
    for path in sorted(_entries(folder)):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink() or not path.is_file():
            raise ConfigError(
                f"{folder} holds {name}, which is not a regular file, so what it leads to may change after the check; "
                "replace it by the file itself, or remove it."
            )
        if name != CERTIFICATE:
            hashes[name] = file_hash(path)
    return hashes


def _entries(folder: Path) -> list[Path]:
    """Everything in a folder and its folders but these folders themselves; links are not followed."""
    entries = []
    for path in folder.iterdir():
        entries += _entries(path) if path.is_dir() and not path.is_symlink() else [path]
    return entries


def verify(folder: str | Path) -> dict[str, Any]:
    """The certificate of an exported policy, after a check that all files are the certified ones.

    Raises:
        ConfigError: there is no complete certificate, it does not prove its verdict SAFE, files were changed, added or
            removed, the weights are not the tested ones, or the ledger has no such test.
    """
    folder = Path(folder)
    facts = _read(folder)
    if facts["verdict"] != "SAFE":
        raise ConfigError(
            f"the certificate in {folder} has the verdict {facts['verdict']}, not SAFE; train and test again."
        )
    if not (facts["ucb"] <= facts["threshold"] and all(math.isfinite(facts[name]) for name in ("ucb", "threshold"))):
        raise ConfigError(
            f"the certificate in {folder} contradicts itself: its verdict is SAFE, but its bound {facts['ucb']} is not "
            f"at most its threshold {facts['threshold']}. Export the policy again from its run."
        )
    now, certified = file_hashes(folder), facts["files"]
    differences = {
        "changed": sorted(name for name in now.keys() & certified.keys() if now[name] != certified[name]),
        "added": sorted(now.keys() - certified.keys()),
        "removed": sorted(certified.keys() - now.keys()),
    }
    if any(differences.values()):
        listed = "; ".join(f"{kind}: {', '.join(names)}" for kind, names in differences.items() if names)
        raise ConfigError(
            f"{folder} does not match its certificate ({listed}); export the policy again, or test its present files."
        )
    weights = folder_weights(folder)
    if weights != facts["policy_sha256"]:
        raise ConfigError(
            f"the weights in {folder} have the fingerprint {weights[:16]}, but {facts['policy_sha256'][:16]} were "
            "tested; export the policy again from its run."
        )
    _compare_with_ledger(folder, facts)
    return facts


def _read(folder: Path) -> dict[str, Any]:
    """The certificate's facts. Raises ConfigError if it is not a regular file with every entry that is needed."""
    path = folder / CERTIFICATE
    try:
        if path.is_symlink() or not path.is_file():
            raise ValueError("certificate.json is not a regular file")
        facts: dict[str, Any] = json.loads(path.read_text())
        wrong = [name for name, kind in NEEDED.items() if not isinstance(facts.get(name), kind)]
        if wrong:
            raise ValueError(f"without a valid entry {', '.join(map(repr, wrong))}")
        if not isinstance(facts["ledger"].get("path"), str):
            raise ValueError("without the path of its ledger")
        float(facts["ucb"]), float(facts["threshold"])
    except (OSError, ValueError, AttributeError, RecursionError, OverflowError) as error:
        raise ConfigError(
            f"{folder} has no readable certificate ({error!r}); name a folder that this version of HC-RLHF exported "
            "after a passed test, e.g. runs/<run>/policy."
        ) from None
    return facts


def _compare_with_ledger(folder: Path, facts: dict[str, Any]) -> None:
    """Refuse a certificate whose test its ledger, where it is on this machine, does not have with this outcome."""
    journal = Journal(Path(facts["ledger"]["path"]).parent)
    if not journal.path.is_file():
        return
    fields = ("split", "candidate", "question")
    wanted = [facts["test"].get(field) for field in fields]
    for event in journal.events():
        if [event[field] for field in fields] == wanted and "verdict" in event:
            verdict = event["verdict"]
            if all(verdict[name] == facts[name] for name in ("ucb", "threshold")) and verdict["safe"]:
                return
    raise ConfigError(
        f"the ledger {journal.path} has no passed test like the one in the certificate of {folder}; export the policy "
        "again from its run."
    )
