"""Findings of preference tuning: each is provoked once by a real training; a healthy run is left alone."""

import pytest

from callbacks import Doctor, RolloutCheckpoint
from callbacks.findings_preference import WINDOW, likelihood_displacement, no_preference
from datamodules import PairSource, PreferencePairs
from lightning_modules import Preference
from objectives import DPO, REDI
from policies import PolicyParams
from tests.ecosystem.test_trl_formats import jsonl
from tests.helpers import adamw, fit


@pytest.fixture
def pairs(tmp_path):
    rows = [{"prompt": f"{n}=", "chosen": f"{n}, {n}", "rejected": f"{n}, {n}, 9"} for n in range(8)]
    return PreferencePairs(PairSource(jsonl(tmp_path / "pairs.jsonl", *rows), format="trl"), 4, 0.0, seed=0)


def examined(model, data, loss, lr, steps=2 * WINDOW, **options):
    doctor = Doctor()
    module = Preference(PolicyParams(model), loss=loss, optimizer=adamw(lr))
    fit(module, steps, [doctor, *options.pop("callbacks", [])], data=data, seed=0, **options)
    return doctor


def test_a_healthy_run_is_left_alone(reasoner, pairs):
    doctor = examined(reasoner, pairs, REDI(0.5), 1e-3)
    assert doctor.said == {} and len(doctor.steps) == 2 * WINDOW
    assert doctor.steps[-1]["margin"] > doctor.steps[0]["margin"]


def test_both_sides_becoming_unlikely_is_found(reasoner, pairs, tmp_path):
    saving = [RolloutCheckpoint(every_n_rollouts=15, folder=str(tmp_path))]
    doctor = examined(reasoner, pairs, REDI(1.5), 3e-2, folder=tmp_path, callbacks=saving)
    assert "fell from" in doctor.said["likelihood_displacement"]
    (checkpoint,) = tmp_path.glob("rollout_000020.ckpt")
    resumed = examined(reasoner, pairs, REDI(1.5), 3e-2, 2 * WINDOW + 1, folder=tmp_path, ckpt_path=checkpoint)
    assert resumed.said == doctor.said and resumed.steps[:WINDOW] == doctor.steps[:WINDOW]


def test_a_policy_that_does_not_move_is_found(reasoner, pairs):
    doctor = examined(reasoner, pairs, DPO(), 0.0, WINDOW + 1)
    assert "was exactly zero in 10 steps" in doctor.said["no_preference"]


def step(chosen=-1.0, rejected=-2.0, margin=1.0):
    return {"logprob/chosen": chosen, "logprob/rejected": rejected, "margin": margin}


def test_thresholds():
    start = [step(-1.0)] * WINDOW
    assert likelihood_displacement(None, [*start, *[step(-1.09)] * WINDOW]) is None
    assert "from -1 to -1.11, and that of rejected ones from -2 to -3" in str(
        likelihood_displacement(None, [*start, *[step(-1.11, -3.0)] * WINDOW])
    )
    noisy = [step(-1.0 + 0.8 * (-1) ** n) for n in range(WINDOW)]
    assert likelihood_displacement(None, [*noisy, *(step(one["logprob/chosen"] - 0.3) for one in noisy)]) is None
    assert no_preference(None, [step(margin=0.0)] * WINDOW) is None, "the first step has no margin with a reference"
    assert no_preference(None, [step(margin=0.0)] * WINDOW + [step(margin=0.1)]) is None
