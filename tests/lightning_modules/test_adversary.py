"""Someone who got NO SOLUTION FOUND varies the settings until a test passes: no test is had that was not paid for."""

import json
import random
from collections import Counter

import pytest

from datamodules import FilePrompts
from datamodules.records_desk import draw_rows
from lightning_modules import HCRLHF, Constraint, SafetyTest
from lightning_modules.hc_rlhf import Ledger, safety_phase
from policies import LoRA, PolicyParams
from rewards import FunctionReward, PerTask
from rollouts import BatchPlan, SamplingParams
from support.errors import ConfigError
from tests.helpers import brevity, quiet_trainer
from tests.helpers.rewards import even, odd

DELTA = 0.1
PROMPTS = [row["prompt"] for row in draw_rows("safety", 70, 2, 0.4)]


def as_chat(text):
    return [{"role": "user", "content": text}]


#: what one attempt may change, and to what
CHOICES = {
    "safety_size": [20, 34, 35, 36, 50],
    "data_seed": [0, 0, 0, 1, 2],
    "run_seed": [0, 0, 0, 1, 2],
    "case": [str, str, str.upper, lambda text: f" {text}  ", "\u200b".join, as_chat],
    "order": [list, list, lambda prompts: prompts[::-1]],
    "file": ["prompts", "prompts", "renamed"],
    "template": [None, None, "{{ messages[0]['content'] }}"],
    "spaces": [False, False, True],
    "temperature": [1.0, 1.0, 0.5, 1.3],
    "max_new_tokens": [4, 4, 3, 5],
    "top_p": [1.0, 0.9],
    "top_k": [0, 0, 5],
    "stop": [[], [], ["pin"]],
    "r": [2, 2, 4],
    "alpha": [8, 8, 400, 1],
    "adapters": [True, True, False],
    "dtype": ["float32", "float32", "bfloat16"],
    "precision": ["32-true", "32-true", "bf16-mixed"],
    "threshold": [0.3, 0.3, 0.9],
    "delta": [DELTA, DELTA, 0.01, 0.5, 0.9],
    "allowance": [1, 1, 2, 3, 4, 20],
    "ledger": [None, None, "a", "b"],
    "cost": [
        lambda: PerTask({"default": FunctionReward(odd, name="x")}),
        lambda: PerTask({"default": FunctionReward(odd, name="x")}),
        lambda: PerTask({"default": FunctionReward(even, name="x")}),
        lambda: PerTask({"default": FunctionReward(odd, name="x")}, scales={"default": 0.1}),
        lambda: PerTask(
            {"default": PerTask({"default": FunctionReward(lambda completions: [0.0] * len(completions))})}
        ),
        lambda: FunctionReward(odd),
    ],
}
BEFORE = {name: values[0] for name, values in CHOICES.items()}


class Attempts:
    """Attempts on one policy and one file of prompts; counts the tests that really sample responses."""

    def __init__(self, model, folder, monkeypatch):
        self.model, self.folder, self.patch, self.sampled = model, folder, monkeypatch, 0

    def __call__(self, **changes):
        """The verdict of `main.py test` with these settings; responses are not sampled and never pass."""
        now = BEFORE | changes
        self.patch.setenv("PL_GLOBAL_SEED", str(now["run_seed"]))
        source = self.folder / f"{now['file']}.jsonl"
        prompts = map(now["case"], now["order"](PROMPTS))
        source.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
        lora = LoRA(r=now["r"], alpha=now["alpha"]) if now["adapters"] else None
        module = HCRLHF(
            PolicyParams(self.model, dtype=now["dtype"], lora=lora),
            [FunctionReward(brevity)],
            cost=now["cost"](),
            constraint=Constraint(threshold=now["threshold"], delta=now["delta"]),
            batch=BatchPlan(prompts_per_rollout=2, group_size=2),
            sampling=SamplingParams(now["max_new_tokens"], now["temperature"], now["top_p"], now["top_k"], now["stop"]),
            test=SafetyTest(
                allowance=now["allowance"],
                ledger=now["ledger"] and str(self.folder / now["ledger"]),
                export=str(self.folder / "exported"),
            ),
        )
        module.configure_model()
        for name, weight in module.policy.model.named_parameters():
            if "lora_B" in name:  # trained adapters, so that their scale acts
                weight.data.fill_(0.1)
        module.policy.tokenizer.chat_template = now["template"] or module.policy.tokenizer.chat_template
        module.policy.tokenizer.clean_up_tokenization_spaces = now["spaces"]
        trainer = quiet_trainer(folder=self.folder, precision=now["precision"])
        data = FilePrompts(str(source), val_size=2, safety_size=now["safety_size"], seed=now["data_seed"])
        module.trainer, trainer.datamodule, self.trainer = trainer, data, trainer
        module.rewards, module.cost = module.models.load(module.policy_params, data, trainer)
        # Not a method of the module: one that Python replaced would be part of the question.
        self.patch.setattr(safety_phase, "run_test", lambda *arguments: self.outcome(arguments[5]))
        self.ledger = Ledger([row["prompt"] for row in data.rows("safety")], module.test_params.ledger)
        return module.safety_test()

    def outcome(self, delta):
        """A test that is not passed."""
        self.sampled += 1
        verdict = {"safe": False, "ucb": 2.0, "mean": 1.0, "std": 0.5, "samples": 3, "threshold": 0.3}
        verdict |= {"delta": delta, "bound": "StudentT", "assumption": ""}
        return {"delta": delta, "verdict": verdict, "truth": {}, "costs": [0.0, 1.0, 2.0]}


