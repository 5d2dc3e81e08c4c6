"""Modules and parts as another project's Python uses them: plain functions, its own loader, engine and scripts."""

import asyncio
import math
from pathlib import Path

import pytest
import torch

from lightning_modules import GRPO
from objectives import ClopperPearson, GroupNorm
from policies import LoRA, Policy, PolicyParams
from rewards import ExactAnswer, Format, FunctionReward, NumericAnswer, PerTask, ShorterBetter
from rollouts import BatchPlan, EmbeddedEngine, SamplingParams, assemble, written
from support.errors import ConfigError
from tests.helpers import build, fit, weights

PLAN = BatchPlan(prompts_per_rollout=4, group_size=4)


def vowels(prompts, completions, **columns):
    return [float(sum(text.count(letter) for letter in "aeiou")) for text in completions]


def test_a_plain_function_is_a_reward(reasoner):
    module = build(reasoner, [vowels])
    assert isinstance(module.rewards[0], FunctionReward) and module.rewards[0].name == "vowels"


@pytest.mark.parametrize(
    "parts, message",
    [
        ({"policy": "assets/tiny_reasoner"}, r"GRPO: policy is a str .*for example PolicyParams\('assets/tiny_reasoner'\)"),
        ({"rewards": [ExactAnswer]}, r"rewards has the class ExactAnswer, .*such as rewards\.ExactAnswer\(\)"),
        ({"rewards": ["exact"]}, r"rewards has str 'exact', which is not a reward"),
        ({"advantage": lambda rewards, groups: rewards}, r"advantage is a function .*for example GroupNorm\(\)"),
        ({"advantage": GroupNorm}, r"advantage is the class GroupNorm"),
        ({"batch": {"group_size": 4}}, r"batch is a dict .*rollouts\.BatchPlan, for example BatchPlan\("),
        ({"sampling": 64}, r"sampling is a int .*rollouts\.SamplingParams"),
        ({"kl": 0.1}, r"kl is a float .*KLPenalty\(coefficient=0\.04\)"),
        ({"engine": EmbeddedEngine}, r"engine is the class EmbeddedEngine"),
        (
            {"optimizer": torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)},
            r"optimizer is a finished SGD, .*for example lambda parameters: torch",
        ),
    ],
)  # fmt: skip
def test_an_argument_of_the_wrong_kind_is_refused_in_a_paragraph(reasoner, parts, message):
    with pytest.raises(ConfigError, match=message):
        GRPO(**({"policy": PolicyParams(reasoner), "rewards": [ExactAnswer()], "batch": PLAN} | parts))


def test_a_policy_accepts_a_path_and_refuses_other_kinds(reasoner):
    assert PolicyParams(Path(reasoner)).model == reasoner
    with pytest.raises(ConfigError, match=r"lora is a dict; give policies\.LoRA\(r=16, alpha=32\)"):
        PolicyParams(reasoner, lora={"r": 8})
    with pytest.raises(ConfigError, match=r"model is a Linear; give the folder or name"):
        PolicyParams(torch.nn.Linear(1, 1))


def test_strings_are_scored_without_a_rollout():
    assert ExactAnswer().evaluate(["<think>4</think>4", "<think>5</think>5"], answer=["4", "4"]) == [1.0, 0.0]
    opened = ["reason about it</think>4", "never closed"]
    assert ExactAnswer().evaluate(opened, ["2+2=<think>"] * 2, answer=["4", "4"]) == [1.0, 0.0]
    per_task = PerTask({"sum": NumericAnswer(), "default": Format(".*!")})
    assert per_task.evaluate(["4", "yes!"], task=["sum", "talk"], answer=["4.0", "-"]) == [1.0, 1.0]
    chat = [[{"role": "assistant", "content": "4"}]]
    assert ExactAnswer().evaluate(chat, [[{"role": "user", "content": "2+2="}]], answer=["4"]) == [1.0]
    assert math.isnan(FunctionReward(lambda prompts, completions: [None]).evaluate(["x"])[0])


