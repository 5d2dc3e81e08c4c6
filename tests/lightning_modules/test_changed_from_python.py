"""Candidate and question of a safety test notice what Python changes between training and test."""

import copy
import threading
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn

from datamodules import RecordsPrompts
from lightning_modules.core.generator import generator
from lightning_modules.hc_rlhf.score_models import ScoreModels
from lightning_modules.hc_rlhf.scorer_training import ScorerTraining
from objectives import Betting
from policies import PolicyParams, Scorer
from rewards import FunctionReward, PerTask, RecordsCost, RecordsReward
from rewards.base import Reward
from rewards.models import ModelScore
from rollouts import EmbeddedEngine, TransformersEngine
from support.errors import ConfigError
from support.files import fingerprint
from support.seen_prompts import SeenPrompts
from tests.helpers import quiet_trainer
from tests.helpers.rewards import even, odd
from tests.lightning_modules.test_hc_rlhf import rule_based


class OtherEngine(EmbeddedEngine):
    """An engine with other code and the same settings."""

    def generate(self, *arguments, **keywords):
        return super().generate(*arguments, **keywords)


OtherEngine.__qualname__, OtherEngine.__module__ = EmbeddedEngine.__qualname__, EmbeddedEngine.__module__


class Several(Reward):
    """A cost that holds its models and rewards in containers."""

    def __init__(self, held):
        super().__init__(name="several")
        self.held = held

    def score(self, batch):
        return [0.0] * len(batch.completions)


@pytest.fixture(scope="module")
def prepared(assistant, tmp_path_factory):
    """A module before its test, whose cost is nested and holds a scorer."""
    cost = PerTask({"default": ModelScore(Scorer(PolicyParams(assistant)), "probability"), "pin": FunctionReward(odd)})
    module = rule_based(assistant, cost=cost)
    module.configure_model()
    module.cost = cost
    return attached(module, tmp_path_factory.mktemp("runs"))


def attached(module, folder):
    """The module with a trainer and data of its own."""
    trainer = quiet_trainer(folder=folder)
    trainer.datamodule = RecordsPrompts(8, 4, 10, seed=5)
    module.trainer = trainer
    return module


def what_counts(module):
    return fingerprint([generator(module, module.sampling)]), module.question()


def _other_class(module):
    module.__class__ = type("Other", (type(module),), {"_costs": lambda self, batch: torch.zeros(len(batch.rows))})


def _other_row(module):
    module._data().rows("safety")[0]["owner"] = "nobody"


class Silent(nn.Module):
    def forward(self, states):
        return states * 0


def _layer(module):
    return module.policy.bare.model.layers[0]


def _scorer(module):
    return module.cost.rewards["default"].scorer


