"""Class paths, saved configurations and commands of earlier versions stay valid.

The two configurations beside this file are unchanged files of runs that the version before the rooms were rearranged
wrote: null for every part left at the method's values, `support.tracking` for the logger, a function for the optimiser.
"""

import importlib
import importlib.util
import runpy
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import tracking
from cli.earlier_configurations import OPTIMIZERS, brought_up_to_date
from cli.resume import last_checkpoint
from lightning_modules import GRPO, AdaptThink, KLPenalty
from main import CLI, main
from objectives import ClippedSurrogate
from policies import PolicyParams
from rewards import Reward
from rollouts import BatchPlan
from support.errors import ConfigError
from support.moved import MOVED, present_path

ROOT = Path(__file__).resolve().parents[2]
SAVED = {name: Path(__file__).parent / f"{name}_of_an_earlier_version.yaml" for name in ("grpo", "adapt_think")}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Everything but the run itself: parsing, and making trainer, module and data module."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")
    monkeypatch.setattr(CLI, "_run_subcommand", lambda self, subcommand: None)
    return tmp_path


@pytest.mark.parametrize("former", MOVED)
def test_a_moved_module_is_the_same_module_under_both_names(former):
    assert not list(ROOT.glob(f"{former.replace('.', '/')}.py")), "the name is in use again: remove it from MOVED"
    module = importlib.import_module(former)
    assert module is importlib.import_module(MOVED[former])
    assert module.__spec__.name == module.__name__ == MOVED[former]


def test_classes_are_the_same_by_former_paths():
    from lightning_modules.base import PosttrainModule
    from lightning_modules.safety.settings import Constraint
    from support.tracking import PatientMLFlowLogger

    from lightning_modules.hc_rlhf import HCRLHF

    assert PatientMLFlowLogger is tracking.PatientMLFlowLogger
    assert issubclass(HCRLHF, PosttrainModule) and Constraint is importlib.import_module("lightning_modules").Constraint
    assert present_path("support.tracking.PatientMLFlowLogger") == "tracking.logger.PatientMLFlowLogger"
    assert present_path("somebody.elses.Class") == "somebody.elses.Class"


def test_a_saved_configuration_of_grpo(here):
    cli = main(["fit", f"--config={SAVED['grpo']}"])
    assert type(cli.model) is GRPO and type(cli.trainer.logger) is tracking.PatientMLFlowLogger
    assert cli.model.kl == KLPenalty(0.04) and cli.model.batch == BatchPlan(4, 4)
    assert vars(cli.model.policy_loss) == vars(ClippedSurrogate())
    optimizer = cli.model.optimizer_callable([torch.nn.Parameter(torch.zeros(1))])
    assert optimizer.defaults["lr"] == 1e-6 and optimizer.defaults["weight_decay"] == 0.0


def test_a_saved_configuration_of_adapt_think(here):
    cli = main(["fit", f"--config={SAVED['adapt_think']}", "--trainer.logger=false"])
    assert type(cli.model) is AdaptThink and cli.model.batch.group_size == 4 and cli.model.sampling.max_new_tokens == 8
    assert cli.model.optimizer_callable([torch.nn.Parameter(torch.zeros(1))]).defaults["lr"] == 1e-4


class PartsInTheSignature(GRPO):
    """A method whose parts cannot be null, and which sets its loss itself."""

    def __init__(
        self,
        policy: PolicyParams,
        rewards: list[Reward],
        *,
        batch: BatchPlan = BatchPlan(8, 4, updates_per_rollout=2),  # noqa: B008
        kl: KLPenalty = KLPenalty(0.3, "k2"),  # noqa: B008
        importance_cap: float | None = 3.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            policy, rewards, batch=batch, kl=kl, importance_cap=importance_cap, loss=ClippedSurrogate(0.1), **kwargs
        )


def test_null_for_a_part_means_the_methods_values(here):
    path = here / "saved.yaml"
    text = SAVED["grpo"].read_text().replace("lightning_modules.GRPO", f"{__name__}.PartsInTheSignature")
    text = text.replace("importance_cap: 2.0", "importance_cap: null")
    path.write_text(text)
    model = main(["fit", f"--config={path}", "--trainer.logger=false"]).model
    assert model.kl == KLPenalty(0.3, "k2"), "null where the type has no null: the method's values"
    assert model.policy_loss.clip_low == 0.1, "null for a part that the method no longer takes: dropped"
    assert model.importance_cap is None, "null where the type has it: null"
    path.write_text(text.replace("loss: null", "loss: {class_path: objectives.Reinforce}"))
    with pytest.raises(ConfigError, match=r"PartsInTheSignature sets its loss itself, so model\.loss\S* cannot be set"):
        main(["fit", f"--config={path}", "--trainer.logger=false"])
    path.write_text(text.replace("loss: null", "los: null"))
    with pytest.raises(ConfigError, match="unknown key 'los'"):
        main(["fit", f"--config={path}", "--trainer.logger=false"])


def test_default_optimisers_are_written_out_with_their_values():
    """The functions, as long as they exist, make the same optimiser."""
    weight = [torch.nn.Parameter(torch.zeros(1))]
    for former, written in OPTIMIZERS.items():
        module, _, name = former.rpartition(".")
        exists = importlib.util.find_spec(module) is not None
        function = getattr(importlib.import_module(module), name, None) if exists else None
        made = torch.optim.AdamW(weight, **written["init_args"])
        assert written["class_path"] == "torch.optim.AdamW"
        assert function is None or function(weight).defaults == made.defaults


@pytest.mark.parametrize("path", sorted(ROOT.glob("configs/**/*.yaml")), ids=lambda path: path.stem)
def test_shipped_configurations_have_todays_form(path):
    assert brought_up_to_date(path.read_text()) == path.read_text()


def test_the_last_run_is_found_by_a_former_class_path(tmp_path, capsys):
    run = tmp_path / "runs/first"
    run.mkdir(parents=True)
    config = yaml.safe_load(SAVED["grpo"].read_text())
    config["model"]["class_path"] = "lightning_modules.preference.RewardModel"
    (run / "config_fit.yaml").write_text(yaml.safe_dump(config))
    shutil.copytree(run, tmp_path / "runs/broken")
    (tmp_path / "runs/broken/config_fit.yaml").write_text("model: {class_path: [")
    assert last_checkpoint(tmp_path / "runs", "lightning_modules.reward_models.RewardModel") is None
    said = capsys.readouterr().out
    assert f"newest run of lightning_modules.reward_models.RewardModel, {run}, has no undamaged checkpoint" in said
    assert "broken/config_fit.yaml cannot be read (ConfigError), so its run is passed over" in said


def test_a_former_command_still_runs(monkeypatch):
    for name in ("support.inspect", "support.tracking"):
        monkeypatch.delitem(sys.modules, name, raising=False)  # as in a new process
    monkeypatch.setattr("sys.argv", ["inspect", "absent.jsonl"])
    with pytest.raises(SystemExit, match="the file absent.jsonl does not exist"):
        runpy.run_module("support.inspect", run_name="__main__")
    monkeypatch.setattr("sys.argv", ["tracking"])
    with pytest.raises(SystemExit, match="no file is given"):
        runpy.run_module("support.tracking", run_name="__main__")
