"""HC-RLHF as a module: rules instead of models, baselines, the supervised term, and runs that are killed on the way."""

import json
import math
import multiprocessing
import os
import signal

import pytest
import torch

import lightning_modules.hc_rlhf.safety_phase
import lightning_modules.hc_rlhf.score_models
from datamodules import PairSource, RecordsPrompts
from lightning_modules import HCRLHF, Constraint, Evaluation, KLPenalty, SafetyTest, ScorerTraining, SupervisedTerm
from lightning_modules.hc_rlhf import Ledger
from lightning_modules.hc_rlhf.score_models import ScoreModels
from objectives import ClippedSurrogate, ClopperPearson, Hoeffding
from policies import Policy, PolicyParams, Scorer
from policies.supervised import response_loss
from rewards import FunctionReward, PerTask, RecordsCost, RecordsReward
from rewards.models import SPANS, ModelScore
from rollouts import BatchPlan, SamplingParams
from support.errors import ConfigError
from support.prompt_identity import prompt_fingerprints
from tests.helpers import adamw, build, fit
from tests.test_cli import hc_rlhf

SHORT = SamplingParams(max_new_tokens=6)


def rule_based(model, **parts):
    small = {
        "constraint": Constraint(threshold=0.9),
        "cost": RecordsCost(),
        "batch": BatchPlan(prompts_per_rollout=4, group_size=2),
        "sampling": SHORT,
        "evaluation": Evaluation(sampling=SHORT),
        "optimizer": adamw(1e-3, weight_decay=0.01),
    } | parts
    return build(model, small.pop("rewards", [RecordsReward()]), HCRLHF, **small)


def train(module, folder, data=None, steps=2):
    return fit(module, steps, data=data or RecordsPrompts(32, 8, 30, seed=5), folder=folder)


def test_a_rule_takes_the_place_of_both_models(tmp_path, assistant):
    module = rule_based(assistant, bound=ClopperPearson(), loss=ClippedSurrogate())
    train(module, tmp_path)
    assert module.verdict.bound == "ClopperPearson" and module.verdict.safe and module.verdict.samples == 30
    facts = json.loads((tmp_path / "local/certificate/certificate.json").read_text())
    assert "RecordsCost" in facts["cost_model"]["parts"][0] and not (tmp_path / "local/lightning_logs").exists()
    assert 0 <= facts["mean"] <= 1 and SPANS["unsafe"] == RecordsCost.span


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cost_model": "somewhere"}, "both model.cost_model and model.cost are given"),
        ({"reward_model": "somewhere"}, "both model.reward_model and model.rewards are given"),
        ({"constraint": Constraint(threshold=0.2, cost_scale="probability")}, "has a scale of its own"),
        ({"bound": Hoeffding(0.0, 0.5)}, r"holds for costs in \[0, 0.5\]"),
        ({"supervised": SupervisedTerm(batch_size=4)}, "asks for 4 demonstrations per step, and the data module has 0"),
    ],
)
def test_parts_that_do_not_fit_are_refused(tmp_path, assistant, changes, message):
    with pytest.raises(ConfigError, match=message):
        train(rule_based(assistant, **changes), tmp_path)


def test_the_baselines_end_without_a_test(tmp_path, assistant, capsys):
    for changes in ({"lambda_init": 0.0}, {"lambda_init": 2.0, "lambda_lr": 0.0}, {"c1": 0.0, "c2": 0.0}):
        module = rule_based(assistant, constraint=Constraint(threshold=0.1, **changes), test=SafetyTest(skip=True))
        train(module, tmp_path)
        assert module.verdict is None and "NOT TESTED" in capsys.readouterr().out
        if "c1" not in changes:
            assert module.dual.value == changes["lambda_init"], "a penalty that is fixed stays"
        else:
            assert module.pessimism.kappa == 0 and module.pessimism.bound == pytest.approx(module.window.mean)
            assert float(module.trainer.callback_metrics["train/cost_ucb"]) == pytest.approx(module.window.mean)
    assert not (tmp_path / "local").exists()


def test_without_a_multiplier_only_the_reward_counts(tmp_path, assistant, monkeypatch):
    module = rule_based(assistant, constraint=Constraint(threshold=0.1, lambda_init=0.0), test=SafetyTest(skip=True))
    seen = {}
    monkeypatch.setattr(module, "sequence_kl", lambda batch: torch.zeros(len(batch.finish_reasons)))
    original = module.returns
    monkeypatch.setattr(module, "returns", lambda batch: seen.setdefault("returns", original(batch)))
    train(module, tmp_path, steps=1)
    assert torch.equal(seen["returns"], module.last_rollout.rewards["records_reward"])