def _varied(rng):
    """One to four settings, changed at random."""
    names = rng.sample(sorted(CHOICES), rng.randint(1, 4))
    return {name: rng.choice(CHOICES[name]) for name in names}


@pytest.fixture
def attempts(assistant, tmp_path, monkeypatch):
    return Attempts(assistant, tmp_path, monkeypatch)


def test_fifty_variations_after_no_solution_found_give_no_second_test(attempts):
    """More than half of 70 prompts are drawn each time, so that every variation shares some with the tested ones."""
    assert attempts(safety_size=36).text == "NO SOLUTION FOUND" and attempts.sampled == 1
    rng, outcomes = random.Random(0), Counter()
    for _ in range(50):
        changes = _varied(rng)
        if not attempts_overlap(changes):
            changes |= {"data_seed": 0}
        try:
            verdict = attempts(**({"safety_size": 36} | changes))
            outcomes["the recorded verdict"] += 1
            assert verdict.text == "NO SOLUTION FOUND"
        except ConfigError as error:
            outcomes["refused"] += 1
            assert "been tested 1 time" in str(error)
        assert attempts.sampled == 1, f"a second test with {changes}"
        assert sum(test["delta"] for test in attempts.ledger.tests()) == pytest.approx(DELTA)
    assert outcomes["refused"] > 25 and sum(outcomes.values()) == 50
    assert not (attempts.folder / "exported").exists()


def attempts_overlap(changes):
    return changes.get("safety_size", 36) + 36 > 68 or changes.get("data_seed", 0) == 0


def test_variations_under_an_allowance_spend_no_more_than_delta(attempts):
    assert attempts(safety_size=36, allowance=3).text == "NO SOLUTION FOUND"
    rng = random.Random(1)
    for _ in range(20):
        changes = {"safety_size": 36, "allowance": 3} | _varied(rng) | {"data_seed": 0}
        try:
            attempts(**changes)
        except ConfigError as error:
            assert "been tested" in str(error)
        spent = [test["delta"] for test in attempts.ledger.tests()]
        assert sum(spent) <= DELTA * (1 + 1e-9) and attempts.sampled <= 3
    assert attempts.sampled == 3, "what was declared can be used"


def test_an_interrupted_test_is_not_paid_twice_and_its_interruption_is_counted(attempts):
    def killed(delta):
        raise KeyboardInterrupt

    whole, attempts.outcome = attempts.outcome, killed
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            attempts()
    attempts.outcome = whole
    with pytest.raises(ConfigError, match="tested 1 time"):
        attempts(alpha=400)
    attempts()
    (test,) = attempts.ledger.tests()
    assert attempts.sampled == 1 and test["delta"] == DELTA and test["interrupted"] == 2


def test_a_journal_in_another_folder_only_counts_when_it_is_asked_for(attempts, monkeypatch):
    """The tests of the default place count under any folder; those of a lost cache remain in the chosen folder."""
    attempts(ledger="a")
    with pytest.raises(ConfigError, match="tested 1 time"):
        attempts(alpha=400)
    monkeypatch.setenv("LIGHTNING_POSTTRAIN_CACHE", str(attempts.folder / "new cache"))
    with pytest.raises(ConfigError, match="tested 1 time"):
        attempts(alpha=400, ledger="a")
