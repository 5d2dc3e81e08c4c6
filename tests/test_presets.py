"""Every overlay in configs/objectives/ on GRPO's configuration parses and runs one rollout as its page says."""

import math
import re

import pytest
import yaml

from tests.helpers import ROOT, run_config

PRESETS = sorted((ROOT / "configs/objectives").glob("*.yaml"))
PAGE = (ROOT / "docs/objectives.md").read_text()


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.stem)
def test_a_preset_runs(preset, reasoner, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")
    changes = {"model.sampling.max_new_tokens": 6, "trainer.max_steps": 2, "trainer.callbacks": "[]"}
    cli = run_config(["grpo", f"objectives/{preset.stem}"], reasoner, **changes)
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
