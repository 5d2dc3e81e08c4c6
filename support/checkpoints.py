"""Checkpoints as data: a file, or a folder of shards, is examined and read without executing anything that it holds.

PyTorch reads three parts of a folder of shards by unrestricted unpickling or by names that the folder itself gives:
its index, the shards that hold other values than tensors, and the paths of the shards. `damage` and `unreadable` look
at all of them first. A folder also has a manifest, the SHA-256 of each of its files. A single file is a zip archive,
which has checksums of its own.
"""

import hashlib
import io
import itertools
import json
import os
import pickle
import re
import stat
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from support.files import atomic_write_text, remove

#: name of a checkpoint; its number is the count of rollouts
NAME = re.compile(r"rollout_(\d{6,9})\.ckpt", re.ASCII)
#: what a killed process leaves of a checkpoint that it was writing
UNFINISHED = re.compile(r"rollout_\d{6,9}\.(partial|replaced)", re.ASCII)
MANIFEST = "manifest.json"
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


def rollouts_of(name: str) -> int:
    """The number of rollouts in a checkpoint's name; -1 for any other name."""
    match = NAME.fullmatch(name)
    return int(match[1]) if match else -1


def newest_first(folder: Path) -> list[Path]:
    """The checkpoints in a folder by their number of rollouts: times are lost in copies, and clocks step back."""
    paths = [path for path in folder.glob("rollout_*") if rollouts_of(path.name) >= 0]
    return sorted(paths, key=lambda path: rollouts_of(path.name), reverse=True)


def sweep(folder: Path) -> None:
    """Remove what a killed process left of a checkpoint; one that it was replacing gets its name back."""
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if UNFINISHED.fullmatch(path.name):
            whole = path.with_suffix(".ckpt")
            if path.suffix == ".replaced" and not whole.exists():
                os.replace(path, whole)
            else:
                remove(path)


def write_manifest(folder: Path) -> None:
    """Write the SHA-256 of every file of a folder of shards into it."""
    files = {path.name: _sha256(path) for path in sorted(folder.iterdir()) if path.name != MANIFEST}
    atomic_write_text(folder / MANIFEST, json.dumps({"files": files}, indent=1))


def _sha256(path: Path) -> str:
    with _opened(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _opened(path: Path) -> io.BufferedReader:
    """A regular file, opened; anything else (a pipe, a link within a checkpoint's folder) is refused."""
    if not stat.S_ISREG(os.lstat(path).st_mode):
        raise ValueError(f"{path.name} is not a regular file")
    return open(path, "rb")


def damage(path: Path) -> str | None:
    """The reason why a checkpoint (one file, or a folder of shards) is incomplete or damaged; None if it is intact."""
    try:
        if path.is_dir():
            return _damage_of_shards(path)
        with _opened(path.resolve()) as file, zipfile.ZipFile(file) as archive:
            broken = archive.testzip()
            return None if broken is None else f"its part {broken!r} does not match its checksum"
    except Exception as error:  # changed names, sizes and flags of an archive raise many kinds
        return str(error) or type(error).__name__


def _damage_of_shards(folder: Path) -> str | None:
    if not (folder / ".metadata").is_file():
        return "its shards have no index (.metadata)"
    if (folder / MANIFEST).is_file():
        with _opened(folder / MANIFEST) as file:
            expected = json.load(file)["files"]
        present = {path.name for path in folder.iterdir()} - {MANIFEST}
        if lost := sorted(set(expected) - present):
            return f"its part {lost[0]!r} is missing"
        if added := sorted(present - set(expected)):
            return f"its part {added[0]!r} is not in its manifest"
        changed = (name for name, value in expected.items() if _sha256(folder / name) != value)
        broken = next(changed, None)
        return None if broken is None else f"its part {broken!r} does not match its checksum"
    with _opened(folder / "meta.pt") as file:
        archives = [("meta.pt", io.BytesIO(file.read()))]
    for name, content in itertools.chain(_pieces(folder), archives):
        with zipfile.ZipFile(content) as archive:
            if (broken := archive.testzip()) is not None:
                return f"its part {broken!r} ({name}) does not match its checksum"
    return None


class _IndexReader(pickle.Unpickler):
    """Reads the index of a folder of shards, which PyTorch would unpickle without restriction."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _INDEX_NAMES or (
            module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        ):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"its index asks for {module}.{name}")


def _pieces(folder: Path) -> Iterator[tuple[str, io.BytesIO]]:
    """(kind, content) of every piece of the shards that the index names; kind is "tensor" or "other".

    Raises:
        Exception: of any type; a damaged or hostile index can raise anything.
    """
    with _opened(folder / ".metadata") as file:
        index = _IndexReader(file).load()
    for key, piece in index.storage_data.items():
        name = piece.relative_path
        if not isinstance(name, str) or name != os.path.basename(name) or name in ("", ".", ".."):
            raise ValueError(f"its index names {name!r}, which is not a file of its folder")
        if getattr(piece, "transform_descriptors", None):
            raise ValueError(f"its index asks for the transformations {piece.transform_descriptors!r}")
        with _opened(folder / name) as shard:
            shard.seek(piece.offset)
            content = shard.read(piece.length)
        if len(content) != piece.length:
            raise ValueError(f"its part {name!r} is cut off")
        is_tensor = isinstance(index.state_dict_metadata.get(key.fqn), TensorStorageMetadata)
        yield "tensor" if is_tensor else "other", io.BytesIO(content)


def unreadable(path: Path) -> str | None:
    """The reason why an intact checkpoint cannot be read as plain data of a run, or None.

    Nothing that the checkpoint holds is executed.
    """
    try:
        if path.is_dir():
            for kind, content in _pieces(path):
                if kind == "other":  # PyTorch would unpickle it without restriction
                    torch.load(content, map_location="cpu", weights_only=True)
            path = path / "meta.pt"  # Lightning's name for what is not in shards
        with _opened(path.resolve()):
            saved = torch.load(path, map_location="meta", mmap=True, weights_only=True)
    except Exception as error:  # a damaged or hostile pickle can raise anything
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no reason given'}"
    from_lightning = isinstance(saved, dict) and "pytorch-lightning_version" in saved
    return None if from_lightning else "it is not a checkpoint of a Lightning run"


class _Remembering(io.FileIO):
    """A file that remembers the first error of a write, which torch.save replaces by one about file positions."""

    error: OSError | None = None

    def write(self, data: Any) -> int:
        view, written = memoryview(data).cast("B"), 0
        try:
            while written < len(view):
                written += super().write(view[written:]) or 0
        except OSError as error:
            self.error = self.error or error
            raise
        return written


class InPlaceCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint where it belongs. Lightning's own way collects it in memory, and then in a file in /tmp."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with _Remembering(path, "wb") as file:
            try:
                torch.save(checkpoint, file)
            except RuntimeError:
                if file.error is not None:
                    raise file.error from None
                raise
