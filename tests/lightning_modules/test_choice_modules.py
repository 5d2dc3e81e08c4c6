"""The stress test and answer uncertainty as `main.py test` runs them: of models, of checkpoints, beside pass@k."""

import json
from pathlib import Path

import pytest
import torch

from callbacks import AnswerUncertainty, RolloutCheckpoint
from datamodules import ChoiceQuestions, PairSource, PreferencePairs, StressQuestions
from lightning_modules import PPO, RewardModel, StressTest, Uncertainty
from main import main
from policies import LoRA, PolicyParams
from rewards import FunctionReward, MultipleChoice
from rollouts import SamplingParams
from support.errors import ConfigError
from tests.helpers import ROOT, build, digits, fit, quiet_trainer, run_config, sums

SMALL = {"data.size": 6, "data.val_batch": 8, "trainer.logger": "false", "trainer.accelerator": "cpu"}


def command(config, model, *words, stage="test", **changes):
    settings = {"model.policy.model": model, "trainer.enable_progress_bar": "false"} | SMALL | changes
    return main([stage, f"--config={ROOT}/configs/{config}.yaml", *words, *(f"--{k}={v}" for k, v in settings.items())])


def run_test(module, data=None, ckpt_path=None, callbacks=()):
    trainer = quiet_trainer(callbacks=list(callbacks))
    trainer.test(module, datamodule=data or StressQuestions("quiz", size=6, seed=0), ckpt_path=ckpt_path, verbose=False)
    return trainer


def labels_of(module):
    return {
        (answer.question, answer.condition, len(answer.lengths)): answer.scores["label"] for answer in module.answers
    }


def test_the_command_prints_the_table_and_writes_the_report_and_the_picture(reasoner, here, capsys):
    cli = command("stress_test", reasoner, **{"data.labels": "letters"})
    printed = capsys.readouterr().out
    assert "longer_right" in printed and "right to wrong" in printed
    report = json.loads(Path("runs/local/stress_test.json").read_text())
    base = report["figures"]["label"]["base"]["accuracy"]
    assert base["low"] <= base["mean"] <= base["high"] and Path("runs/local/stress_test.png").stat().st_size > 5000
    assert base["mean"] == pytest.approx(float(cli.trainer.callback_metrics["test/label/base/accuracy"]))
    assert len(report["answers"]) == 6 * (1 + 3 + 4 + 1), "every form of every question"
    assert {tuple(sorted(one["scores"])) for one in report["answers"] if not one["statement"]} == {("label", "text")}


def test_texts_that_edits_share_are_scored_once(reasoner, monkeypatch):
    asked = []

    def counted(policy, prompts, texts):
        asked.extend(text for options in texts for text in options)
        return [torch.zeros(len(options)) for options in texts]

    monkeypatch.setattr("lightning_modules.stress_test.text_scores", counted)
    module = StressTest(PolicyParams(reasoner), scoring=["text"])
    run_test(module, StressQuestions("quiz", size=6, seed=0, conditions=["longer_right", "longer_wrong", "longer_all"]))
    assert len(asked) == 6 * 8, "each option as it is and lengthened"


@pytest.mark.parametrize("lora", [None, "{r: 2, alpha: 4}"])
def test_a_checkpoint_of_a_training_run_is_measured_with_its_own_policy(lora, reasoner, here):
    words = [] if lora is None else [f"--model.policy.lora={lora}"]
    changes = {"model.optimizer.lr": 0.1, "trainer.enable_checkpointing": "true", "data.batch_size": 4}
    changes["data.source"] = "quiz_biased"
    rollouts = ("model.batch.prompts_per_rollout", "model.batch.group_size", "model.sampling.max_new_tokens")
    trained = run_config(["sft"], reasoner, *words, unchanged=rollouts, **changes, **{"trainer.max_steps": 2}).model
    direct = StressTest(PolicyParams(reasoner))
    run_test(direct)
    before = labels_of(direct)
    direct.policy = trained.policy.eval()
    run_test(direct)
    (checkpoint,) = Path("runs").glob("*/checkpoints/*.ckpt")
    measured = command("stress_test", reasoner, *words, f"--ckpt_path={checkpoint}", **{"data.labels": "letters"}).model
    reference = StressQuestions("quiz", size=6, seed=0, template="{question}\n{options}")
    run_test(direct, reference)
    assert labels_of(measured).keys() == labels_of(direct).keys() and labels_of(direct) != before
    for key, scores in labels_of(direct).items():
        assert labels_of(measured)[key] == pytest.approx(scores, abs=1e-5)
    newest = command("stress_test", reasoner, *words, "--ckpt_path=last", **{"data.labels": "letters"}).model
    assert labels_of(newest) == labels_of(measured), "last is the newest run of any method"
    with pytest.raises(ConfigError, match=r"another policy than these settings\. Add: --model\.policy\.lora"):
        other = [] if words else ["--model.policy.lora={r: 2, alpha: 4}"]
        command("stress_test", reasoner, *other, f"--ckpt_path={checkpoint}")


def test_critic_reference_and_optimiser_of_a_checkpoint_stay_behind(reasoner, tmp_path):
    module = build(reasoner, [FunctionReward(digits)], PPO)
    fit(module, 2, [RolloutCheckpoint(folder=str(tmp_path))])
    (checkpoint,) = tmp_path.glob("*.ckpt")
    saved = torch.load(checkpoint, weights_only=True)["state_dict"]
    assert any("critic" in name for name in saved)
    measured = StressTest(PolicyParams(reasoner))
    run_test(measured, ckpt_path=checkpoint)
    expected = StressTest(PolicyParams(reasoner))
    expected.policy = module.policy.eval()
    run_test(expected)
    assert labels_of(measured) == labels_of(expected)


