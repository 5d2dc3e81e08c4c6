"""Every overlay in configs/objectives/ on GRPO's configuration: it parses, one rollout runs, and the page about objectives tells the truth of it."""

import math
import re
from pathlib import Path

import pytest
import yaml

from main import main

ROOT = Path(__file__).resolve().parent.parent
PRESETS = sorted((ROOT / "configs/objectives").glob("*.yaml"))
PAGE = (ROOT / "docs/objectives.md").read_text()


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.stem)
def test_a_preset_runs(preset, reasoner, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")
    small = {
        "model.policy.model": reasoner,
        "model.batch.prompts_per_rollout": 2,
        "model.batch.group_size": 4,
        "model.sampling.max_new_tokens": 6,
        "data.train_size": 8,
        "data.val_size": 2,
        "trainer.max_steps": 2,
        "trainer.limit_val_batches": 0,
        "trainer.logger": "false",
        "trainer.enable_checkpointing": "false",
        "trainer.enable_progress_bar": "false",
        "trainer.callbacks": "[]",
        "trainer.accelerator": "cpu",
    }
    cli = main(
        [
            "fit",
            f"--config={ROOT}/configs/grpo.yaml",
            f"--config={preset}",
            *(f"--{name}={value}" for name, value in small.items()),
        ]
    )
    found, given = cli.trainer.callback_metrics, yaml.safe_load(preset.read_text())["model"]["init_args"]
    assert math.isfinite(float(found["train/loss"])) and math.isfinite(float(found["train/grad_norm"]))
    parts = {"advantage": cli.model.advantage, "loss": cli.model.policy_loss, "aggregation": cli.model.aggregation}
    for name, part in parts.items():
        assert given[name]["class_path"] == f"objectives.{type(part).__name__}"
        assert all(getattr(part, key, value) == value for key, value in given[name].get("init_args", {}).items())


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.stem)
def test_the_table_of_papers_says_what_the_preset_sets(preset):
    (row,) = re.findall(rf"^\|.*`{preset.stem}`.*\|$", PAGE, re.MULTILINE)
    given = yaml.safe_load(preset.read_text())["model"]["init_args"]
    for name in ("advantage", "loss", "aggregation"):
        assert f"`{given[name]['class_path'].removeprefix('objectives.')}" in row, (name, row)
    kl = given.get("kl", {})
    assert (f"{kl['coefficient']:g} {kl['estimator']}" if kl.get("coefficient") else "none") in row
