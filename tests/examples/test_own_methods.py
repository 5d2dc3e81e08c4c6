"""examples/methods: two methods beside the distribution, used as their author would."""

import math
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.architectures import plain_logprobs
from benchmarks.compare.methods import arguments, chosen
from callbacks import RolloutCheckpoint
from examples.methods.gmpo import GMPO
from examples.methods.replay import ReplayGRPO
from main import main as command_line
from rewards import FunctionReward
from rollouts import BatchPlan
from support.errors import ConfigError
from tests.helpers import build, digits, fit, weights

ROOT = Path(__file__).resolve().parents[2]


def gmpo(ratios, advantage):
    """(the loss, d mean loss / d log-probs) of one completion with these token ratios."""
    logprobs = torch.tensor([ratios], dtype=torch.double).log().requires_grad_()
    mask = torch.ones(1, len(ratios), dtype=torch.bool)
    loss, _ = GMPO()(logprobs, torch.zeros_like(logprobs), torch.full_like(logprobs, advantage), mask)
    loss.mean().backward()
    return float(loss[0, 0]), logprobs.grad[0].tolist()


def test_gmpo_by_hand():
    value, gradient = gmpo([1.21, 1.0], 1.0)  # sqrt(1.21)
    assert value == pytest.approx(-1.1) and gradient == pytest.approx([-0.55, -0.55])
    value, gradient = gmpo([2.0, 1.0], 1.0)  # 2 > e^0.4: sqrt(e^0.4), and no gradient through the clipped token
    assert value == pytest.approx(-math.exp(0.2)) and gradient == pytest.approx([0.0, -math.exp(0.2) / 2])
    value, gradient = gmpo([0.5, 2.0], -1.0)  # for A < 0 small ratios are clipped, at e^-0.4, and large ones are not
    assert value == pytest.approx(math.sqrt(2 * math.exp(-0.4)))
    assert gradient == pytest.approx([0.0, math.sqrt(2 * math.exp(-0.4)) / 2])
    with pytest.raises(ConfigError, match="clip is 0"):
        GMPO(0)


class Watched(ReplayGRPO):
    """Compares the behaviour log-probs of every pass with plain forwards of the policies that sampled."""

    def rollout(self, rows):
        batch = super().rollout(rows)
        for row in range(len(batch.lengths)):
            prompt = batch.prompt_ids[row // batch.group_size][batch.prompt_mask[row // batch.group_size]].tolist()
            completion = batch.completion_ids[row, : int(batch.lengths[row])].tolist()
            key = (self.rollouts_done, tuple(prompt), tuple(completion))
            self.known[key] = plain_logprobs(self.policy.model, prompt, completion)
        self.policy.train()
        return batch

    def behaviour(self, batch, rows, sampled):
        values = super().behaviour(batch, rows, sampled)
        for row, line in zip(rows.tolist(), values, strict=True):
            prompt = batch.prompt_ids[row // batch.group_size][batch.prompt_mask[row // batch.group_size]].tolist()
            completion = tuple(batch.completion_ids[row, : int(batch.lengths[row])].tolist())
            candidates = [
                (line[: len(completion)] - known).abs().max()
                for (_, of_prompt, of_completion), known in self.known.items()
                if (list(of_prompt), of_completion) == (prompt, completion)
            ]
            self.gaps.append(float(min(candidates)))
        return values


@pytest.mark.parametrize("updates", [1, 3])
def test_replayed_tokens_have_the_ratio_to_the_policy_that_sampled_them(reasoner, updates):
    """With three updates the seven groups do not divide."""
    plan = BatchPlan(prompts_per_rollout=3, group_size=4, updates_per_rollout=updates)
    module = build(reasoner, [FunctionReward(digits)], Watched, batch=plan, replayed=4, capacity=8)
    module.known, module.gaps = {}, []
    trainer = fit(module, 3 * updates, seed=0)
    assert max(module.gaps) < 1e-4, "the behaviour policy's, by plain forwards"
    metrics = trainer.callback_metrics
    assert float(metrics["train/replayed_rows"]) == 16 and len(module.buffer) == 8
    assert float(metrics["train/behaviour_gap"]) < 1e-5, "an earlier policy is no fault of the engine"
    assert abs(float(metrics["train/ratio"]) - 1) > 1e-6, "the policy has moved from the earlier ones"


def test_a_resumed_run_has_the_same_buffer(reasoner, tmp_path):
    def run(steps, folder, **options):
        module = build(reasoner, [FunctionReward(digits)], ReplayGRPO, replayed=2, capacity=6)
        fit(module, steps, [RolloutCheckpoint(1, keep=9)], folder=tmp_path / folder, seed=0, **options)
        return module

    whole = run(4, "whole")
    run(2, "first")
    (checkpoint,) = (tmp_path / "first").rglob("rollout_000002.ckpt")
    resumed = run(4, "second", ckpt_path=checkpoint)
    assert torch.equal(weights(whole), weights(resumed)) and len(resumed.buffer) == 6


def test_they_enter_the_comparison_by_their_configurations(tmp_path, monkeypatch, capsys):
    """From their own folder."""
    shutil.copytree(ROOT / "examples/methods", tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    methods = chosen(["grpo", "gmpo.yaml", "replay.yaml"])
    assert [method.title for method in methods.values()] == ["GRPO", "GMPO", "Replay"]
    for name, kind in {"gmpo": "GRPO", "replay": "ReplayGRPO"}.items():
        module = command_line(["plan", *arguments(methods[name], 0, 5000)]).model
        assert type(module).__name__ == kind and module.sampling.max_new_tokens == 72
        assert type(module.policy_loss).__name__ == {"gmpo": "GMPO", "replay": "ClippedSurrogate"}[name]


def test_a_constructor_without_types_is_named():
    """The command line makes objects for annotated parameters alone."""
    from jsonargparse import Namespace

    from lightning_modules import GRPO
    from policies import PolicyParams

    class Untyped(GRPO):
        pass

    with pytest.raises(ConfigError, match="constructor of Untyped does not state its type; write `policy: Policy"):
        Untyped(Namespace(model="x"), [], batch=BatchPlan(2, 2))
    with pytest.raises(ConfigError, match=r"write `rewards: list\[Reward\]`"):
        Untyped(PolicyParams("x"), [Namespace(class_path="rewards.ExactAnswer")], batch=BatchPlan(2, 2))


@pytest.mark.long
def test_they_are_compared(tmp_path):
    shutil.copytree(ROOT / "examples/methods", tmp_path, dirs_exist_ok=True)
    command = ["-m", "benchmarks.compare", "--methods=[gmpo.yaml, replay.yaml]", "--seeds=1", "--tokens=3000"]
    done = subprocess.run([sys.executable, *command], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    report = (tmp_path / "runs/compare/report.html").read_text()
    assert (
        "<td>GMPO <i>2507.20673</i></td>" in report
        and "<td>Replay</td>" in report
        and "HC-RLHF: another task" not in report
    )
