"""Two processes: whitening over both, equal weights, pass rates and level, and a stop at the same step."""

import torch

from tests.helpers.processes import run_on_two
from tests.lightning_modules import two_processes, two_processes_failing


def test_two_processes_whiten_step_and_stop_together(reasoner, tmp_path):
    log = tmp_path / "log.txt"
    assert run_on_two(two_processes.main, reasoner, str(tmp_path), log=log) == [0, 0], log.read_text()[-4000:]
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


def test_a_reward_that_fails_on_one_process_stops_both(reasoner, tmp_path):
    """Otherwise the other one would wait for it in its next sum."""
    log = tmp_path / "log.txt"
    assert 0 not in run_on_two(two_processes_failing.main, reasoner, log=log)
    assert (
        log.read_text().count(
            "'judge' (Guarded) failed for 50% of the 16 completions of this rollout (8 errors, 0 time-outs)"
        )
        >= 1
    )
