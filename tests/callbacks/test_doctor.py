"""Every finding is provoked once; a healthy run is left alone."""

import math
from types import SimpleNamespace

import pytest

from callbacks import Doctor, RolloutCheckpoint
from callbacks.findings import IN_A_ROW, WHILE_TRAINING, Seen
from callbacks.findings_at_start import AT_START, generous_scorer
from datamodules import ReasoningGymPrompts
from datamodules.prompts import PromptData
from lightning_modules import KLPenalty
from objectives import ClippedSurrogate, GroupNorm
from policies import Policy, PolicyParams
from rewards import ExactAnswer, FunctionReward, Guarded, PerTask, ReasoningGymScore
from rewards.tasks import GENEROUS
from rollouts import BatchPlan, SamplingParams, written
from tests.helpers import adamw, build, digits, fit


def examine(
    folder,
    model,
    rewards,
    rollouts=IN_A_ROW + 1,
    lr=1e-3,
    data=None,
    doctor=None,
    callbacks=(),
    ckpt_path=None,
    **parts,
):
    """The doctor after a training of this many rollouts."""
    doctor = doctor or Doctor()
    small = {
        "batch": BatchPlan(prompts_per_rollout=2, group_size=4),
        "kl": KLPenalty(coefficient=0.0),
        "optimizer": adamw(lr),
    }
    module = build(model, rewards, **(small | parts))
    fit(module, rollouts, [doctor, *callbacks], data=data, folder=folder, seed=0, ckpt_path=ckpt_path)
    return doctor


def test_a_healthy_run_is_left_alone(reasoner, tmp_path, capsys):
    doctor = examine(
        tmp_path, reasoner, [FunctionReward(digits), ExactAnswer()], rollouts=15, kl=KLPenalty(coefficient=0.04)
    )
    assert doctor.said == {} and "doctor" not in capsys.readouterr().out
    assert len(doctor.seen) == 15 and all(
        one.grad_norm > 0 and 0 < one.moved < 0.1 and one.changed > 0.05 for one in doctor.seen
    )


def by_prompt(prompts, completions):
    return [float(sum(map(ord, prompt))) for prompt in prompts]


def constant(completions):
    return [0.5] * len(completions)


def never(completions):
    return [None] * len(completions)


def hardly(completions):
    return [1e-9 * x for x in digits(completions)]


class Flat(ClippedSurrogate):
    """Does not depend on the policy."""

    def __call__(self, logprobs, behaviour, advantages, mask):
        loss, sums = super().__call__(logprobs, behaviour, advantages, mask)
        return 0.0 * loss, sums


class Repeated(PromptData):
    def __init__(self, prompt="1+{}=?", held_out="5+{}=?", answer="{}"):
        super().__init__(seed=0)
        self.texts, self.answer = (prompt, held_out), answer

    def train_rows(self):
        return [{"id": i, "prompt": self.texts[0].format(i), "answer": self.answer.format(i)} for i in range(10, 20)]

    def val_rows(self):
        return [{"id": i, "prompt": self.texts[1].format(i), "answer": self.answer.format(i)} for i in range(10, 20)]


@pytest.mark.parametrize(
    ("finding", "figure", "given"),
    [
        ("constant_reward", "was 0.5 for every", {"rewards": [FunctionReward(constant)]}),
        ("abstains", "'never' applied to none", {"rewards": [FunctionReward(never), FunctionReward(digits)]}),
        ("no_signal", "batch.group_size (4)", {"rewards": [FunctionReward(by_prompt)]}),
        ("zero_advantages", "advantage of the last 5", {"rewards": [FunctionReward(hardly)], "advantage": GroupNorm()}),
        ("zero_gradient", "norm was 0", {"loss": Flat()}),
        ("weights_still", "learning rate of 0 in float32", {"lr": 0.0}),
        ("weights_still", "learning rate of 1e-12", {"lr": 1e-12}),
        ("learning_rate_huge", "learning rate of 0.1;", {"lr": 0.1}),
        ("leaked_prompts", "10 of 10 different", {"data": Repeated(held_out="1+{}=?")}),
        ("chat_template", "puts them around it again", {"data": Repeated(prompt="<|user|>1+{}=?")}),
    ],
)  # fmt: skip
def test_a_run_that_fails_silently_is_told_so_once(reasoner, tmp_path, capsys, finding, figure, given):
    doctor = examine(tmp_path, reasoner, **({"rewards": [FunctionReward(digits)], "rollouts": IN_A_ROW + 3} | given))
    assert set(doctor.said) - {"no_signal" if finding == "learning_rate_huge" else ""} >= {finding}
    assert figure in doctor.said[finding]
    assert capsys.readouterr().out.count(f"doctor ({finding})") == 1


