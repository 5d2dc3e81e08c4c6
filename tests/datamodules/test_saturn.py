"""SATURN's problems, verifier and curriculum, against a SAT solver, enumeration and cases worked out by hand."""

import itertools
import random

import lightning as L
import pytest
from pysat.solvers import Solver

from callbacks import RolloutCheckpoint, SaturnCurriculum
from datamodules import SatDemonstrations, SaturnPrompts
from datamodules.saturn import chance, clauses_for, difficulty, formula, satisfied
from lightning_modules import Evaluation, KLPenalty
from rewards import SatAssignment
from rollouts import BatchPlan, SamplingParams
from support.errors import ConfigError
from tests.helpers import build, fit, run_config
from tests.helpers.batches import batch_of_texts

LEVELS = [[2, 3, 4], [2, 3, 3], [2, 3, 5]]


def solver_clauses(text):
    """The formula as a solver wants it, read character by character."""
    found = []
    for clause in text.split(" & "):
        found.append([])
        sign = 1
        for c in clause:
            if c == "!":
                sign = -1
            else:
                found[-1].append(sign * (1 + "ABCDEFGHIJKLMNOP".index(c)))
                sign = 1
    return found


@pytest.mark.parametrize("level", [(2, 3, 4), (3, 5, 5), (3, 5, 15), (3, 7, 40), (1, 4, 2)])
def test_a_formula_has_its_form_and_its_planted_assignment_satisfies_it(level):
    n, k, clauses = level
    rng = random.Random(str(level))
    for _ in range(20):
        text, bits = formula(n, k, clauses, rng)
        rules = solver_clauses(text)
        assert len(rules) == clauses == len(set(map(tuple, rules))) and text.split(" & ") == sorted(text.split(" & "))
        assert all(len({abs(v) for v in rule}) == n and max(map(abs, rule)) <= k for rule in rules)
        with Solver("minisat22", bootstrap_with=rules) as solver:
            assert solver.solve()
            assert solver.solve(assumptions=[(i + 1) * (1 if bit == "1" else -1) for i, bit in enumerate(bits)])
        assert len(bits) == k and satisfied(text, bits)


def test_verifier_and_chance_agree_with_a_solver_on_every_assignment():
    rng = random.Random(3)
    for _ in range(10):
        text, _ = formula(3, 5, 8, rng)
        right = 0
        with Solver("minisat22", bootstrap_with=solver_clauses(text)) as solver:
            for bits in itertools.product("01", repeat=5):
                holds = solver.solve(assumptions=[(i + 1) * (1 if bit == "1" else -1) for i, bit in enumerate(bits)])
                assert satisfied(text, "".join(bits)) == holds
                right += holds
        assert chance(text, 5) == right / 32


def test_every_clause_that_an_assignment_satisfies_can_be_drawn():
    assert sorted(clauses_for("10", 2)) == ["!A!B", "A!B", "AB"]
    assert len(set(clauses_for("0110", 3))) == 4 * 7


@pytest.mark.parametrize(
    ("level", "value"),
    [((3, 5, 5), 5.63), ((3, 5, 6), 6.16), ((3, 5, 13), 8.39), ((3, 5, 15), 8.80), ((3, 7, 40), 12.78)],
)
def test_the_difficulties_of_the_papers_levels(level, value):
    assert difficulty(*level) == pytest.approx(value, abs=0.005)


def scored(texts, clause="!AB & AC"):
    return batch_of_texts(texts, clause=clause)


def test_the_verifier_reads_the_last_box():
    cases = {
        "</think>\\boxed{110}": 1,
        "\\boxed{110}</think>\\boxed{100}": 0,  # A and not B
        "\\boxed{001}": 1,  # not A, C
        "\\boxed{11}": 1,  # C is missing and 0; A and B do
        "\\boxed{0}": 0,
        "\\boxed{}": 0,
        "\\boxed{1100000}": 1,
        "\\boxed{1x0}": 0,  # neither B nor not B is true
        "110": -1,
        "\\boxed{110": -1,
    }
    assert SatAssignment()(scored(list(cases))).tolist() == list(cases.values())
    assert SatAssignment(no_box=0.0)(scored(["110"])).tolist() == [0]


def test_levels_are_ordered_and_no_formula_is_on_both_sides():
    data = SaturnPrompts(LEVELS, train_size=60, val_size=15, seed=1)
    assert data.levels == [(2, 3, 3), (2, 3, 4), (2, 3, 5)]
    train, val = data.rows("train"), data.rows("val")
    assert len(train) == 180 and [row["level"] for row in val] == [0] * 15 + [1] * 15 + [2] * 15
    assert len({row["clause"] for row in train + val}) == 225
    assert all(
        row["clause"] in row["prompt"] and row["task"] == f"sat-2-3-{row['clause'].count('&') + 1}" for row in train
    )
    assert (
        train
        == SaturnPrompts(LEVELS, train_size=60, val_size=15, seed=1).rows("train")
        != SaturnPrompts(LEVELS, 60, 15, seed=2).rows("train")
    )
    demonstrations = SatDemonstrations(LEVELS, train_size=300, val_size=10, seed=5)
    demonstrations.setup("fit")
    assert len(demonstrations.train_data) == 300 and not {row["prompt"] for row in demonstrations.train_data} & {
        row["clause"] for row in val
    }


