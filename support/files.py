"""Atomic writes, fingerprints of contents, and the paths of shipped files."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

#: Read once at import: it can only be read by setting it, which other threads would notice.
UMASK = os.umask(0o077)
os.umask(UMASK)
#: the folder that holds the packages: the project's folder, or that of the installed distribution
INSTALLED = Path(__file__).resolve().parent.parent


def shipped(name: str) -> Path:
    """The path `name`, or the installed copy of a configs/... or assets/... that the working directory lacks."""
    path = Path(name).expanduser()
    if not path.exists() and path.parts[:1] in (("configs",), ("assets",)) and (INSTALLED / path).exists():
        return INSTALLED / path
    return path


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text that may come from elsewhere. Raises ValueError for any text that is not JSON.

    `json.loads` raises RecursionError, which is no ValueError, for a text that is nested too deeply.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def atomic_write_text(path: Path, text: str) -> None:
    """Write `text` atomically: a reader sees the old file or the new one, never a part, even after a crash."""
    atomic_write_bytes(path, text.encode())


def atomic_write_bytes(path: Path, content: bytes) -> None:
    """Write `content` atomically, as `atomic_write_text` does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".tmp")
    os.fchmod(handle, 0o666 & ~UMASK)  # the mode of an ordinary new file; mkstemp's is for the owner alone
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def remove_unfinished(folder: Path) -> None:
    """Remove what killed processes left of files that they were writing, in a folder that no process writes to."""
    for pattern in ("*.tmp", "*/*.tmp", "*/*.partial"):
        for path in folder.glob(pattern):
            if not path.is_symlink():
                remove(path)


def flush_to_disk(path: Path) -> None:
    """Wait until a file, a folder's list of names, or a checkpoint folder with its files is safe on the disk."""
    for item in [*path.rglob("*"), path] if path.suffix and path.is_dir() else [path]:
        handle = os.open(item, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def remove(path: Path) -> None:
    """Delete a file, or a folder with its content, if it exists; of a link, the link alone."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def fingerprint(items: Iterable[Any]) -> str:
    """SHA-256 over the JSON form of the items, in their order."""
    digest = hashlib.sha256()
    for item in items:
        digest.update(json.dumps(item, sort_keys=True, ensure_ascii=False, default=str).encode())
        digest.update(b"\x1e")
    return digest.hexdigest()


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def names_a_file(text: str) -> bool:
    """Whether a text is the name of a file that exists."""
    return bool(text) and len(text) <= 4096 and "\n" not in text and os.path.isfile(text)


def path_hashes(path: Path) -> str | list[tuple[str, str]]:
    """Hash of the file, or (name in the folder, hash) of all files below the folder; "" where nothing is."""
    if not path.is_dir():
        return file_hash(path) if path.is_file() else ""
    return [(str(file.relative_to(path)), file_hash(file)) for file in sorted(path.rglob("*")) if file.is_file()]


def weights_fingerprint(weights: Mapping[str, torch.Tensor] | Iterable[tuple[str, torch.Tensor]]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of weights, in the order of the names.

    Args:
        weights: a state dict, or pairs of name and tensor, which are read one at a time.
    """
    digests = {}
    for name, weight in weights.items() if isinstance(weights, Mapping) else weights:
        # Cloned: a numpy view would keep the storage of weights that were gathered for this call.
        tensor = weight.detach().cpu().clone()
        data = tensor.view(-1).view(torch.uint8).numpy()
        digests[name] = f"{tensor.dtype}|{tuple(tensor.shape)}|{hashlib.sha256(data.tobytes()).hexdigest()}"
    return fingerprint(sorted(digests.items()))


def cache_folder(*parts: str) -> Path:
    """A folder for files that can be made again: $LIGHTNING_POSTTRAIN_CACHE, or ~/.cache/lightning-posttrain."""
    root = os.environ.get("LIGHTNING_POSTTRAIN_CACHE")
    return Path(root or Path.home() / ".cache" / "lightning-posttrain").joinpath(*parts)
