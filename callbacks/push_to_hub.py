"""Upload of an exported folder to the Hugging Face Hub."""

import os
import shutil
from pathlib import Path
from typing import Any

import lightning as L
from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from callbacks.export import ExportPolicy
from callbacks.export_adapter import ExportAdapter
from support.errors import ConfigError


class PushToHub(L.Callback):
    """At the end of training, upload the exported folder with its model card to a repository of the Hub.

    The folder is that of the run's `ExportPolicy` or `ExportAdapter`, or `folder`. The repository is created if it does
    not exist. A failed upload does not fail the run: the folder stays, and the command that uploads it is printed. No
    run has this callback by default.

    Args:
        repo: name on the Hub, user/name.
        folder: the exported folder, such as `model.test.export` of HC-RLHF; None for that of the export callback.
        private: whether a new repository is private.
        dry_run: local folder that gets the files in place of the Hub, as <dry_run>/<repo>; nothing is uploaded.

    Raises:
        ConfigError: before training, if no folder is exported, the name is not valid, or nobody is logged in.
    """

    def __init__(self, repo: str, folder: str | None = None, private: bool = True, dry_run: str | None = None) -> None:
        try:
            validate_repo_id(repo)
        except HFValidationError as error:
            raise ConfigError(f"PushToHub: repo is {repo!r}, which is not a name of the Hub (user/name).") from error
        self.repo, self.folder, self.private, self.dry_run = repo, folder, private, dry_run
        self._finished = False

    def setup(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        if stage != "fit":
            return
        self._finished = False
        folders = _exported(trainer)
        if self.folder is None and len(folders) != 1:
            raise ConfigError(
                f"PushToHub: the run exports {len(folders)} folders ({', '.join(folders)}); add callbacks.ExportPolicy "
                "with a folder, or name the folder in PushToHub.folder."
            )
        if self.dry_run is None and get_token() is None:
            raise ConfigError(
                "PushToHub: nobody is logged in to the Hub; run `hf auth login` or set HF_TOKEN, or set "
                "PushToHub.dry_run to a local folder."
            )

    def on_fit_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        self._finished = not (trainer.fast_dev_run or trainer.interrupted)  # type: ignore[attr-defined]

    def teardown(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        """Upload after all callbacks' `on_fit_end`, whatever their order."""
        if stage != "fit" or not self._finished or not trainer.is_global_zero:
            return
        folder = Path(self.folder or _exported(trainer)[0])
        if not folder.is_dir():
            print(f"PushToHub: {folder} was not exported, so nothing is uploaded to {self.repo}.")
        elif self.dry_run is not None:
            target = Path(self.dry_run) / self.repo
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(folder, target)
            print(f"PushToHub: the files for {self.repo} are in {target}; nothing was uploaded (dry_run).")
        else:
            self._upload(folder)

    def _upload(self, folder: Path) -> None:
        api = HfApi()
        try:
            address = api.create_repo(self.repo, private=self.private, exist_ok=True)
            api.upload_folder(repo_id=self.repo, folder_path=os.fspath(folder), commit_message="Upload trained policy")
        except Exception as error:  # the network, or the Hub's refusal: no reason to lose the end of the run
            print(
                f"PushToHub: {folder} could not be uploaded to {self.repo} ({type(error).__name__}: "
                f"{str(error)[:300]}). The folder is complete; upload it with: hf upload {self.repo} {folder}"
            )
            return
        print(f"PushToHub: {folder} is at {address}")


def _exported(trainer: Any) -> list[str]:
    """The folders of the run's export callbacks."""
    exports = [callback for callback in trainer.callbacks if isinstance(callback, (ExportPolicy, ExportAdapter))]
    return list(dict.fromkeys(export.folder for export in exports))