CHANGES = {
    "the cost": lambda m: setattr(m, "cost", FunctionReward(even)),
    "a part of the cost": lambda m: m.cost.rewards.update(pin=FunctionReward(even)),
    "a further part": lambda m: m.cost.rewards.update(phone=FunctionReward(even)),
    "a function": lambda m: setattr(m.cost.rewards["pin"], "function", even),
    "a setting": lambda m: m.cost.scales.update(pin=0.1),
    "a method": lambda m: setattr(m.cost, "score", lambda batch: [0.0] * len(batch.completions)),
    "a scale": lambda m: setattr(m.cost.rewards["default"], "scale", "unsafe"),
    "a head": lambda m: m.cost.rewards["default"].scorer.head.bias.data.fill_(1.0),
    "a backbone": lambda m: next(_scorer(m).backbone.parameters()).data.mul_(1.5),
    "a hook": lambda m: _scorer(m).register_forward_hook(lambda part, inputs, output: output * 0),
    "a tokenizer": lambda m: setattr(_scorer(m).tokenizer, "chat_template", "{{ messages[0]['content'] }}!"),
    "the bound": lambda m: setattr(m, "bound", Betting()),
    "the threshold": lambda m: setattr(m.constraint, "threshold", 0.99),
    "the failure probability": lambda m: setattr(m.constraint, "delta", 0.2),
    "looks": lambda m: setattr(m.test_params, "sequential", True),
    "the class": _other_class,
    "a column": _other_row,
    "spaces of texts": lambda m: setattr(m.policy.tokenizer, "clean_up_tokenization_spaces", True),
    "special tokens in texts": lambda m: setattr(m.policy.tokenizer, "split_special_tokens", True),
    "the template": lambda m: setattr(m.policy.tokenizer, "chat_template", "{{ messages[0]['content'] }}"),
    "arguments of the template": lambda m: setattr(m.policy.tokenizer, "chat_template_args", {"thinking": False}),
    "end tokens": lambda m: setattr(m.policy, "eos_token_ids", [5]),
    "the policy": lambda m: next(m.policy.model.parameters()).data.mul_(1.5),
    "a hook of the policy": lambda m: m.policy.bare.lm_head.register_forward_hook(lambda *parts: parts[-1] * 2),
    "a temperature": lambda m: setattr(m, "sampling", replace(m.sampling, temperature=0.0)),
    "the code of the engine": lambda m: setattr(m.engine, "__class__", OtherEngine),
    "an engine": lambda m: setattr(m, "engine", TransformersEngine()),
    "an activation": lambda m: setattr(_layer(m).mlp, "act_fn", nn.ReLU()),
    "a setting of a part": lambda m: setattr(m.policy.bare.model.norm, "variance_epsilon", 10.0),
    "a part's forward": lambda m: setattr(_layer(m).mlp, "forward", lambda states: states * 0),
    "the class of a part": lambda m: setattr(_layer(m).mlp, "__class__", Silent),
    "the attention": lambda m: setattr(m.policy.bare.config, "_attn_implementation", "eager"),
    "the engine's method": lambda m: setattr(m.engine, "generate", lambda *arguments, **options: None),
    "the policy's texts": lambda m: setattr(m.policy, "decode", lambda *tokens: ["yes"]),
    "the policy's tokens": lambda m: setattr(m.policy, "encode", lambda prompt: [1]),
    "the module's answers": lambda m: setattr(m, "_answers", lambda rows: None),
    "the module's costs": lambda m: setattr(m, "_costs", lambda batch: torch.zeros(len(batch.rows))),
    "the module's sampling": lambda m: setattr(m, "sample", lambda rows, size, sampling: None),
}
UNCHANGED = {
    "nothing": lambda m: None,
    "the size of batches without looks": lambda m: setattr(m.test_params, "batch_size", 7),
    "the place of the ledger": lambda m: setattr(m.test_params, "ledger", "elsewhere"),
    "the constraint of the training": lambda m: setattr(m.constraint, "c1", 9.0),
    "the rewards": lambda m: m.rewards.append(FunctionReward(even)),
    "used tokenizers": lambda m: (m.policy.encode("What?"), _scorer(m).score(["What?"], ["yes"])),
}


@pytest.fixture
def module(prepared, tmp_path):
    return attached(copy.deepcopy(prepared), tmp_path)


@pytest.mark.parametrize("name", CHANGES)
def test_what_python_changes_is_another_test(name, module, prepared):
    CHANGES[name](module)
    assert what_counts(module) != what_counts(prepared)


@pytest.mark.parametrize("name", UNCHANGED)
def test_what_decides_nothing_is_the_same_test(name, module, prepared):
    UNCHANGED[name](module)
    assert what_counts(module) == what_counts(prepared)


def test_a_cost_that_cannot_be_identified_is_said_before_the_training(module, capsys):
    for held, said in (("a text", False), (threading.Lock(), True), ([{"a": (n for n in [1])}], True)):
        module.models.cost = Several(held)
        module.warn_if_unidentified()
        assert ("model.cost (Several) holds something that cannot be identified" in capsys.readouterr().out) == said


