"""A later configuration or argument that names another class: what that class keeps of the settings so far."""

import pytest

from cli.application import CLI
from lightning_modules import GRPO, ProRL
from main import main
from objectives import CISPO, ClippedSurrogate, GroupNorm, RunningMean
from tests.helpers import ROOT


@pytest.fixture
def parsed(tmp_path, monkeypatch):
    """The module and the trainer of these arguments, built and not run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")
    monkeypatch.setattr(CLI, "_run_subcommand", lambda self, subcommand: None)

    def parse(*arguments):
        cli = main(["fit", f"--config={ROOT}/configs/grpo.yaml", "--trainer.logger=false", *arguments])
        return cli.model, cli.trainer

    return parse


def test_another_loss_starts_from_its_own_defaults(parsed):
    gspo = f"--config={ROOT}/configs/objectives/gspo.yaml"
    model, _ = parsed(gspo, "--model.loss=objectives.ClippedSurrogate")
    assert model.policy_loss == ClippedSurrogate()
    model, _ = parsed("--model.loss=objectives.CISPO", "--model.loss.ratio_cap=5")
    assert model.policy_loss == CISPO(ratio_cap=5), "clip_high of the method's default loss is not inherited"
    model, _ = parsed("--model.advantage.eps=0.5", "--model.advantage=objectives.RunningMean")
    assert model.advantage == RunningMean()


def test_the_same_class_keeps_its_settings(parsed):
    model, _ = parsed("--model.advantage.eps=0.5", "--model.advantage=objectives.GroupNorm")
    assert model.advantage == GroupNorm(eps=0.5)
    model, _ = parsed("--model.loss.clip_low=0.1", "--model.loss.clip_high=0.3")
    assert model.policy_loss == ClippedSurrogate(0.1, 0.3)


def test_a_callback_takes_nothing_over_from_the_one_before_it(parsed, tmp_path):
    for name, callback in (("first", "RolloutRecorder"), ("second", "RolloutCheckpoint")):
        options = "{every_n_rollouts: 20}" if name == "first" else "{}"
        text = f"trainer:\n  callbacks:\n  - class_path: callbacks.{callback}\n    init_args: {options}\n"
        (tmp_path / f"{name}.yaml").write_text(text)
    _, trainer = parsed("--config=first.yaml", "--config=second.yaml")
    (kept,) = [item for item in trainer.callbacks if type(item).__name__ == "RolloutCheckpoint"]
    assert kept.every_n_rollouts != 20


def test_another_method_keeps_what_was_set_and_brings_its_own_defaults(parsed):
    set_by_configuration = parsed()[0]
    assert type(set_by_configuration) is GRPO and set_by_configuration.batch.group_size == 8
    model, _ = parsed("--model=lightning_modules.ProRL")
    assert type(model) is ProRL and model.batch.group_size == 8, "set in grpo.yaml"
    assert model.policy_params.model == "assets/tiny_reasoner"
    assert (model.policy_loss.clip_high, model.kl.difference_clamp, model.batch.updates_per_rollout) == (0.4, 20.0, 4)
    assert model.evaluation.sampling.temperature == 0.6, "ProRL's own, although GRPO has a default of the same name"