def test_mistakes_are_named():
    for level in ([4, 3, 2], [2, 3, 10], [2, 3], [0, 3, 1], [2, 17, 3]):
        with pytest.raises(ConfigError, match="is impossible"):
            SaturnPrompts([level])
    with pytest.raises(ConfigError, match="fewer than 500 training formulas"):
        SaturnPrompts([[2, 3, 3]], train_size=500).rows("train")
    with pytest.raises(ConfigError, match="same difficulty"):
        SaturnPrompts([[2, 3, 3], [2, 3, 3]])
    with pytest.raises(ConfigError, match="no <clause>"):
        SaturnPrompts(prompt="solve")
    with pytest.raises(ConfigError, match="eps is 1"):
        SaturnCurriculum(1.0)


# ---- the curriculum --------------------------------------------------------------------------------------------------


class Told(L.Callback):
    """Gives validation the wanted pass@1 of every level, and notes the levels of the training prompts."""

    def __init__(self, rates):
        self.rates, self.found = rates, []

    def on_validation_epoch_end(self, trainer, pl_module):
        for number, rate in enumerate(self.rates[trainer.global_step]):
            pl_module.log(f"val/pass@1/sat-2-3-{number + 3}", rate)

    def on_train_batch_end(self, trainer, pl_module, *given):
        self.found.append([row["id"] for row in pl_module.last_rollout.rows])


#: by rollouts done: pass@1 of the three levels. 0.5 must be exceeded, at the present level and no other
RATES = {2: (0.5, 0.9, 0.9), 4: (0.6, 0.1, 0.1), 6: (0.9, 0.4, 0.9), 8: (0.1, 0.8, 0.0), 10: (0.0, 0.0, 0.9)}


def saturn(model, **parts):
    small = {"batch": BatchPlan(4, 2), "sampling": SamplingParams(max_new_tokens=4), "kl": KLPenalty()}
    return build(model, [SatAssignment()], **(small | parts))


def run(model, steps, folder, ckpt_path=None):
    told, curriculum = Told(RATES), SaturnCurriculum(0.5)
    saved = RolloutCheckpoint(every_n_rollouts=1, keep=None, folder=str(folder))
    module = saturn(model, evaluation=Evaluation(1))
    module.validation_step = lambda *given: None
    data = SaturnPrompts(LEVELS, train_size=20, val_size=2, prompt="<clause>", seed=1)
    trainer = fit(module, steps, [told, curriculum, saved], data=data, validate_every=2, ckpt_path=ckpt_path)
    return told.found, curriculum.promotions, trainer


def test_the_level_rises_when_its_own_pass_rate_exceeds_eps_and_a_resumed_run_repeats_it(
    reasoner, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")
    whole, promotions, trainer = run(reasoner, 11, tmp_path / "whole")
    levels = [{ids.count("&") + 1 for ids in rollout} for rollout in whole]
    assert levels == [{3}] * 4 + [{4}] * 4 + [{5}] * 3
    assert [(p["rollout"], p["level"]) for p in promotions] == [(4, 0), (8, 1)]
    found = trainer.callback_metrics
    assert float(found["train/curriculum_level"]) == 2 and float(found["train/format_failures"]) == 1
    assert float(found["train/sat_difficulty"]) == pytest.approx(5.729, abs=1e-3)  # log2 3 + 2 log2 5 - 2 + 3/2
    for stop in (3, 4, 7):
        rest, again, _ = run(reasoner, 11, tmp_path / f"rest{stop}", tmp_path / f"whole/rollout_{stop:06d}.ckpt")
        assert whole[stop:] == rest and again == promotions


def test_other_data_are_refused(reasoner, tmp_path):
    from datamodules import ArithmeticPrompts

    module = saturn(reasoner)
    module.rewards[0].check_columns = lambda row: None
    with pytest.raises(ConfigError, match="needs datamodules.SaturnPrompts"):
        fit(module, 1, [SaturnCurriculum()], data=ArithmeticPrompts(train_size=64, val_size=8))


def test_the_configuration_runs(reasoner, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")
    changes = {"model.batch.prompts_per_rollout": 4, "model.batch.group_size": 2}
    changes |= {"trainer.max_steps": 2, "trainer.val_check_interval": 1}
    unchanged = (
        "model.sampling.max_new_tokens",
        "data.train_size",
        "trainer.limit_val_batches",
        "trainer.enable_checkpointing",
    )
    cli = run_config(["saturn"], reasoner, unchanged=unchanged, **changes)
    found = cli.trainer.callback_metrics
    assert {"val/pass@1/sat-2-3-3", "val/pass@4/sat-2-3-6", "val/format_failures", "train/sat_chance"} <= set(found)
