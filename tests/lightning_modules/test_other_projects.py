"""Modules and parts as another project's Python uses them: plain functions, its own loader, engine and scripts."""

import asyncio
import copy
import math
import shutil
from functools import partial
from pathlib import Path

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader, default_collate
from transformers import AutoTokenizer

from lightning_modules import GRPO, KLPenalty
from lightning_modules.core.data_checks import prompts_of_batch, rows_of
from lightning_modules.core.evaluation import Evaluation
from objectives import ClopperPearson, GroupNorm
from policies import LoRA, Policy, PolicyParams
from rewards import (
    ExactAnswer,
    Format,
    FunctionReward,
    MultipleChoice,
    NumericAnswer,
    PerTask,
    RecordsCost,
    ShorterBetter,
)
from rollouts import BatchPlan, EmbeddedEngine, SamplingParams, assemble, written
from support.errors import ConfigError
from support.prompt_identity import prompt_fingerprints
from tests.helpers import build, fit, quiet_trainer, sums, weights

PLAN = BatchPlan(prompts_per_rollout=4, group_size=4)


def vowels(prompts, completions, **columns):
    return [float(sum(text.count(letter) for letter in "aeiou")) for text in completions]


def test_a_plain_function_is_a_reward(reasoner):
    module = build(reasoner, [vowels])
    assert isinstance(module.rewards[0], FunctionReward) and module.rewards[0].name == "vowels"


