"""Verify that an exported folder matches its certificate."""

import hashlib
import json
from pathlib import Path
from typing import Any

from support.errors import ConfigError

CERTIFICATE = "certificate.json"


def file_hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of an exported policy except the certificate itself."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != CERTIFICATE)
    hashes = {}
    for path in files:
        with path.open("rb") as file:
            hashes[path.relative_to(folder).as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    return hashes


def verify(folder: str | Path) -> dict[str, Any]:
    """The certificate of an exported policy, after a check that all files are the certified ones.

    Raises:
        ConfigError: there is no certificate, its verdict is not SAFE, or files were changed, added or removed.
    """
    folder = Path(folder)
    try:
        facts: dict[str, Any] = json.loads((folder / CERTIFICATE).read_text())
        certified = dict(facts["files"])
        verdict = facts["verdict"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{folder} has no readable certificate ({error!r}); name a folder that HC-RLHF exported after a passed "
            "test, e.g. runs/<run>/policy."
        ) from None
    if verdict != "SAFE":
        raise ConfigError(f"the certificate in {folder} has the verdict {verdict}, not SAFE; train and test again.")
    now = file_hashes(folder)
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
    return facts