def contains(completions, prompts, answer):
    return [float(wanted in text) for text, wanted in zip(completions, answer, strict=True)]


def not_wrong(completions):
    return [float("?" in text or not text.strip("</think>")) for text in completions]


def breaks(completions):
    return [1.0 / len(text.removeprefix("</think>")) for text in completions]


def test_trivial_answers_that_earn_as_much_as_right_ones(reasoner, tmp_path):
    def said(reward, **given):
        data = Repeated(**given)
        return examine(tmp_path, reasoner, [FunctionReward(reward)], rollouts=1, data=data).said.get(
            "trivial_answer", ""
        )

    assert "the prompt repeated 1, the right answer 1 and a wrong one 0 (means of 8 of 8" in said(contains)
    assert "an empty completion 1, the right answer 0 and a wrong one 0" in said(not_wrong)
    assert "raised ZeroDivisionError" in said(breaks)
    assert said(contains, prompt="7-{}?", answer="9{}") == ""
    assert examine(tmp_path, reasoner, [ExactAnswer()], rollouts=1, data=Repeated()).said == {}


def counts_digits(completions, answer):
    return [float(any(c.isdigit() for c in text)) for text in completions]


def wants_a_form(completions, answer):
    return [float(f"#### {wanted}" in text) for text, wanted in zip(completions, answer, strict=True)]


def test_a_reward_that_pays_wrong_answers_as_right_ones(reasoner, tmp_path):
    def said(*rewards):
        return examine(tmp_path, reasoner, list(rewards), rollouts=1, data=Repeated()).said

    found = said(FunctionReward(counts_digits, weight=0.1), ExactAnswer())
    assert "'counts_digits' gives a wrong answer 1 and the right one 1 (means of 8" in found["wrong_answer"]
    assert "wrong_answer" not in said(FunctionReward(wants_a_form), ExactAnswer())
    assert "wrong_answer" not in said(FunctionReward(contains), FunctionReward(not_wrong), ExactAnswer())


def test_scorers_that_pay_answers_that_say_nothing(policy):
    def said(tasks, reward):
        data = ReasoningGymPrompts(tasks, train_size=16, val_size=2, seed=0)
        return generous_scorer(module(policy, rewards=[reward]), data)

    generous = {"game_of_life_halting": {}, "coin_flip": {}, "chain_sum": {}}
    for reward in (ReasoningGymScore(), PerTask({"default": Guarded(ReasoningGymScore("text"))})):
        found = said(generous, reward)
        assert "game_of_life_halting pays" in found and "coin_flip pays" in found and "chain_sum" not in found
    assert said({"chain_sum": {}}, ReasoningGymScore()) is None
    assert said(generous, ExactAnswer()) is None
    mended = PerTask(
        {"game_of_life_halting": ExactAnswer(), "coin_flip": ExactAnswer(), "default": ReasoningGymScore()}
    )
    assert said(generous, mended) is None, "tasks that another reward scores are not named"
    assert set(GENEROUS) >= {"game_of_life_halting", "coin_flip", "complex_arithmetic", "polynomial_equations"}


def module(policy=None, **changes):
    given = {
        "policy": policy,
        "rewards": [],
        "batch": BatchPlan(2, 4),
        "sampling": SamplingParams(8),
        "advantage": GroupNorm(),
    }
    return SimpleNamespace(**(given | changes))


def seen(**changes):
    given = {
        "rows": 10,
        "truncated": 1,
        "longest": 8,
        "spread": {"": (0.0, 1.0)},
        "signal": 2,
        "advantage": 1.0,
        "entropy": 1.0,
        "grad_norm": 1.0,
    }
    return Seen(**(given | {"moved": 0.01, "changed": 1.0, "kl": 0.1} | changes))


def findings(module, history):
    return {check.__name__: text for check in WHILE_TRAINING if (text := check(module, history))}