def test_the_supervised_loss_is_the_mean_over_response_tokens(assistant):
    """Against one unpadded forward a row, position by position."""
    policy = Policy(PolicyParams(assistant))
    rows = RecordsPrompts(demonstrations=3, seed=1).rows("demonstration")
    total, count = 0.0, 0
    for row in rows:
        prompt = policy.encode(row["prompt"])
        response = policy.tokenizer(row["response"], add_special_tokens=False)["input_ids"] + [
            policy.tokenizer.eos_token_id
        ]
        with torch.no_grad():
            logits = policy.model(input_ids=torch.tensor([prompt + response]), use_cache=False).logits[0]
        for place, token in enumerate(response):
            scores = logits[len(prompt) + place - 1].tolist()
            total -= scores[token] - math.log(sum(map(math.exp, scores)))
            count += 1
    assert float(response_loss(policy, rows, 256).detach()) == pytest.approx(total / count, rel=1e-5)
    with pytest.raises(ConfigError, match="more than max_length=5"):
        response_loss(policy, rows, 5)


def test_the_supervised_term_pulls_towards_the_demonstrations(tmp_path, assistant):
    data = RecordsPrompts(32, 8, 30, seed=5, demonstrations=16)
    losses = []
    for coefficient in (0.0, 8.0):
        supervised = SupervisedTerm(coefficient, batch_size=8, max_length=256)
        module = rule_based(assistant, supervised=supervised, test=SafetyTest(skip=True), max_grad_norm=None)
        train(module, tmp_path, data, steps=4)
        losses.append(float(response_loss(module.policy, data.rows("demonstration"), 256).detach()))
    assert losses[1] < losses[0] - 0.05


def test_a_given_model_that_saw_the_safety_prompts_is_refused(tmp_path, assistant):
    safety = [row["prompt"] for row in RecordsPrompts(32, 8, 30, seed=5).rows("safety")]
    folder = tmp_path / "cost"
    Scorer(PolicyParams(assistant)).save(folder, {"id": "x", "prompts": sorted(prompt_fingerprints(safety[:3]))})
    module = rule_based(assistant, cost=None, cost_model=str(folder))
    with pytest.raises(
        ConfigError, match="3 of 30 prompts of the safety split are also in the cost model's training data"
    ):
        train(module, tmp_path)


def abstains(completions):
    return [None if index else 0.5 for index in range(len(completions))]


def test_a_cost_that_abstains_is_refused_before_the_multiplier(tmp_path, assistant):
    """One missing cost would make lambda, and every advantage after it, NaN."""
    module = rule_based(assistant, cost=FunctionReward(abstains, name="cost"))
    with pytest.raises(ConfigError, match=r"the cost is nan for 7 of 8 responses, first for prompt 'records"):
        train(module, tmp_path)
    assert math.isfinite(module.dual.value) and len(module.window) == 0
    module = rule_based(assistant, cost=FunctionReward(abstains, name="cost"), test=SafetyTest(skip=True))
    with pytest.raises(ConfigError, match="the cost is nan"):
        train(module, tmp_path)


def one_way(completions):
    return [0.0] * len(completions)


def always(value):
    return lambda completions: [value] * len(completions)


def test_another_function_or_another_model_is_another_cost(assistant):
    """The ledger tells questions apart by what decides the cost, not by its name."""
    other = Scorer(PolicyParams(assistant))
    torch.nn.init.constant_(other.head.bias, 1.0)
    third = Scorer(PolicyParams(assistant))
    third.tokenizer.chat_template = "{{ messages[0]['content'] }}!"
    parts = [
        FunctionReward(one_way, name="cost"),
        FunctionReward(lambda completions: [1.0] * len(completions), name="cost"),
        FunctionReward(always(0.1), name="cost"),
        FunctionReward(always(0.9), name="cost"),
        *(ModelScore(scorer, name="cost") for scorer in (Scorer(PolicyParams(assistant)), other, third)),
        PerTask({"default": RecordsCost()}, name="cost"),
        PerTask({"default": FunctionReward(always(0.1))}, name="cost"),
        PerTask({"default": FunctionReward(always(0.9))}, name="cost"),
        PerTask({"default": PerTask({"default": RecordsCost()})}, name="cost"),
        PerTask({"default": PerTask({"default": RecordsCost()}, scales={"default": 2.0})}, name="cost"),
    ]

    def identity_of(part):
        models = ScoreModels(None, None, [RecordsReward()], part, ScorerTraining(), "raw")
        return models.facts(*models.load(PolicyParams(assistant), None, None))["cost_model"]["id"]

    assert len({identity_of(part) for part in parts}) == len(parts)
    assert [identity_of(part) for part in parts] == [identity_of(part) for part in parts], (
        "and none differs from itself"
    )


