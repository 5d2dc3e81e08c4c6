"""Atomic writes, checks of checkpoints, fingerprints of contents, and the paths of shipped files."""

import hashlib
import json
import os
import pickle
import shutil
import tempfile
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

_INDEX_CLASSES = (
    "BytesStorageMetadata",
    "ChunkStorageMetadata",
    "Metadata",
    "MetadataIndex",
    "StorageMeta",
    "TensorProperties",
    "TensorStorageMetadata",
    "_MEM_FORMAT_ENCODING",
)
#: the names that the index of a folder of shards may use, besides dtypes
_INDEX_NAMES = {
    *(("torch.distributed.checkpoint.metadata", name) for name in _INDEX_CLASSES),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    ("torch.serialization", "_get_layout"),
    ("torch", "Size"),
    ("pathlib", "PosixPath"),
    ("collections", "OrderedDict"),
}


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


def atomic_write_text(path: Path, text: str) -> None:
    """Write `text` atomically: a reader sees the old file or the new one, never a part, even after a crash."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".tmp")
    os.fchmod(handle, 0o666 & ~UMASK)  # the mode of an ordinary new file; mkstemp's is for the owner alone
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def flush_to_disk(path: Path) -> None:
    """Wait until a file, a folder's list of names, or a checkpoint folder with its files is safe on the disk."""
    for item in [*path.rglob("*"), path] if path.suffix and path.is_dir() else [path]:
        handle = os.open(item, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def remove(path: Path) -> None:
    """Delete a file, or a folder with its content, if it exists."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def damage(path: Path) -> str | None:
    """The reason why a checkpoint (one file, or a folder of shards) is incomplete or damaged; None if it is intact."""
    if path.is_dir():
        return None if (path / ".metadata").is_file() else "its shards have no index (.metadata)"
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
            return None if broken is None else f"its part {broken!r} does not match its checksum"
    except Exception as error:  # changed names, sizes and flags of an archive raise many kinds
        return str(error)


class _IndexReader(pickle.Unpickler):
    """Reads the index of a folder of shards, which PyTorch would unpickle without restriction."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _INDEX_NAMES or (
            module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        ):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"its index asks for {module}.{name}")


def unreadable(path: Path) -> str | None:
    """The reason why an intact checkpoint cannot be read as plain data of a run, or None.

    Nothing that the checkpoint holds is executed.
    """
    try:
        if path.is_dir():
            with open(path / ".metadata", "rb") as file:
                _IndexReader(file).load()
            path = path / "meta.pt"  # Lightning's name for what is not in shards
        saved = torch.load(path, map_location="meta", mmap=True, weights_only=True)
    except Exception as error:  # a damaged or hostile pickle can raise anything
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no reason given'}"
    from_lightning = isinstance(saved, dict) and "pytorch-lightning_version" in saved
    return None if from_lightning else "it is not a checkpoint of a Lightning run"


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