def test_the_order_of_the_costs_counts(module):
    questions = set()
    for seed in (0, 1):
        module.bound = Betting(seed=seed)
        questions.add(module.question())
    assert len(questions) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: setattr(m, "bound", Betting()), r"holds for costs in \[0, 1\], but costs can lie in"),
        (lambda m: setattr(m.test_params, "sequential", True), "test.sequential looks at the costs several times"),
        (lambda m: setattr(m.test_params, "allowance", -1), "test.allowance is -1"),
        (lambda m: setattr(m.constraint, "delta", float("nan")), "constraint.delta is nan"),
        (lambda m: setattr(m.constraint, "threshold", float("inf")), "constraint.threshold is inf"),
    ],
)
def test_settings_that_python_made_invalid_are_refused_before_the_test(module, change, message):
    change(module)
    with pytest.raises(ConfigError, match=message):
        module.safety_test()
    assert module._ledger().tests() == []


def test_the_size_of_batches_counts_where_the_test_looks_after_each(module):
    questions = set()
    for size in (7, 8):
        module.test_params.sequential, module.test_params.batch_size = True, size
        questions.add(module.question())
    assert len(questions) == 2


# ---- models inside rewards -------------------------------------------------------------------------------------------


class Holder:
    def __init__(self, held):
        self.held = held


def closure(held):
    return FunctionReward(lambda completions: [float(held is not None) for _ in completions])


def default(held):
    return FunctionReward(lambda completions, held=held: [0.0] * len(completions))


HELD = {
    "a list": lambda scorer: Several([1, scorer]),
    "a dict": lambda scorer: Several({"a": {"b": scorer}}),
    "a tuple in a dict": lambda scorer: Several({"a": (1, {"b": scorer})}),
    "an object": lambda scorer: Several(Holder([scorer])),
    "a closure": closure,
    "a default": default,
    "a partial function": lambda scorer: FunctionReward(partial(even, scorer), name="even"),
    "a method": lambda scorer: FunctionReward(Holder(scorer).__init__, name="init"),
    "a list of rewards": lambda scorer: Several([ModelScore(scorer)]),
    "a reward that no `parts` name": lambda scorer: Several({"a": PerTask({"default": closure(scorer)})}),
    "a network around it": lambda scorer: Several(nn.ModuleDict({"a": scorer})),
}


def parts_of(cost):
    return ScoreModels(None, None, [RecordsReward()], cost, ScorerTraining(), "raw")


@pytest.fixture(scope="module")
def scorer_folder(assistant, tmp_path_factory):
    """A scorer that has seen one prompt."""
    folder = tmp_path_factory.mktemp("scorer")
    Scorer(PolicyParams(assistant)).save(folder, {})
    seen = SeenPrompts()
    seen.add("the train split of Pairs", ["What is it?"])
    seen.save(folder)
    return str(folder)


@pytest.mark.parametrize("place", HELD)
def test_the_prompts_of_a_model_anywhere_inside_a_reward_are_compared_and_its_weights_count(place, scorer_folder):
    scorer = Scorer(PolicyParams(scorer_folder))
    cost = HELD[place](scorer)
    for seen in (parts_of(cost).seen_prompts([]), parts_of(None).seen_prompts([cost])):
        assert [source for source in seen.by_source if source.startswith("the train split of Pairs")]
    models = parts_of(cost)
    before = models.facts([], cost)["cost_model"]["id"]
    scorer.head.bias.data.fill_(1.0)
    assert models.facts([], cost)["cost_model"]["id"] != before


def test_a_network_whose_prompts_are_unknown_is_named_once():
    layers = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    seen = parts_of(Several({"judges": [Holder(layers)]})).seen_prompts([])
    assert seen.unknown == {"a Sequential in the reward 'several'"}


def test_rewards_in_containers_are_described_on_the_certificate():
    inside = Several({"judges": [RecordsCost()]})
    inside.held["itself"] = inside
    (part,) = parts_of(inside).facts([], inside)["cost_model"]["parts"]
    assert "rewards.records" in part or "RecordsCost" in part
