"""Does an exported folder still hold what its certificate speaks of?"""

import hashlib
import json
from pathlib import Path
from typing import Any

from support.errors import ConfigError

CERTIFICATE = "certificate.json"


def file_hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of an exported policy, the certificate itself left out."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != CERTIFICATE)
    found = {}
    for path in files:
        with path.open("rb") as file:
            found[path.relative_to(folder).as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def verify(folder: str | Path) -> dict[str, Any]:
    """The certificate of an exported policy, if every file is the one that was certified.

    Raises:
        ConfigError: there is no certificate, it does not say SAFE, or files were changed, added or removed since.
    """
    folder = Path(folder)
    try:
        facts: dict[str, Any] = json.loads((folder / CERTIFICATE).read_text())
        certified = dict(facts["files"])
        verdict = facts["verdict"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{folder} has no readable certificate ({error!r}); only folders that HC-RLHF exported after a passed test can be verified."
        ) from None
    if verdict != "SAFE":
        raise ConfigError(f"the certificate in {folder} says {verdict}.")
    now = file_hashes(folder)
    differences = {
        "changed": sorted(name for name in now.keys() & certified.keys() if now[name] != certified[name]),
        "added": sorted(now.keys() - certified.keys()),
        "removed": sorted(certified.keys() - now.keys()),
    }
    if any(differences.values()):
        said = "; ".join(f"{kind}: {', '.join(names)}" for kind, names in differences.items() if names)
        raise ConfigError(
            f"{folder} is not what its certificate speaks of ({said}); export the policy again, or test what is there now."
        )
    return facts
