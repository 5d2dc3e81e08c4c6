"""Identities that caches and the ledger rest on: different for whatever acts differently, equal for equal objects."""

import functools
import importlib
import io
import itertools
import logging
import math
import os
import random
import re
import subprocess
import sys
import threading
import types
import weakref
from abc import ABC, abstractmethod
from collections import defaultdict, deque
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch

from lightning_modules import AdaptThink, RewardModel
from lightning_modules.core.generator import generator
from policies import LoRA, PolicyParams
from policies.locate import model_identity
from rewards import CodeTests, ExactAnswer, FunctionReward, Guarded, MathAnswer, PerTask, Reward
from rewards.math_text import last_box
from rollouts import BatchPlan, SamplingParams, TransformersEngine
from support import code_identity
from support.identity import identity, identity_fingerprint, replaced_methods
from tests.helpers import ROOT, build, digits, quiet_trainer

FACTOR = 1.0
MET = itertools.cycle([int, str, float])
#: objects that weak references need alive
KEPT = {value: frozenset((value,)) for value in (1, 2)}


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


class OneSlot:
    __slots__ = "value"

    def __init__(self, value):
        self.value = value


class PrivateSlot:
    __slots__ = ("__value",)

    def __init__(self, value):
        self.__value = value


class Fraction(float):
    """A number with a place for attributes."""


class Whole(int):
    """A number with a place for attributes."""


class Decorator:
    """A function with a setting, as decorators that are classes make it."""

    def __init__(self, value, function=scaled):
        functools.update_wrapper(self, function)
        self.value = value

    def __get__(self, owner, kind=None):
        return functools.partial(self, owner)


def by_type(value):
    """A function by the type of its argument that has met another type each time."""
    chosen = functools.singledispatch(scaled)
    chosen.register(int, closure(value))
    chosen.dispatch(next(MET))
    return chosen


class ByType:
    def __init__(self, value):
        self.score = functools.singledispatchmethod(closure(value))


class Descriptor:
    def __init__(self, value):
        self.value = value

    def __get__(self, owner, kind=None):
        return self.value


class Network(torch.nn.Module):
    def __init__(self, limit=0.0, buffer=0.0, hook=None):
        super().__init__()
        self._limit = limit
        self.register_buffer("part", torch.tensor(buffer), persistent=False)
        if hook is not None:
            self.register_forward_hook(hook)


def with_an_attribute(value):
    inner = closure(0)
    inner.limit = value
    return inner


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
    "lengths of queues": (lambda value: deque([1], value), 2, 3),
    "default factories": (lambda value: defaultdict(closure(value)), 0.0, 1.0),
    "orders of rules": (lambda value: dict(value), [("pin", 1.0), ("", 0.0)], [("", 0.0), ("pin", 1.0)]),
    "numbers with attributes": (Fraction, 0.1, 0.9),
    "whole numbers with attributes": (Whole, 1, 9),
    "generators of random numbers": (random.Random, 1, 2),
    "arrays": (np.array, [1, 2], [1, 3]),
    "masked arrays": (np.ma.masked_array, [1, 2], [1, 3]),
    "texts in memory": (io.StringIO, "a", "b"),
    "loggers": (logging.getLogger, "a", "b"),
    "a slot that is a text": (OneSlot, 1, 2),
    "private slots": (PrivateSlot, 1, 2),
    "decorators that are classes": (Decorator, 1, 2),
    "functions by type": (by_type, 1, 2),
    "methods by type": (ByType, 1, 2),
    "weak references": (lambda value: weakref.ref(KEPT[value]), 1, 2),
    "weak dictionaries": (lambda value: weakref.WeakKeyDictionary({KEPT[1]: value}), 1, 2),
    "descriptors": (Descriptor, 1, 2),
    "attributes of functions": (with_an_attribute, 1, 2),
    "methods of C objects": (lambda value: value.__add__, 1, 2),
    "methods of C classes": (lambda name: getattr(str, name), "upper", "lower"),
    "private settings of networks": (Network, 0.1, 0.9),
    "buffers outside the state dict": (lambda value: Network(buffer=value), 0.1, 0.9),
    "hooks of networks": (lambda value: Network(hook=closure(value)), 0.1, 0.9),
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


