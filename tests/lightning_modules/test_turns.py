"""Training on conversations: what carries a gradient, credit by turn, and what tables, predictions and pages show."""

import json
import math

import mlflow
import pandas
import pytest
import torch

from callbacks import CompletionsTable, CompletionTraces, RolloutRecorder, WritePredictions
from callbacks.completions import table
from callbacks.traces import group
from cli import inspect
from cli.plan_report import batches
from cli.run_plan import RunPlan
from lightning_modules import GRPO, Evaluation, KLPenalty, Shaping
from lightning_modules.core.turn_credit import turn_advantages, turn_returns
from objectives import KTAE, GroupNorm
from policies import PolicyParams
from rewards import FunctionReward, TurnRewards
from rollouts import BatchPlan, RolloutBatch, SamplingParams, Turns, read_rollout
from support.errors import ConfigError
from tests.helpers import build, digits, fit, quiet_trainer, sums
from tests.helpers.batches import batch_of_texts
from tests.helpers.talks import Chat


def chatting(model, **parts):
    settings = {"environment": Chat(), "sampling": SamplingParams(64), "batch": BatchPlan(2, 4)}
    rewards = parts.pop("rewards", [TurnRewards(), FunctionReward(digits)])
    return build(model, rewards, **(settings | parts))


@pytest.mark.parametrize("packing", [True, False])
def test_logits_of_environment_tokens_have_no_gradient(reasoner, packing):
    """The output of the last norm decides one token's logits and nothing else; every term of the loss is on."""
    shaping = Shaping(entropy_bonus=0.1, credit="turn")
    module = chatting(reasoner, packing=packing, shaping=shaping, kl=KLPenalty(coefficient=0.1))
    module.configure_model()
    passes, logprobs = [], module.policy.logprobs

    def keep(norm, inputs, output):
        if output.requires_grad:
            output.retain_grad()
            passes[-1].append(output)

    def noted(groups, *options, **named):
        passes.append([groups])
        return logprobs(groups, *options, **named)

    module.policy.bare.get_decoder().norm.register_forward_hook(keep)
    module.policy.logprobs = noted
    fit(module, 1, seed=3)
    ((groups, states),) = [each for each in passes if len(each) == 2]
    batch, width = module.last_rollout, groups.completion_ids.shape[1]
    if packing:
        before = states.grad[0, groups.packed.source]
    else:
        before = states.grad[:, -width - 1 : -1][groups.completion_mask]
    chosen = batch.action_mask[:, :width][batch.completion_mask[:, :width]]
    assert before.shape[0] == len(chosen)
    assert not before[~chosen].any() and (~chosen).sum() > 100
    assert before[chosen].any(1).float().mean() > 0.9


def test_a_rollout_learns_from_turns_and_logs_them(reasoner, tmp_path):
    module = chatting(reasoner)
    trainer = fit(module, 2, [CompletionsTable(2, 1), RolloutRecorder(1)], folder=tmp_path, seed=0)
    batch, logged = module.last_rollout, trainer.callback_metrics
    assert batch.turns.counts.tolist() == [3] * 8
    assert float(logged["train/turns"]) == 3 and 0.5 < float(logged["train/environment_fraction"]) < 1
    assert float(logged["train/turns_exhausted"]) == 0
    assert float(logged["train/digits"]) == pytest.approx(float(batch.turns.values["digits"].mean()))
    assert float(logged["train/reward/turn_rewards"]) == pytest.approx(float(batch.turns.rewards.sum(1).mean()))
    shown = pandas.read_json(tmp_path / "local/completions/train_000002.json", orient="split")
    assert shown["turns"].tolist() == [3] * 8 and all(text.count(",") == 2 for text in shown["turn rewards"])
    (newest,) = sorted(tmp_path.glob("local/rollouts/*2.parquet"))
    again = read_rollout(newest, module.policy.pad_token_id, module.policy.decode)
    assert torch.equal(again.turns.number, batch.turns.number) and again.messages == batch.messages
    page = inspect.main([str(newest)]).read_text()
    assert page.count('class="turn">turn 3<') == 8
    fixed = int((batch.completion_mask & ~batch.action_mask).sum())
    assert page.count('<span class="environment">') == fixed


