"""Two real processes (DDP or FSDP2) do what one process does, and go on exactly from a checkpoint."""

import pytest
import torch

from tests.helpers.processes import run_on_two
from tests.scale import train

CASES = [
    ("grpo", "ddp"), ("grpo", "fsdp2"), ("hc_rlhf", "ddp"), ("hc_rlhf", "fsdp2"),
    pytest.param("grpo_lora", "fsdp2", marks=pytest.mark.long), pytest.param("sft", "fsdp2", marks=pytest.mark.long),
]  # fmt: skip


def run(method, strategy, model, folder, *more):
    log = folder / "log.txt"
    with pytest.MonkeyPatch.context() as patch:
        # A ledger of its own: the run of one process has tested the same safety split.
        patch.setenv("LIGHTNING_POSTTRAIN_CACHE", str(folder / "cache"))
        codes = run_on_two(train.main, method, strategy, model, str(folder), *more, log=log)
    assert codes == [0, 0], log.read_text()[-4000:]


def close(one, other):
    assert torch.allclose(one["weights"], other["weights"], atol=1e-6, rtol=0)
    for expected, found in zip(one["metrics"], other["metrics"], strict=True):
        assert found == pytest.approx(expected, abs=1e-5, nan_ok=True)


@pytest.mark.parametrize(("method", "strategy"), CASES)
def test_two_processes_do_what_one_does(method, strategy, reasoner, assistant, tmp_path, monkeypatch):
    model = assistant if method == "hc_rlhf" else reasoner
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")
    train.main(method, "one", model, str(tmp_path))
    run(method, strategy, model, tmp_path)
    one, two = (torch.load(tmp_path / f"{method}_{name}.pt") for name in ("one", strategy))
    close(one, two)
    assert len(one["metrics"]) == 7 and (method == "sft" or one["metrics"][-1]["train/grad_norm"] > 0)
    if method.startswith("grpo"):  # the newest checkpoint lies before a reset of the reference
        run(method, strategy, model, tmp_path, tmp_path / f"{method}_{strategy}/rollout_000002.ckpt")
        resumed = torch.load(tmp_path / f"{method}_{strategy}_resumed.pt")
        assert torch.equal(resumed["weights"], two["weights"])
        assert len(resumed["metrics"]) == 4
        for found, expected in zip(resumed["metrics"], two["metrics"][-4:], strict=True):
            assert found == {
                name: expected[name] for name in found
            }  # before its first validation a resumed run has no val/ metrics