def test_completions_of_one_prompt_are_compared():
    """ShorterBetter's score of a completion depends on the shortest correct one of its group."""
    texts, answers = ["4", "xxxxxxx</think>4", "xxxxxxx</think>4", "4"], ["4"] * 4
    judge = ExactAnswer()

    class Both(ShorterBetter):
        def score(self, batch):
            batch.rewards[judge.name] = judge(batch)
            return super().score(batch)

    together = Both().evaluate(texts, group_size=2, answer=answers)
    assert together[0] == together[3] > together[1] == together[2]
    assert Both().evaluate(texts, group_size=2, completion_ids=[[1], [1], [1], [1]], answer=answers)[0] == together[0]


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"answer": "4"}, r"got a single text in 'answer' for 2 completions"),
        ({"answer": ["4"]}, r"got 1 entries in 'answer' for 2 completions"),
        ({"answer": ["4", "4"], "group_size": 3}, r"2 completions and group_size=3"),
        ({}, r"needs the data column 'answer'"),
    ],
)
def test_what_cannot_be_scored_is_named(arguments, message):
    with pytest.raises(ConfigError, match=message):
        ExactAnswer().evaluate(["4", "5"], **arguments)


def test_an_async_reward_runs_where_an_event_loop_runs_already():
    async def slow(prompts, completions):
        await asyncio.sleep(0)
        return [float(len(text)) for text in completions]

    async def notebook():
        return FunctionReward(slow).evaluate(["a", "bb"])

    assert asyncio.run(notebook()) == [1.0, 2.0] == FunctionReward(slow).evaluate(["a", "bb"])


def test_a_function_can_judge_correctness_and_be_a_cost():
    right = FunctionReward(lambda prompts, completions: [1.0] * len(completions), correctness=True, span=(0, 1, True))
    assert right.is_correctness
    ClopperPearson().check(*right.span)
    with pytest.raises(ConfigError, match=r"span is \(1, 0, True\)"):
        FunctionReward(vowels, span=(1, 0, True))


class WithoutLogprobs(EmbeddedEngine):
    """An engine that does not know the log-probs of its tokens."""

    def matches(self, policy):
        return False

    def generate(self, policy, prompts, rows, group_size, sampling, forced=None, rows_at_once=None):
        batch = super().generate(policy, prompts, rows, group_size, sampling, forced, rows_at_once)
        nothing_forced = torch.full((len(batch.completion_ids), 1), -1)
        return assemble(
            policy, prompts, rows, batch.completion_ids, None, batch.lengths, nothing_forced, batch.finish_reasons
        )


def test_an_engine_without_logprobs_trains_as_one_with_them(reasoner):
    trained = []
    for engine in (None, WithoutLogprobs()):
        module = build(reasoner, [vowels], engine=engine, sampling=SamplingParams(8, temperature=0.7))
        fit(module, 2, seed=0)
        trained.append(weights(module))
    assert torch.allclose(*trained, atol=1e-6)


def test_given_completions_have_logprobs(policy):
    """Against a plain forward of transformers, token by token; a module's reference scores the same texts."""
    prompts, completions = ["1+1=", "22+3="], ["<think>1</think>2", "25"]
    scored = policy.score(prompts, completions)
    for prompt, text, values in zip(prompts, completions, scored, strict=True):
        ids = policy.encode(prompt)
        answer = [*policy.tokenizer(text, add_special_tokens=False)["input_ids"], policy.tokenizer.eos_token_id]
        logits = policy.model(torch.tensor([ids + answer])).logits[0].log_softmax(-1)
        expected = [float(logits[len(ids) + t - 1, token]) for t, token in enumerate(answer)]
        assert torch.allclose(values, torch.tensor(expected), atol=1e-5)
    unended = policy.score(prompts, completions, ended=False)
    assert [len(values) for values in unended] == [len(values) - 1 for values in scored]
    assert torch.allclose(torch.cat(policy.score(prompts, completions, reference=True)), torch.cat(scored))
    with pytest.raises(ConfigError, match="2 prompts and 1 completions"):
        policy.score(prompts, ["25"])


def test_a_written_batch_has_reference_logprobs(reasoner):
    module = build(reasoner, [vowels])
    module.with_reference = True
    module.configure_model()
    prompts = ["1+1=", "22+3="]
    texts = ["2", "25"]
    batch = written(module.policy, [module.policy.encode(p) for p in prompts], [{"prompt": p} for p in prompts], texts)
    values = module.reference_logprobs(batch)
    for row, expected in enumerate(module.policy.score(prompts, texts)):
        assert torch.allclose(values[row][batch.completion_mask[row]], expected, atol=1e-5)


def test_adapters_of_a_policy_score_too(reasoner):
    policy = Policy(PolicyParams(reasoner, lora=LoRA(r=2)), with_reference=True)
    assert len(policy.score(["1+1="], ["2"], reference=True)[0]) == 2
