"""pass@k of validation and test: the estimator by enumeration, metrics over all batches and processes, intervals."""

from itertools import combinations

import numpy as np
import pytest
import torch

from lightning_modules import Evaluation
from lightning_modules.core import problem_counts
from lightning_modules.core.problem_counts import ProblemCounts, pass_at_k
from rewards import FunctionReward
from support.errors import ConfigError
from tests.helpers import build, quiet_trainer, sums


@pytest.mark.parametrize("samples", [1, 3, 6])
def test_the_estimator_is_the_share_of_subsets_with_a_right_one(samples):
    patterns = torch.tensor([[bool(code >> i & 1) for i in range(samples)] for code in range(2**samples)])
    for k in range(1, samples + 1):
        expected = [
            float(np.mean([any(row[i] for i in subset) for subset in combinations(range(samples), k)]))
            for row in patterns.tolist()
        ]
        assert pass_at_k(patterns, k).tolist() == pytest.approx(expected, abs=1e-12)


class HasOdd(FunctionReward):
    """Right where the length of the completion is odd: about half of what an untrained model writes."""

    is_correctness = True

    def __init__(self):
        super().__init__(lambda completions: [float(len(text) % 2) for text in completions], name="odd")


def run(folder, stage, val_batch=64, **evaluation):
    module = build(folder, [HasOdd()], evaluation=Evaluation(samples=4, **evaluation))
    data = sums(train_size=16, val_size=12)
    data.val_batch = val_batch
    trainer = quiet_trainer(limit_val_batches=1.0)
    return getattr(trainer, stage)(module, datamodule=data, verbose=False)[0], module


def test_metrics_equal_those_of_the_counts(reasoner):
    found, module = run(reasoner, "validate", pass_k=[1, 2, 4], val_batch=5)
    counts = np.array([c for _, _, c in module.problem_counts[0].counts])
    assert len(counts) == 12 and 0 < counts.mean() < 4
    assert found["val/pass@1"] == pytest.approx(counts.mean() / 4)
    assert found["val/pass@4"] == pytest.approx((counts > 0).mean())
    tasks = np.array([task for task, _, _ in module.problem_counts[0].counts])
    for level in (1, 2):
        assert found[f"val/pass@4/addition-{level}"] == pytest.approx((counts > 0)[tasks == f"addition-{level}"].mean())
    assert not [name for name in found if name.endswith("/low")]


def test_one_number_keeps_its_name_and_the_test_stage_has_intervals(reasoner):
    found, module = run(reasoner, "test", pass_k=2)
    assert "test/pass@k" in found and "test/pass@2" not in found
    for name in ("test/pass@1", "test/pass@k"):
        assert found[f"{name}/low"] < found[name] < found[f"{name}/high"]
    asked, _ = run(reasoner, "validate", pass_k=2, val_intervals=True)
    assert "val/pass@k/high" in asked


def test_batches_and_processes_change_nothing(monkeypatch):
    rng = torch.Generator().manual_seed(0)
    rows = [{"task": f"t{i % 3}"} for i in range(30)]
    correct = torch.rand(30, 4, generator=rng) < 0.4
    evaluation = Evaluation(samples=4, pass_k=[2, 4], val_intervals=True)

    def metrics(*parts):
        processes = []
        for part in parts:  # a process: a list of batches, each a list of indices
            counts = ProblemCounts()
            for batch in part:
                counts.add([rows[i] for i in batch], correct[batch])
            processes.append(counts.counts)
        monkeypatch.setattr(problem_counts, "gathered", lambda item: processes)
        values = ProblemCounts().metrics(evaluation.pass_ks, evaluation.with_intervals("val"))
        return {f"val/{name}": value for name, value in values.items()}

    whole = metrics([list(range(30))])
    assert {"val/pass@2/low", "val/pass@4/t0", "val/pass@1/high"} <= set(whole)
    assert metrics([list(range(7)), list(range(7, 30))]) == pytest.approx(whole, abs=1e-12)
    # one process never sees the task t0, another has nothing
    without = [i for i in range(30) if i % 3]
    assert metrics([[i for i in range(30) if i % 3 == 0]], [without], []) == pytest.approx(whole, abs=1e-12)


def test_settings_that_cannot_work_are_refused():
    for pass_k in (5, [1, 5], 0, [], [0]):
        with pytest.raises(ConfigError, match="1 <= pass_k <= samples"):
            Evaluation(samples=4, pass_k=pass_k)
