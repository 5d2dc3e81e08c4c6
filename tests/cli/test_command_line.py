"""A command line may leave out a folder or a configuration; where it leaves out too much, it is told what to add."""

import json
from pathlib import Path

import pytest
import yaml

from cli.command_line import completed
from main import main
from support.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]


def test_a_checkpoint_predicts_with_no_flag_repeated(here, reasoner, capsys):
    flags = [
        f"--model.policy.model={reasoner}",
        "--model.batch.prompts_per_rollout=2",
        "--model.batch.group_size=2",
        "--model.sampling.max_new_tokens=8",
        "--model.evaluation={samples: 3, sampling: {max_new_tokens: 5}}",
        "--model.rewards+=rewards.Format",
        "--data.val_size=4",
        "--trainer.max_steps=2",
        "--trainer.accelerator=cpu",
        "--trainer.logger=false",
    ]
    main(["fit", "--config=configs/grpo.yaml", *flags])  # not in this folder: the shipped one is found
    checkpoint, predictions = Path("runs/local/checkpoints/rollout_000002.ckpt"), Path("runs/local/predictions.jsonl")
    main(["predict", f"--config={ROOT}/configs/grpo.yaml", *flags, f"--ckpt_path={checkpoint}"])
    repeated = predictions.read_text()
    assert json.loads(repeated.splitlines()[0]).keys() >= {"reward/exact_answer", "reward/format"}
    for given in (["--ckpt_path", str(checkpoint)], ["--ckpt_path=last"], [f"--ckpt_path={checkpoint.absolute()}"]):
        predictions.unlink()
        main(["predict", *given])
        assert predictions.read_text() == repeated
    assert "Configuration of the checkpoint's run: " in capsys.readouterr().out
    # What stands beside the checkpoint on the command line counts more than what the run had.
    main(["predict", f"--ckpt_path={checkpoint}", "--model.evaluation.samples=1"])
    assert len(predictions.read_text().splitlines()) * 3 == len(repeated.splitlines())
    # Training goes on in the same way.
    main(["fit", "--ckpt_path=last", "--trainer.max_steps=3"])
    assert Path("runs/local/checkpoints/rollout_000003.ckpt").exists()
    assert (
        yaml.safe_load(Path("runs/local/config_fit.yaml").read_text())["model"]["init_args"]["evaluation"]["samples"]
        == 3
    )


def test_a_checkpoint_without_a_configuration_is_refused(here):
    with pytest.raises(ConfigError, match="runs/x/checkpoints/a.ckpt does not exist"):
        main(["predict", "--ckpt_path=runs/x/checkpoints/a.ckpt"])
    with pytest.raises(ConfigError, match="no run under runs and no --config, so there is nothing to predict"):
        main(["predict", "--ckpt_path", "last"])
    with pytest.raises(ConfigError, match="no run under elsewhere"):
        main(["test", "--ckpt_path", "last", "--trainer.default_root_dir", "elsewhere"])
    Path("weights.ckpt").touch()
    with pytest.raises(
        ConfigError, match="weights.ckpt comes without the configuration .* Name the configuration with --config"
    ):
        main(["validate", "--ckpt_path", "weights.ckpt"])


@pytest.mark.parametrize("form", [["--config", "{}"], ["--config={}"], ["-c", "{}"], ["-c={}"]])
def test_shipped_configurations_are_found_from_anywhere_and_own_ones_come_first(here, form):
    def asked(name):
        return completed(["fit", *(part.format(name) for part in form)])[-1].rpartition("=")[2]

    assert asked("configs/grpo.yaml") == str(ROOT / "configs/grpo.yaml")
    with pytest.raises(ConfigError, match="absent.yaml does not exist"):
        asked("configs/absent.yaml")
    with pytest.raises(
        ConfigError, match="pyproject.toml does not exist"
    ):  # only configs/ and assets/ are looked for elsewhere
        asked("pyproject.toml")
    Path("configs").mkdir()
    Path("configs/grpo.yaml").touch()
    assert asked("configs/grpo.yaml") == "configs/grpo.yaml"


def test_nothing_is_added_where_a_configuration_or_a_class_is_named(here):
    Path("a.yaml").touch()
    for given in (["--config=a.yaml"], ["-c", "a.yaml"], ["--model=GRPO"], ["--help"]):
        args = ["predict", "--ckpt_path=runs/x/checkpoints/a.ckpt", *given]
        assert completed(args) == args
    assert completed(["--help"]) == ["--help"] and completed(["fit", "--model.help", "GRPO"]) == [
        "fit",
        "--model.help",
        "GRPO",
    ]
