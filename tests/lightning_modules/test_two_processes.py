"""Two processes: every method does what it does on one; whitening, pass rates and stops go over both."""

import pytest
import torch

from tests.helpers.processes import run_on_two
from tests.lightning_modules import two_processes, two_processes_failing, two_processes_methods

#: the cases in which faults were found, and all others
CHEAP = {
    "ddp": ["grpo", "one_shot", "adapt_think", "kto", "turns", "no_signal"],
    "fsdp2": ["grpo", "adapt_think", "ppo", "turns", "no_signal"],
}
METHODS = [
    *("grpo", "grpo, two updates", "grpo, adapters", "one_shot", "s_grpo", "t_spmo", "prorl", "still3"),
    *("adapt_think", "auto_think", "self_verify", "ppo", "ppo, shared", "turns", "no_signal", "sft", "dpo", "kto"),
    *("hc_rlhf", "thinker"),
]


def agree(names, strategy, models, folder, monkeypatch, steps, seconds):
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")
    two_processes_methods.main(names, "one", models, str(folder), steps)
    log = folder / "log.txt"
    with pytest.MonkeyPatch.context() as patch:
        # A ledger of its own: the run of one process has tested the same safety split.
        patch.setenv("LIGHTNING_POSTTRAIN_CACHE", str(folder / "cache"))
        arguments = (names, strategy, models, str(folder), steps)
        codes = run_on_two(two_processes_methods.main, *arguments, log=log, seconds=seconds)
    assert codes == [0, 0], log.read_text()[-4000:]
    for name in names:
        one = torch.load(folder / f"{name} one 0.pt")
        ranks = [torch.load(folder / f"{name} {strategy} {rank}.pt") for rank in (0, 1)]
        for two in ranks:
            assert torch.allclose(one["weights"], two["weights"], atol=1e-5, rtol=0), name
            assert len(one["metrics"]) == len(two["metrics"]) > 2
            for expected, found in zip(one["metrics"], two["metrics"], strict=True):
                assert found == pytest.approx(expected, abs=1e-4, nan_ok=True), name
        if name not in two_processes_methods.OFFLINE:
            silent = any(metrics.get("train/computed_rows") == 0 for metrics in one["metrics"])
            assert bool(one["fillers"]) == silent, "one process has nothing to equalise"
            assert max(metrics["train/grad_norm"] for metrics in one["metrics"] if "train/grad_norm" in metrics) > 1e-3
    assert any(torch.load(folder / f"{name} {strategy} {rank}.pt")["fillers"] for name in names for rank in (0, 1)), (
        "no passes were unequal"
    )


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_processes_do_what_one_does(strategy, reasoner, assistant, tmp_path, monkeypatch):
    agree(CHEAP[strategy], strategy, [reasoner, assistant], tmp_path, monkeypatch, steps=4, seconds=240)


@pytest.mark.long
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_every_method_does_on_two_processes_what_it_does_on_one(strategy, reasoner, assistant, tmp_path, monkeypatch):
    assert {*two_processes_methods.cases(reasoner), *two_processes_methods.OFFLINE, "hc_rlhf"} == set(METHODS)
    agree(METHODS, strategy, [reasoner, assistant], tmp_path, monkeypatch, steps=6, seconds=1200)


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
