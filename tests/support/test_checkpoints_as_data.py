"""A checkpoint is data: what would execute something is refused by name, and nothing is executed."""

import os
import pickle
import shutil
import zipfile

import pytest
import torch
import torch.distributed.checkpoint as dcp

from main import main
from support.checkpoints import damage, unreadable
from support.errors import ConfigError
from tests.test_cli import short


class Payload:
    """Unpickling it makes a folder."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_checkpoint_with_a_payload_is_refused_before_anything_starts(here, reasoner):
    for number, content in enumerate(
        [{"state_dict": Payload(here / "executed"), "pytorch-lightning_version": "2.6"}, [1, 2], {"state_dict": {}}]
    ):
        file = here / f"{number}.ckpt"
        torch.save(content, file)
        assert damage(file) is None, "the file itself is whole"
        with pytest.raises(
            ConfigError, match=rf"{number}\.ckpt cannot be read as plain data, and nothing in it was executed"
        ):
            main(["fit", *short(reasoner, "--trainer.logger=false"), f"--ckpt_path={file}"])
    assert not (here / "executed").exists() and not (here / "runs").exists()


def test_what_is_no_archive_is_refused(here, reasoner):
    """torch.load also reads a bare pickle and a tar file."""
    (here / "bare.ckpt").write_bytes(pickle.dumps(Payload(here / "executed")))
    torch.save({"x": Payload(here / "executed")}, here / "old.ckpt", _use_new_zipfile_serialization=False)
    with zipfile.ZipFile(here / "zip.ckpt", "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Payload(here / "executed")))
        archive.writestr("archive/version", "3\n")
    for name in ("bare", "old", "zip", "missing"):
        with pytest.raises(ConfigError, match=rf"{name}\.ckpt"):
            main(["validate", *short(reasoner, "--trainer.logger=false")[:1], f"--ckpt_path={here}/{name}.ckpt"])
    assert not (here / "executed").exists()


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_the_index_of_shards_is_data_too(here):
    weights = {"a": torch.zeros(2, 3), "b": torch.ones(2, dtype=torch.bfloat16), "step": 5, "deep": {"x": [1, "a"]}}
    dcp.save(weights, checkpoint_id=here / "shards", no_dist=True)
    torch.save({"pytorch-lightning_version": "2.6"}, here / "shards" / "meta.pt")
    assert damage(here / "shards") is None and unreadable(here / "shards") is None
    for hidden in (Payload(here / "executed"), print, torch.load, os.system, shutil.rmtree):
        (here / "shards" / ".metadata").write_bytes(pickle.dumps(hidden))
        assert "its index asks for" in unreadable(here / "shards")
    for text in (
        b"ctorch.distributed.checkpoint.filesystem\nos.system\n(S'touch executed'\ntR.",
        b"\x80\x04\x8c\x05torch\x8c\x08hub.load\x93.",
    ):
        (here / "shards" / ".metadata").write_bytes(text)
        assert "its index asks for" in unreadable(here / "shards")
    assert not (here / "executed").exists()


def test_weights_of_another_shape_are_refused(here, reasoner, tmp_path_factory):
    from assets.make_untrained import reasoner_tokenizer
    from tests.conftest import save_tiny

    main(["fit", *short(reasoner, "--trainer.logger=false", "--trainer.max_steps=1", "--trainer.limit_val_batches=0")])
    file = here / "runs/local/checkpoints/rollout_000001.ckpt"
    assert unreadable(file) is None
    saved = torch.load(file, weights_only=True)
    saved["state_dict"]["policy.model.model.norm.weight"] = torch.ones(5)
    torch.save(saved, file)
    with pytest.raises(ConfigError, match=r"norm.weight has the shape \(5,\), this model's \(32,\)"):
        main(
            [
                "validate",
                *short(reasoner, "--trainer.logger=false")[:1],
                f"--model.policy.model={reasoner}",
                f"--ckpt_path={file}",
            ]
        )
    larger = save_tiny(tmp_path_factory.mktemp("larger"), reasoner_tokenizer(), layers=3)
    with pytest.raises(ConfigError, match="another policy or LoRA setting"):
        main(
            [
                "validate",
                *short(larger, "--trainer.logger=false")[:1],
                f"--model.policy.model={larger}",
                f"--ckpt_path={file}",
            ]
        )