def test_a_checkpoint_that_is_no_language_model_is_refused(reasoner, tmp_path):
    pair = {"response_0": "yes", "response_1": "no", "better_response_id": 0}
    rows = [{"prompt": f"{n}?"} | pair for n in range(8)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = PreferencePairs(PairSource(str(tmp_path / "pairs.jsonl")), batch_size=2)
    fit(RewardModel(PolicyParams(reasoner)), 1, [RolloutCheckpoint(folder=str(tmp_path))], data=data)
    (checkpoint,) = tmp_path.glob("*.ckpt")
    with pytest.raises(ConfigError, match=r"made by RewardModel|lacks \d+ of this model's weights"):
        run_test(StressTest(PolicyParams(reasoner)), ckpt_path=checkpoint)


@pytest.mark.parametrize("stage", ["fit", "validate", "predict"])
def test_other_stages_than_test_are_refused_before_anything_is_loaded(stage, reasoner, here):
    with pytest.raises(ConfigError, match="StressTest measures a policy.*python main.py test"):
        command("stress_test", reasoner, stage=stage, **{"data.val_size": 2})


@pytest.mark.parametrize(
    ("module", "data", "message"),
    [
        (StressTest, ChoiceQuestions("quiz", size=4), "row '0' has no 'condition'"),
        (StressTest, None, "has no 'choices'.*datamodules.StressQuestions"),
        (Uncertainty, None, "has no 'choices'.*datamodules.ChoiceQuestions"),
    ],
)
def test_rows_of_another_kind_are_refused(module, data, message, reasoner):
    with pytest.raises(ConfigError, match=message):
        run_test(module(PolicyParams(reasoner)), data or sums())


def test_a_question_longer_than_the_context_is_refused_before_the_first(reasoner):
    data = ChoiceQuestions("quiz", size=4, template="{question} " + 300 * "a" + "{options}")
    module = Uncertainty(PolicyParams(reasoner))
    with pytest.raises(ConfigError, match="row '0'"):
        run_test(module, data)
    assert not module.meter.records


# ---- answer uncertainty ----------------------------------------------------------------------------------------------


def unrelated(prompts):
    return [float(hash(str(prompt)) % 1000) / 1000 for prompt in prompts]


def half_failing(prompts, topic):
    return [None if name == "facts" else 0.5 for name in topic]


def test_uncertainty_reports_entropies_and_judges_by_topic_and_steps(reasoner, here, capsys):
    command("uncertainty", reasoner, **{"data.size": 48, "data.labels": "letters"})
    report = json.loads(Path("runs/local/uncertainty.json").read_text())
    groups = ["all", "topic/arithmetic", "topic/facts", "steps/0", "steps/1", "steps/2", "steps/3", "steps/4"]
    assert list(report["figures"]) == groups and "ROC-AUC entropy" in capsys.readouterr().out
    assert Path("runs/local/uncertainty.png").stat().st_size > 5000
    data = ChoiceQuestions("facts", size=40, labels="choices", template="{question}")
    module = Uncertainty(PolicyParams(reasoner), judges=[FunctionReward(unrelated), FunctionReward(half_failing)])
    run_test(module, data)
    figures = module.figures
    assert figures["all"]["unrelated"]["roc_auc"].low < 0.5 < figures["all"]["unrelated"]["roc_auc"].high
    assert "half_failing" in figures["topic/arithmetic"] and "half_failing" not in figures["topic/facts"]
    with pytest.raises(ConfigError, match="named.*entropy.*name of its own"):
        Uncertainty(PolicyParams(reasoner), judges=[FunctionReward(unrelated, name="entropy")])


def test_the_callback_measures_the_same_beside_pass_at_k(reasoner, tmp_path):
    questions = ChoiceQuestions("quiz", size=12, seed=0)
    expected = Uncertainty(PolicyParams(reasoner))
    run_test(expected, questions)
    module = build(reasoner, [MultipleChoice()], sampling=SamplingParams(max_new_tokens=4))
    callback = AnswerUncertainty()
    trainer = quiet_trainer(callbacks=[callback], folder=tmp_path)
    trainer.test(module, datamodule=questions, verbose=False)
    assert callback.figures == expected.figures and "test/pass@1" in trainer.callback_metrics
    assert float(trainer.callback_metrics["test/uncertainty/accuracy"]) == pytest.approx(
        expected.figures["all"]["accuracy"].mean
    )
    assert (tmp_path / "local/uncertainty.json").is_file()
    module = build(reasoner, [FunctionReward(digits)])
    other = AnswerUncertainty(questions=questions)  # questions of its own beside any test rows
    quiet_trainer(callbacks=[other], folder=tmp_path).test(module, datamodule=sums(), verbose=False)
    assert other.figures == expected.figures
    with pytest.raises(ConfigError, match="AnswerUncertainty without `questions` reads multiple-choice questions"):
        quiet_trainer(callbacks=[callback], folder=tmp_path).test(module, datamodule=sums(), verbose=False)
    with pytest.raises(ConfigError, match="RewardModel has a"):
        quiet_trainer(callbacks=[other]).test(RewardModel(PolicyParams(reasoner)), datamodule=questions, verbose=False)


def test_a_policy_with_adapters_is_measured(reasoner):
    plain, adapted = (Uncertainty(PolicyParams(reasoner, lora=lora)) for lora in (None, LoRA(r=2, alpha=4)))
    for module in (plain, adapted):
        run_test(module, ChoiceQuestions("quiz", size=12, seed=0))
    assert plain.figures["all"]["accuracy"] == adapted.figures["all"]["accuracy"], "fresh adapters change nothing"
