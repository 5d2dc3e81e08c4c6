"""Identities that caches and the ledger rest on: different for whatever acts differently, equal for equal objects."""

import functools
import math
import re
import threading
from abc import ABC, abstractmethod
from collections import deque
from dataclasses import dataclass, field

import pytest
import torch

from lightning_modules import AdaptThink
from lightning_modules.core.generator import generator
from policies import LoRA, PolicyParams
from policies.locate import model_identity
from rewards import ExactAnswer, FunctionReward, Guarded, PerTask
from rollouts import BatchPlan, SamplingParams, TransformersEngine
from support.identity import identity_fingerprint
from tests.helpers import build, digits, quiet_trainer

FACTOR = 1.0


def scaled(completions):
    return [FACTOR for _ in completions]


def closure(value):
    def inner(completions):
        return [value for _ in completions]

    return inner


def default(value):
    def inner(completions, value=value):
        return [value for _ in completions]

    return inner


@dataclass
class Settings:
    values: dict = field(default_factory=dict)


class Labelled(dict):
    """A container with an attribute."""

    def __init__(self, label):
        super().__init__()
        self.label = label


class Method:
    def __init__(self, value):
        self.value = value

    def score(self, completions):
        return [self.value] * len(completions)


def cached(value):
    return functools.lru_cache(closure(value))


class Base(ABC):
    @abstractmethod
    def make(self):
        """Overridden."""


def of_a_class(value):
    class Concrete(Base):
        limit = value

        @property
        def low(self):
            return self.limit

        @functools.cached_property
        def high(self):
            return self.limit

        @classmethod
        def make(cls):
            return cls()

    return Concrete()


def with_a_property(value):
    class Owner:
        low = property(closure(value))

    return Owner()


class Slots:
    __slots__ = ("value",)

    def __init__(self, value):
        self.value = value


def network(dropout):
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Dropout(dropout))


PAIRS = {
    "closures": (closure, 0.1, 0.9),
    "defaults": (default, 0.1, 0.9),
    "lambdas on one line": (lambda n: (lambda c: [1.0], lambda c: [2.0])[n], 0, 1),
    "partial functions": (lambda value: functools.partial(max, value), 1, 2),
    "methods": (lambda value: Method(value).score, 1, 2),
    "nested dataclasses": (lambda value: Settings({"a": Settings({"b": value})}), 1, 2),
    "numbers and booleans": (lambda value: Settings({"a": value}), 1, True),
    "numbers and texts": (lambda value: Settings({"a": value}), 1, "1"),
    "lists and tuples": (lambda value: Settings({"a": value}), [1], (1,)),
    "attributes of containers": (Labelled, "a", "b"),
    "cached functions": (cached, 1, 2),
    "attributes of a class": (of_a_class, 1, 2),
    "properties of a class": (with_a_property, 1, 2),
    "functions in C": (lambda name: getattr(math, name), "sin", "cos"),
    "slots": (Slots, 1, 2),
    "sets": (lambda value: {"x", value}, "y", "z"),
    "queues": (lambda value: deque([1, value]), 2, 3),
    "patterns": (re.compile, "a", "b"),
    "tensors": (torch.tensor, [1.0], [2.0]),
    "settings of networks": (network, 0.1, 0.9),
    "nested rewards": (lambda value: PerTask({"default": Guarded(FunctionReward(closure(value)))}), 0.1, 0.9),
    "scales": (lambda value: PerTask({"default": ExactAnswer()}, scales={"default": value}), 1.0, 2.0),
}


@pytest.mark.parametrize("name", PAIRS)
def test_objects_that_act_differently_differ_and_equal_ones_do_not(name):
    make, first, second = PAIRS[name]
    assert identity_fingerprint(make(first)) != identity_fingerprint(make(second))
    assert identity_fingerprint(make(first)) == identity_fingerprint(make(first))


def test_a_global_that_a_function_reads_is_part_of_it(monkeypatch):
    before = identity_fingerprint(FunctionReward(scaled))
    monkeypatch.setitem(scaled.__globals__, "FACTOR", 2.0)
    assert identity_fingerprint(FunctionReward(scaled)) != before


def test_what_cannot_be_identified_equals_nothing():
    lock = threading.Lock()
    assert identity_fingerprint(Settings({"a": lock})) != identity_fingerprint(Settings({"a": lock}))


def test_an_object_may_refer_to_itself():
    loop = Settings()
    loop.values["self"] = loop
    assert identity_fingerprint(loop) == identity_fingerprint(loop)


def test_what_generates_is_told_apart(reasoner):
    def of(top_k=0, precision="32-true", template=None, engine=None, **params):
        module = build(reasoner, [FunctionReward(digits)], engine=engine)
        module.policy_params = PolicyParams(reasoner, **params)
        module.configure_model()
        for name, weight in module.policy.model.named_parameters():
            if "lora_B" in name:
                weight.data.fill_(0.1)
        module.policy.tokenizer.chat_template = template or module.policy.tokenizer.chat_template
        trainer = quiet_trainer(precision=precision)
        module.trainer = trainer
        return identity_fingerprint(generator(module, SamplingParams(max_new_tokens=4, top_k=top_k)))

    torch.manual_seed(0)
    variations = [
        {},
        {"lora": LoRA(2, 8)},
        {"dtype": "bfloat16"},
        {"precision": "bf16-mixed"},
        {"template": "{{ messages[0]['content'] }}"},
        {"engine": TransformersEngine()},
        {"top_k": 3},
    ]
    assert len({of(**changes) for changes in variations}) == len(variations)
    assert of() == of() and of(lora=LoRA(2, 8)) == of(lora=LoRA(2, 8)) != of(lora=LoRA(2, 400))


def test_a_model_is_told_apart_by_the_files_that_act(reasoner, tmp_path):
    import shutil

    folder = shutil.copytree(reasoner, tmp_path / "model")
    assert model_identity(str(folder)) == model_identity(reasoner), "a copy is the same model"
    (folder / "seen_prompts.json").write_text("{}")
    assert model_identity(str(folder)) == model_identity(reasoner), "a note does not act"
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    assert model_identity(str(folder)) != model_identity(reasoner)


def test_the_reference_of_adapt_think_is_measured_again_for_other_rewards(reasoner, tmp_path, capsys):
    """Also for a setting inside a nested reward, which decides the mean."""
    from datamodules import ArithmeticPrompts
    from tests.helpers import fit

    for scale, measured in ((1.0, True), (1.0, False), (0.5, True)):
        rewards = [PerTask({"default": ExactAnswer()}, scales={"default": scale}, name="exact_answer")]
        module = build(reasoner, rewards, AdaptThink, batch=BatchPlan(prompts_per_rollout=2, group_size=2))
        fit(module, data=ArithmeticPrompts(levels=[1], train_size=4, val_size=2, seed=1), folder=tmp_path)
        assert ("Measuring the initial policy" in capsys.readouterr().out) == measured