@pytest.mark.parametrize(
    "parts, message",
    [
        ({"policy": "assets/tiny"}, r"GRPO: policy is a str .*for example PolicyParams\('assets/tiny'\)"),
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


def test_gradients_that_are_never_finite_end_a_training_from_python(reasoner):
    """Skipped updates are no steps: max_steps is never reached, and no callback is attached."""

    class Unlimited(GroupNorm):
        def __call__(self, rewards, groups, tokens=None, mask=None):
            return torch.full_like(rewards, torch.nan)

    module = build(reasoner, [vowels], advantage=Unlimited())
    with (
        pytest.warns(UserWarning, match="infinite or NaN, so its update was skipped"),
        pytest.raises(ConfigError, match="infinite or NaN in 3 consecutive rollouts"),
    ):
        fit(module, 3, seed=0)


def loader(rows, collate=default_collate, size=4, **options):
    return DataLoader(rows, batch_size=size, collate_fn=collate, **options)


def with_loader(module, rows, steps=1, **options):
    trainer = quiet_trainer(steps)
    trainer.fit(module, loader(rows, **options))
    return weights(module)


ROWS = [{"prompt": f"{n}+{n}=", "answer": str(2 * n), "level": n} for n in range(8)]


def test_a_plain_loader_trains_whatever_collates_its_rows(reasoner):
    """Lists of rows, dicts of columns (torch's default) and plain prompts are the same data."""
    trained = []
    for rows, collate in ((ROWS, list), (ROWS, default_collate), ([row["prompt"] for row in ROWS], default_collate)):
        L.seed_everything(0)
        trained.append(with_loader(build(reasoner, [vowels]), rows, collate=collate))
    assert torch.equal(trained[0], trained[1]) and torch.equal(trained[0], trained[2])


@pytest.mark.parametrize("kind", ["rows", "columns", "prompts", "data module"])
def test_a_model_carries_the_prompts_of_any_loader(reasoner, kind):
    """A later safety test must know them, or it would accept prompts that the training saw."""
    module, trainer = build(reasoner, [vowels]), quiet_trainer(1)
    rows = [row["prompt"] for row in ROWS] if kind == "prompts" else ROWS
    if kind == "data module":
        data = L.LightningDataModule()
        data.train_dataloader = lambda: loader(rows)
        trainer.fit(module, datamodule=data)
    else:
        trainer.fit(module, loader(rows, list if kind == "rows" else default_collate))
    seen = set().union(*module.seen_prompts().by_source.values())
    assert seen == prompt_fingerprints(row["prompt"] for row in ROWS[:4])


@pytest.mark.parametrize("batch", [torch.zeros(2, 3), {"input_ids": torch.zeros(2, 3)}, [1, 2], {"loss": 1.0}, []])
def test_batches_without_readable_prompts_leave_them_unknown(batch):
    assert prompts_of_batch(batch) == []


def test_chat_messages_survive_the_default_collate_function():
    chats = [
        {"prompt": [{"role": "system", "content": f"{n}"}, {"role": "user", "content": f"{n}+{n}="}]} for n in range(2)
    ]
    rows = rows_of(default_collate(chats), [], checked=False)
    assert [row["prompt"] for row in rows] == [chat["prompt"] for chat in chats]
    assert rows[0]["id"] != rows[1]["id"]


@pytest.mark.parametrize(
    "rows, size, message",
    [
        ([{"question": "1+1="}] * 8, 4, r"the loader's batch cannot be used: it has no 'prompt', only \['question'\]"),
        ([{"prompt": "1+1="}] * 8, 4, r"needs the data column 'answer'"),
        (ROWS, 3, r"loader gave 3 prompts, but batch\.prompts_per_rollout is 4; set the loader's batch_size to 4"),
        (ROWS, 8, r"loader gave 8 prompts"),
        ([3] * 8, 4, r"the loader's batch is a (Tensor|list)"),
    ],
)
def test_a_plain_loader_is_checked_at_its_first_batch(reasoner, rows, size, message):
    with pytest.raises(ConfigError, match=message):
        with_loader(build(reasoner, [ExactAnswer()]), rows, size=size)


def test_a_module_can_be_copied_and_pickled_after_a_validation(reasoner, tmp_path):
    for optimizer in (partial(torch.optim.SGD, lr=0.1), lambda parameters: torch.optim.SGD(parameters, lr=0.1)):
        module = build(reasoner, [vowels], optimizer=optimizer)
        fit(module, 1, seed=0, validate_every=1)
        copied = copy.deepcopy(module)
        assert torch.equal(weights(copied), weights(module))
        module.trainer = None
        torch.save(module, tmp_path / "module.pt")
        restored = torch.load(tmp_path / "module.pt", weights_only=False)
        assert torch.equal(weights(restored), weights(module))
        fit(copied, 1, seed=0)
    with pytest.raises(ConfigError, match="pickled with a lambda as its optimizer"):
        fit(restored, 1, seed=0)


def test_a_penalty_that_is_raised_from_zero_names_the_key(reasoner):
    module = build(reasoner, [vowels], kl=KLPenalty(0.0))
    module.kl.coefficient = 0.1
    with pytest.raises(
        ConfigError, match=r"built with kl\.coefficient 0\. Build the module with a coefficient above 0"
    ):
        fit(module, 1, seed=0)


def test_tokens_beyond_the_embedding_are_refused_by_name(reasoner, tmp_path):
    folder = tmp_path / "added"
    shutil.copytree(reasoner, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<call>"], special_tokens=False)
    tokenizer.save_pretrained(folder)
    policy = Policy(PolicyParams(str(folder)))
    with pytest.raises(ConfigError, match=r"the prompt '<call>1\+1=' has the token '<call>' with the id \d+"):
        policy.encode("<call>1+1=")
    tokenizer.add_special_tokens({"pad_token": "<padding>"})
    tokenizer.save_pretrained(folder)
    with pytest.raises(ConfigError, match=r"has the token '<padding>' with the id \d+, but the model's embedding has"):
        Policy(PolicyParams(str(folder)))


def test_several_validation_loaders_have_metrics_of_their_own(reasoner):
    module = build(reasoner, [vowels])
    trainer = quiet_trainer(1, validate_every=1)
    trainer.fit(module, loader(ROWS), [loader(ROWS[:4]), loader(ROWS[4:])])
    names = trainer.callback_metrics
    assert {"val/reward/dataloader_idx_0", "val/reward/dataloader_idx_1", "val/length/dataloader_idx_1"} <= set(names)


def test_evaluations_of_one_model_under_different_seeds_are_equal(reasoner):
    """Otherwise an interval over seeds holds the noise of sampling, beside the training's differences."""
    lengths = []
    for seed, evaluation in ((0, Evaluation()), (1, Evaluation()), (1, Evaluation(seed=None))):
        L.seed_everything(seed)
        trainer = quiet_trainer(limit_val_batches=1.0)
        trainer.validate(build(reasoner, [vowels], evaluation=evaluation), datamodule=sums(seed=1), verbose=False)
        lengths.append(float(trainer.callback_metrics["val/reward"]))
    assert lengths[0] == lengths[1] != lengths[2]


def test_a_checkpoint_gives_back_the_module(reasoner, tmp_path):
    module = build(reasoner, [vowels])
    trainer = fit(module, 1, seed=0)
    path = tmp_path / "made.ckpt"
    trainer.save_checkpoint(path)
    restored = GRPO.load_from_checkpoint(path, policy=PolicyParams(reasoner), rewards=[vowels], batch=PLAN)
    assert torch.equal(weights(restored), weights(module))
    with pytest.raises(ConfigError, match=r"built in Python, whose arguments it cannot hold .*policy=PolicyParams"):
        GRPO.load_from_checkpoint(path)


class Counting(FunctionReward):
    """A reward with state: the number of rollouts that it has seen."""

    def __init__(self, name):
        super().__init__(vowels, name=name)
        self.seen = 0

    def observe(self, batch):
        self.seen += 1

    def state_dict(self):
        return {"seen": self.seen}

    def load_state_dict(self, state):
        self.seen = state.get("seen", 0)


def test_a_resumed_run_keeps_states_by_name_and_says_what_it_drops(reasoner, tmp_path):
    module = build(reasoner, [Counting("first"), Counting("second")], kl=KLPenalty(0.0))
    trainer = fit(module, 2, seed=0)
    path = tmp_path / "made.ckpt"
    trainer.save_checkpoint(path)
    other = build(reasoner, [Counting("third"), Counting("first")], kl=KLPenalty(0.0))
    with pytest.warns(UserWarning, match=r"holds the state of \['second'\], rewards that this run does not have"):
        fit(other, 3, seed=0, ckpt_path=path)
    assert [reward.seen for reward in other.rewards] == [1, 3]
    with pytest.raises(ConfigError, match=r"has no reference, because its run had model\.kl\.coefficient 0"):
        fit(build(reasoner, [Counting("first")], kl=KLPenalty(0.1)), 3, seed=0, ckpt_path=path)


def test_columns_of_another_form_are_refused_in_a_paragraph():
    with pytest.raises(ConfigError, match=r"MultipleChoice\): the answer of row '0' is <object"):
        MultipleChoice().evaluate(["It is B."], answer=[object()])
    with pytest.raises(ConfigError, match=r"RecordsCost\) cannot score these completions"):
        RecordsCost().evaluate(["yes"], ["What is the weather?"])