def test_what_takes_longer_than_a_test(policy):
    given = module(policy)
    assert findings(given, [seen()] * 25) == {}
    assert "None of 50 completions" in findings(given, [seen(truncated=10)] * 5)["no_end_token"]
    assert "92% of the completions" in findings(given, [seen(truncated=9)] * 4 + [seen(truncated=10)])["truncated"]
    assert findings(given, [seen(truncated=8)] + [seen(truncated=9)] * 4) == {}
    fallen = findings(given, [seen(entropy=2.0)] * 5 + [seen(entropy=0.019)] * 5)
    assert set(fallen) == {"entropy_collapse"} and "from 2 to 0.019" in fallen["entropy_collapse"]
    assert findings(given, [seen(entropy=2.0)] * 5 + [seen(entropy=0.021)] * 5) == {}
    assert "2.5 nats per token" in findings(given, [seen(kl=2.5)] * 5)["kl_explosion"]
    assert findings(given, [seen(kl=2.5)] * 4 + [seen(kl=0.9)] + [seen(kl=2.5)] * 4) == {}
    one = module(policy, rewards=[SimpleNamespace(name="format")])
    history = [seen(spread={"": (0.0, 1.0), "format": (0.0, 0.0)})] * 20
    assert "'format' was 0 for every completion of the last 20" in findings(one, history)["constant_reward"]
    assert findings(one, history[:19]) == {}
    assert "at most 1.0% of those watched" in findings(given, [seen(changed=0.01)] * 5)["weights_still"]
    assert set(findings(given, [seen(grad_norm=0.0, changed=0.0)] * 5)) == {"zero_gradient"}


def test_end_tokens_and_templates(reasoner, policy):
    def said(data, **changes):
        other = SimpleNamespace(
            **{"tokenizer": policy.tokenizer, "model_eos_ids": policy.model_eos_ids, "params": policy.params, **changes}
        )
        return {check.__name__: check(module(other), data) for check in AT_START[:2]}

    plain = Policy(PolicyParams(reasoner)).tokenizer
    plain.chat_template = None
    assert said(Repeated()) == {"end_token_mismatch": None, "chat_template": None}
    assert "is not among the model's own [77]" in said(Repeated(), model_eos_ids=[77])["end_token_mismatch"]
    marked = said(Repeated(prompt="<|im_start|>1+{}"), tokenizer=plain)["chat_template"]
    assert "is not a token of this model" in marked
    spoken = said(Repeated(prompt="User: 1+{}=?"), tokenizer=plain)["chat_template"]
    assert "nothing at the end of the prompts" in spoken
    assert said(Repeated(prompt="User: 1+{}=?\nAssistant: <think>"), tokenizer=plain)["chat_template"] is None


def test_what_was_said_is_not_said_again_after_a_resume(reasoner, tmp_path, capsys):
    given = {"rewards": [FunctionReward(constant)]}
    first = examine(tmp_path, reasoner, callbacks=[RolloutCheckpoint(keep=None)], **given)
    assert "constant_reward" in first.said
    capsys.readouterr()
    saved = tmp_path / f"local/checkpoints/rollout_{IN_A_ROW + 1:06d}.ckpt"
    again = examine(tmp_path, reasoner, rollouts=9, ckpt_path=saved, **given)
    assert again.said == first.said and len(again.seen) == 9 and "doctor" not in capsys.readouterr().out
    straight = examine(tmp_path, reasoner, rollouts=9, rewards=given["rewards"])
    assert repr(again.seen) == repr(straight.seen), "what was measured is what an uninterrupted run measures"
    assert examine(tmp_path, reasoner, doctor=Doctor(ignore=["constant_reward"]), rewards=given["rewards"]).said == {}


def test_parts_of_processes_are_one_rollout():
    left = seen(rows=4, truncated=1, spread={"": (0.0, 0.5), "a": (math.inf, -math.inf)}, signal=1, advantage=0.5)
    right = seen(rows=6, truncated=2, longest=9, spread={"": (-1.0, 0.2), "a": (0.1, 0.3)}, signal=0, advantage=2.0)
    found = Seen.together([left, right])
    assert (found.rows, found.truncated, found.longest, found.signal, found.advantage) == (10, 3, 9, 1, 2.0)
    assert found.spread == {"": (-1.0, 0.5), "a": (0.1, 0.3)}


def test_written_completions_are_scored_as_sampled_ones_are(policy):
    rows = [{"id": 1, "prompt": "1+2=?", "answer": "3"}, {"id": 2, "prompt": "11+2=?", "answer": "13"}]
    batch = written(
        policy, [policy.encode(row["prompt"]) for row in rows], rows, ["</think>3", "", "</think>4", "5+2</think>13"]
    )
    assert batch.completions == ["</think>3", "", "</think>4", "5+2</think>13"] and ExactAnswer()(batch).tolist() == [
        1,
        0,
        0,
        1,
    ]
    assert (
        batch.completion_ids[1, 0] == policy.tokenizer.eos_token_id
        and batch.lengths[1] == 1
        and not batch.action_mask.any()
    )