#: a reward function by how it reaches `limit` of another module
REACHED = {
    "a module": ("import other", "other.limit()"),
    "a submodule": ("import package.inside", "package.inside.limit()"),
    "an import inside": ("", "use()\ndef use():\n    import other\n    return other.limit()"),
    "a module behind a module": ("import behind", "behind.limit()"),
    "a number of a module": ("import other", "other.LIMIT"),
    "a class of a module": ("from other import Limit", "Limit().value()"),
    "a submodule by name": ("from package import inside", "inside.limit()"),
    "an import inside, two modules deep": ("", "use()\ndef use():\n    import behind\n    return behind.limit()"),
    "an import by a text": ("import importlib", "importlib.import_module('behind').limit()"),
    "an import by a text behind a module": ("import by_text", "by_text.limit()"),
    "a relative import behind a module": ("import package.beside", "package.beside.limit()"),
    "a relative import inside": ("import package.beside", "package.beside.late()"),
    "a name that is put together": ("import other", "getattr(other, 'lim' + 'it')()"),
}


@pytest.mark.parametrize("name", REACHED)
def test_the_code_that_a_function_reaches_is_part_of_it(name, tmp_path, monkeypatch):
    imports, expression = REACHED[name]
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").write_text("")
    (tmp_path / "behind.py").write_text("import other\ndef limit(): return other.limit()\n")
    by_text = "from importlib import import_module\ndef limit(): return import_module('behind').limit()\n"
    (tmp_path / "by_text.py").write_text(by_text)
    late = "def late():\n    from . import inside\n    return inside.limit()\n"
    (tmp_path / "package" / "beside.py").write_text(f"from .inside import limit\n{late}")
    (tmp_path / "scoring.py").write_text(f"{imports}\ndef score(completions): return {expression}\n")
    fingerprints = []
    for limit in (0.1, 0.9, 0.1):
        for file in (tmp_path / "other.py", tmp_path / "package" / "inside.py"):
            limits = f"class Limit:\n    def value(self): return {limit}\n"
            file.write_text(f"LIMIT = {limit}\ndef limit(): return LIMIT\n{limits}")
        for module in ("scoring", "behind", "by_text", "other", "package.inside", "package.beside", "package"):
            sys.modules.pop(module, None)
        importlib.invalidate_caches()
        monkeypatch.setattr(sys, "dont_write_bytecode", True)
        fingerprints.append(identity_fingerprint(importlib.import_module("scoring").score))
    assert fingerprints[0] == fingerprints[2] != fingerprints[1]


@pytest.mark.parametrize(
    ("value", "file"),
    [
        (MathAnswer, "rewards/math_text.py"),
        (MathAnswer(), "support/errors.py"),
        (PerTask({"default": MathAnswer()}), "rewards/math_compare.py"),
        (CodeTests, "rewards/sandbox/guest.py"),
        (RewardModel, "policies/scorer.py"),
        (last_box, "rewards/texts.py"),
        (lambda completions: last_box(completions[0]), "rewards/texts.py"),
    ],
)
def test_an_edit_of_any_file_behind_this_projects_code_changes_its_identity(value, file, monkeypatch):
    def read(path):
        return original(path) + (b"\n" if path == edited else b"")

    original, edited, before = Path.read_bytes, ROOT / file, identity_fingerprint(value)
    assert edited.is_file() and identity_fingerprint(value) == before
    monkeypatch.setattr(Path, "read_bytes", read)
    code_identity._parsed_version.cache_clear()
    assert identity_fingerprint(value) != before
    monkeypatch.undo()
    code_identity._parsed_version.cache_clear()
    assert identity_fingerprint(value) == before


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        (ExactAnswer, "score", lambda self, batch: [0.0] * len(batch.completions)),
        (ExactAnswer, "span", (0.0, 0.5, False)),
        (Reward, "__call__", lambda self, batch: [0.0] * len(batch.completions)),
        (PerTask, "parts", property(lambda self: [])),
    ],
)
def test_a_class_that_was_changed_from_python_is_another_one(kind, name, value, monkeypatch):
    reward = PerTask({"default": ExactAnswer()})
    before = identity_fingerprint(reward)
    monkeypatch.setattr(kind, name, value, raising=False)
    assert identity_fingerprint(reward) != before
    monkeypatch.undo()
    assert identity_fingerprint(reward) == before