def test_predictions_validations_and_traces_show_turns(reasoner, tmp_path):
    module = chatting(reasoner, evaluation=Evaluation(samples=2))
    trainer = quiet_trainer(callbacks=[WritePredictions()], folder=tmp_path, limit_val_batches=1.0)
    trainer.validate(module, datamodule=sums(val_size=3), verbose=False)
    assert float(trainer.callback_metrics["val/turns"]) == 3
    facts = group(module.last_validation[0], 1)
    assert [len(completion["turns"]) for completion in facts["completions"]] == [3, 3]
    assert facts["completions"][0]["turns"][0]["text"] == module.last_validation[0].turn_texts[2][0]
    trainer.predict(module, datamodule=sums(val_size=3))
    rows = [json.loads(line) for line in (tmp_path / "local/predictions.jsonl").read_text().splitlines()]
    for row in rows:
        assert len(row["turn_rewards"]) == len(row["turn_finish"]) == 3
        assert [value for value in row["logprobs"]] and len(row["turn"]) == row["length"]
        assert all(value == 0 for value, turn in zip(row["logprobs"], row["turn"], strict=True) if turn < 0)
        spoken = "".join(text for text, turn in zip(row["tokens"], row["turn"], strict=True) if turn == 1)
        assert spoken and spoken in row["completion"]
    assert "turn 2" in inspect.main([str(tmp_path / "local/predictions.jsonl")]).read_text()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"turn": [0]}, "its 'turn' is not one whole number per token"),
        ({"turn": [0, 1.5]}, "its 'turn' is not one whole number per token"),
        ({"turn_rewards": ["a"]}, "its 'turn_rewards' are not numbers"),
        ({"turn_finish": None}, "its 'turn_finish' are not texts"),
    ],
)
def test_records_with_damaged_turns_are_refused(changes, message, tmp_path):
    record = {
        "id": 1, "prompt": "?", "finish": "eos", "length": 2, "tokens": ["a", "b"], "logprobs": [0.0, 0.0],
        "turn": [0, -1], "turn_rewards": [None], "turn_finish": ["eos"],
    }  # fmt: skip
    (tmp_path / "whole.jsonl").write_text(json.dumps(record))
    assert "grey text" in inspect.main([str(tmp_path / "whole.jsonl")]).read_text()
    (tmp_path / "damaged.jsonl").write_text(json.dumps(record | changes))
    with pytest.raises(ConfigError, match=message):
        inspect.main([str(tmp_path / "damaged.jsonl")])


def test_a_trace_has_one_span_per_turn(reasoner, tmp_path, monkeypatch):
    from tracking.trace_record import trace

    client = mlflow.MlflowClient()
    run = client.create_run(client.create_experiment("turns")).info.run_id
    turns = [{"text": "a", "tokens": 1, "finish": "eos", "reward": 0.5}, {"text": "b", "tokens": 2, "finish": "stop"}]
    facts = {
        "name": "val", "rollout": 1, "judge": "GRPO", "time_ms": 1, "prompt": "?", "prompt_id": "1",
        "completions": [{"completion": "ab", "rewards": {}, "turns": turns}, {"completion": "c", "rewards": {}}],
    }  # fmt: skip
    trace(client, run, facts)
    (found,) = mlflow.search_traces(locations=[client.get_run(run).info.experiment_id], return_type="list")
    spans = {span.name: span for span in found.data.spans}
    assert set(spans) == {"val", "completion 1", "completion 2", "turn 1", "turn 2"}
    assert spans["turn 2"].parent_id == spans["completion 1"].span_id and spans["turn 2"].outputs == "b"
    assert spans["turn 1"].attributes["reward"] == 0.5


# ---- credit by turn -------------------------------------------------------------------------------------------------


def made_by_hand():
    """Two prompts of two rows, with 2, 1, 2 and 2 turns of unequal length."""
    number = torch.tensor([[0, 0, -1, 1, 1, 1], [0, 0, 0, -1, -1, -1], [0, -1, -1, 1, -1, -1], [0, 0, -1, -1, 1, -1]])
    mask = torch.tensor([[1] * 6, [1] * 3 + [0] * 3, [1] * 4 + [0] * 2, [1] * 5 + [0]]).bool()
    rewards = torch.tensor([[1.0, 2.0], [3.0, math.nan], [0.0, 5.0], [4.0, math.nan]])
    reasons = [["eos", "eos"], ["length"], ["eos", "eos"], ["eos", "stop"]]
    return RolloutBatch(
        prompt_ids=torch.zeros(2, 1, dtype=torch.long), prompt_mask=torch.ones(2, 1).bool(),
        completion_ids=torch.arange(24).view(4, 6), completion_mask=mask, action_mask=mask & (number >= 0),
        behaviour_logprobs=torch.zeros(4, 6), finish_reasons=["eos", "length", "eos", "stop"], rows=[{}, {}],
        turns=Turns(number, rewards, reasons, {}, torch.zeros(4, dtype=torch.long)),
    )  # fmt: skip


