"""Two real processes: whitening over both, the same weights, pass rates and level on both, and a stop that both make at the same step."""

import subprocess
import sys
from pathlib import Path

import torch


def test_two_processes_whiten_step_and_stop_together(reasoner, tmp_path):
    script = Path(__file__).with_name("two_processes.py")
    subprocess.run([sys.executable, str(script), reasoner, str(tmp_path)], check=True, capture_output=True, timeout=300)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one["weights"], other["weights"])
        rewards = torch.cat([one["rewards"], other["rewards"]])
        expected = (rewards - rewards.view(-1, 4).mean(1).repeat_interleave(4)) / (rewards.std() + 1e-4)
        assert torch.allclose(torch.cat([one["advantages"], other["advantages"]]), expected, atol=1e-5)
        assert not torch.equal(one["rewards"], other["rewards"])
    assert any(rollout["steps"] < 6 for rollout in first), "at least one rollout stopped early"
    assert first[-1]["ledger"] == second[-1]["ledger"]
    drawn = [id for rollout in zip(first, second, strict=True) for own in rollout for id in own["ids"]]
    assert sum(map(len, first[-1]["ledger"]["history"].values())) == len(drawn) == 12
    assert set(first[-1]["ledger"]["history"]) == set(drawn)
    assert [rollout["level"] for rollout in first] == [rollout["level"] for rollout in second] == [1, 2, 2]
    assert [
        sum(len(id) > len("1+1=?") for id in one["ids"] + other["ids"])
        for one, other in zip(first, second, strict=True)
    ] == [0, 3, 3]


def test_a_reward_that_fails_on_one_process_stops_both(reasoner):
    """Otherwise the other one would wait for it in its next sum."""
    script = Path(__file__).with_name("two_processes_failing.py")
    done = subprocess.run([sys.executable, str(script), reasoner], capture_output=True, text=True, timeout=300)
    assert done.returncode != 0
    assert (
        done.stderr.count(
            "'judge' (Guarded) failed for 50% of the 16 completions of this rollout (8 errors, 0 time-outs)"
        )
        >= 1
    )