def test_a_model_with_the_identity_of_another_in_its_facts_is_another_cost(tmp_path, assistant):
    ids = []
    for bias in (0.0, 1.0):
        scorer = Scorer(PolicyParams(assistant))
        torch.nn.init.constant_(scorer.head.bias, bias)
        scorer.save(tmp_path / str(bias), {"id": "the same"})
        models = ScoreModels(None, str(tmp_path / str(bias)), [RecordsReward()], None, ScorerTraining(), "raw")
        ids.append(models.facts(*models.load(PolicyParams(assistant), None, None))["cost_model"]["id"])
    assert ids[0] != ids[1]


# ---- killed on the way -----------------------------------------------------------------------------------------------


def killed(*arguments):
    os.kill(os.getpid(), signal.SIGKILL)


def between_phases(patch):
    original = lightning_modules.hc_rlhf.score_models.trained_scorer
    patch.setattr(
        lightning_modules.hc_rlhf.score_models,
        "trained_scorer",
        lambda kind, *rest: original(kind, *rest) if kind == "reward" else killed(),
    )


def between_steps(patch):
    original = HCRLHF.training_step
    patch.setattr(
        HCRLHF,
        "training_step",
        lambda self, rows, index: killed() if self.rollouts_done == 2 else original(self, rows, index),
    )


def inside_the_test(patch):
    patch.setattr(lightning_modules.hc_rlhf.safety_phase, "run_test", killed)


def after_the_test(patch):
    patch.setattr(lightning_modules.hc_rlhf.safety_phase, "publish", killed)


def _run(arguments, hurt):
    from main import main

    with pytest.MonkeyPatch.context() as patch:
        hurt(patch)
        main(arguments)


EARLY = [pytest.param(hurt, marks=pytest.mark.long) for hurt in (between_phases, between_steps)]


@pytest.mark.parametrize("hurt", [*EARLY, inside_the_test, after_the_test])
def test_a_killed_run_goes_on_without_paying_twice(here, assistant, hurt, capsys):
    """After SIGKILL the same command ends as an undisturbed run does, and the safety split has served one test."""
    from main import main

    arguments = [
        "fit",
        *hc_rlhf(
            assistant,
            here,
            **{"trainer.max_steps": 3, "trainer.logger": "false", "trainer.callbacks": "RolloutCheckpoint"},
        ),
    ]
    arguments.append("--trainer.callbacks.every_n_rollouts=1")
    worker = multiprocessing.get_context("fork").Process(target=_run, args=(arguments, hurt))
    worker.start()
    worker.join(300)
    assert worker.exitcode == -signal.SIGKILL
    capsys.readouterr()
    checkpoints = list((here / "runs/local/checkpoints").glob("*.ckpt"))
    assert bool(checkpoints) == (hurt is not between_phases)
    cli = main([*arguments, "--ckpt_path=last"] if checkpoints else arguments)
    out = capsys.readouterr().out
    assert "Reward model: trained before" in out, "a finished phase is not repeated"
    assert ("Cost model: training on" in out) == (hurt is between_phases)
    facts = json.loads((here / "runs/local/certificate/certificate.json").read_text())
    ledger = Ledger([row["prompt"] for row in cli.datamodule.rows("safety")])
    assert (
        len(ledger.tests()) == 1
        and facts["tests_on_this_split"] == 1
        and facts["delta_spent_on_this_split"] == pytest.approx(0.1)
    )
    undisturbed = main([*arguments, f"--trainer.default_root_dir={here}/undisturbed"])
    assert (
        json.loads((here / "undisturbed/local/certificate/certificate.json").read_text())["policy_sha256"]
        == facts["policy_sha256"]
    )
    for name, weight in undisturbed.model.state_dict().items():
        assert torch.equal(weight, cli.model.state_dict()[name]), name


def test_pairs_without_safety_labels_are_refused_before_a_model_is_trained(assistant, tmp_path, capsys):
    """The reward model could be trained on them, the cost model not."""
    turns = {"chosen": "yes", "rejected": "no"}
    pairs = [{k: f"\n\nHuman: {n}?\n\nAssistant: {text}" for k, text in turns.items()} for n in range(64)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    data = RecordsPrompts(32, 8, 30, seed=5, preferences=PairSource(str(tmp_path / "pairs.jsonl"), format="hh"))
    module = HCRLHF(
        PolicyParams(assistant), batch=BatchPlan(4, 2), sampling=SamplingParams(8), kl=KLPenalty(0.0),
        scorers=ScorerTraining(batch_size=4),
    )  # fmt: skip
    with pytest.raises(ConfigError, match="CostModel needs the column 'unsafe_0'|CostModel needs the column 'safer'"):
        fit(module, 1, data=data, folder=tmp_path)
    assert "Reward model: training" not in capsys.readouterr().out