def test_returns_of_turns_sum_to_the_completion_and_others_rewards_go_to_the_last_turn():
    batch = made_by_hand()
    returns = turn_returns(batch, torch.tensor([10.0, 20.0, 30.0, 40.0]), [TurnRewards(weight=2.0)])
    expected = torch.tensor([[2.0, 8.0], [20.0, math.nan], [0.0, 30.0], [8.0, 32.0]])
    assert torch.allclose(returns, expected, equal_nan=True)
    without = turn_returns(batch, torch.tensor([10.0, 20.0, 30.0, 40.0]), [])
    assert torch.allclose(without, torch.tensor([[0, 10.0], [20.0, math.nan], [0, 30.0], [0, 40.0]]), equal_nan=True)


def test_advantages_of_turns_by_hand():
    """First turns of a prompt are compared with first turns, a second turn without another gets none."""
    batch = made_by_hand()
    returns = torch.tensor([[2.0, 8.0], [20.0, math.nan], [0.0, 30.0], [8.0, 32.0]])
    advantages = turn_advantages(batch, returns, GroupNorm("none"), None)
    expected = torch.tensor(
        [[-9.0, -9, 0, 0, 0, 0], [9, 9, 9, 0, 0, 0], [-4, 0, 0, -1, 0, 0], [4, 4, 0, 0, 1, 0]],
    )  # fmt: skip
    assert torch.allclose(advantages, expected)


def test_an_advantage_of_tokens_stays_within_its_turn():
    batch = made_by_hand()
    returns = torch.tensor([[1.0, 1.0], [0.0, math.nan], [0.0, 1.0], [1.0, 0.0]])
    advantages = turn_advantages(batch, returns, KTAE(), torch.tensor([1.0, 0, 0, 1.0]))
    assert advantages.shape == (4, 6) and not advantages[~batch.action_mask].any() and advantages.isfinite().all()


def test_with_one_turn_credit_by_turn_is_credit_by_completion(reasoner):
    found = []
    for credit in ("completion", "turn"):
        module = chatting(reasoner, environment=Chat(turns=1), shaping=Shaping(credit=credit))
        fit(module, 2, seed=0)
        found.append(module.last_rollout)
    rows = found[0].advantages[:, None] * found[0].action_mask
    assert torch.allclose(rows, found[1].advantages, atol=1e-6) and rows.any()


def test_settings_that_contradict_one_another_are_refused(reasoner):
    with pytest.raises(ConfigError, match="shaping.credit is turn, but completions have one turn"):
        chatting(reasoner, environment=None, rewards=[FunctionReward(digits)], shaping=Shaping(credit="turn"))
    with pytest.raises(ConfigError, match="set model.environment, or remove it"):
        chatting(reasoner, environment=None)
    with pytest.raises(ConfigError, match="environment is the class Chat"):
        GRPO(PolicyParams(reasoner), [FunctionReward(digits)], environment=Chat)
    with pytest.raises(ConfigError, match="completions come without one"):
        TurnRewards()(batch_of_texts(["1"]))


def test_the_plan_counts_all_turns(reasoner, tmp_path):
    module = chatting(reasoner)
    plan = RunPlan.of(quiet_trainer(3), module, sums())
    assert plan.tokens == 8 * 64 + 2 * plan.prompt
    assert "environment: Chat, at most 3 turns" in "\n".join(batches(plan, module, sums()))


def test_a_table_of_one_turn_has_no_column_for_turns(reasoner):
    module = build(reasoner, [FunctionReward(digits)])
    fit(module, 1, seed=0)
    assert "turns" not in table(module.last_rollout, 1)
    assert CompletionTraces(1).prompts == 1