#: objects whose order differs between processes
ELSEWHERE = """
import collections, functools, logging, torch
from transformers import LlamaConfig, LlamaForCausalLM
from support.identity import identity, identity_fingerprint, replaced_methods
log = logging.getLogger("scoring")
class Words(set): pass
def score(completions, words={"a", "b", "c"}):
    log.info("scored")
    return [float(text in words or text in {"d", "e", "f"}) for text in completions]
torch.manual_seed(0)
@functools.singledispatch
def by_type(value): return 0.0
@by_type.register
def _(value: str): return 1.0
@by_type.register
def _(value: int): return 2.0
class Bytype:
    @functools.singledispatchmethod
    def score(self, value): return by_type(value)
sizes = dict(vocab_size=8, hidden_size=4, intermediate_size=4, num_hidden_layers=1, num_attention_heads=1)
model = LlamaForCausalLM(LlamaConfig(**sizes))
for value in (score, Words("abc"), collections.Counter("abc"), by_type, Bytype(), model):
    print(identity_fingerprint(value))
"""


def test_another_process_has_the_same_identities():
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", ELSEWHERE],
            env=os.environ | {"PYTHONHASHSEED": seed},
            stdout=subprocess.PIPE,
            text=True,
        )
        for seed in ("1", "2")
    ]
    first, second = [process.communicate()[0].split() for process in processes]
    assert len(first) == 6 and first == second


@pytest.mark.parametrize(
    "named_by",
    [
        lambda file: Settings({"rules": file}),
        lambda file: Settings({"rules": str(file)}),
        lambda file: Settings({"rules": [{"path": f"{file.parent}/../{file.parent.name}/rules.txt"}]}),
        lambda file: Settings({"rules": file.parent}),
        lambda file: functools.partial(open, str(file)),
        lambda file: eval(f"lambda batch: open({str(file)!r})"),
    ],
    ids=["path", "text", "nested text", "folder", "partial", "constant in a function"],
)
def test_the_content_of_a_file_that_a_setting_names_counts(tmp_path, named_by):
    fingerprints = []
    for text in ("a", "b", "a"):
        (tmp_path / "rules.txt").write_text(text)
        fingerprints.append(identity_fingerprint(named_by(tmp_path / "rules.txt")))
    assert fingerprints[0] == fingerprints[2] != fingerprints[1]


def test_a_text_that_can_name_no_file_counts_as_it_is(tmp_path):
    texts = ["", "a\0b", "line\n" * 3, "x" * 5000, "/" + "y" * 300, "\ud800", str(tmp_path)]
    assert [identity(text) for text in texts] == texts


def test_what_cannot_be_identified_equals_nothing():
    lock = threading.Lock()
    assert identity_fingerprint(Settings({"a": lock})) != identity_fingerprint(Settings({"a": lock}))


class Strict:
    """Refuses unknown attributes by an error of its own, as torch's scopes of scripts do."""

    def __getattr__(self, name):
        raise RuntimeError(f"no {name}")


def test_objects_that_refuse_attributes_have_an_identity():
    first, second = Strict(), Strict()
    assert identity_fingerprint(first) == identity_fingerprint(second)
    second.limit = 1
    assert identity_fingerprint(first) != identity_fingerprint(second)


@pytest.mark.parametrize("folder", ["site-packages", "dist-packages", "my-packages"])
def test_libraries_of_another_environment_are_libraries(folder, tmp_path, monkeypatch):
    (tmp_path / folder).mkdir()
    (tmp_path / folder / "another_library.py").write_text("__version__ = '1.0'")
    monkeypatch.syspath_prepend(tmp_path / folder)
    monkeypatch.delitem(sys.modules, "another_library", raising=False)
    module = importlib.import_module("another_library")
    assert code_identity.is_library("another_library") == (folder != "my-packages")
    assert (code_identity.version_of(module) == "1.0") == (folder != "my-packages")
    del sys.modules["another_library"]


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


def test_a_method_that_was_put_back_is_not_replaced_and_one_bound_to_the_object_counts_by_its_function():
    class Holder:
        def forward(self):
            return 1

    holder = Holder()
    holder.forward = holder.forward  # as Lightning leaves it behind DDP
    assert replaced_methods(holder) == []

    def other(self):
        return 2

    holder.held = holder  # an identity of the method's object would walk through all that it holds
    holder.forward = types.MethodType(other, holder)
    assert replaced_methods(holder) == [("forward", other)]
    holder.forward = other
    assert replaced_methods(holder) == [("forward", other)]
