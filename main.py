"""The only entry point: python main.py fit | validate | test | predict --config configs/<method>.yaml"""

import lightning as L
from lightning.pytorch.cli import LightningCLI

import callbacks  # noqa: F401
import datamodules  # noqa: F401
from lightning_modules.base import PosttrainModule


class CLI(LightningCLI):
    def _parse_ckpt_path(self) -> None:
        pass


def main(args=None):
    return CLI(PosttrainModule, L.LightningDataModule, subclass_mode_model=True, subclass_mode_data=True, auto_configure_optimizers=False, save_config_callback=None, args=args)


if __name__ == "__main__":
    main()
