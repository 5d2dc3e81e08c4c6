"""Updates with a gradient that is not finite, and with a pass that does not fit into memory."""

import math

import lightning as L
import pytest
import torch

from callbacks import NonFiniteGradients
from lightning_modules import KLPenalty
from objectives import ClippedSurrogate
from rewards import FunctionReward
from support.errors import ConfigError
from tests.helpers import build, digits, fit, weights


class BreaksAt(ClippedSurrogate):
    """NaN in the loss of the given calls."""

    def __init__(self, calls):
        super().__init__(0.2, 0.2)
        self.calls, self.count = calls, 0

    def __call__(self, logprobs, behaviour, advantages, mask):
        loss, sums = super().__call__(logprobs, behaviour, advantages, mask)
        self.count += 1
        return (loss * (math.nan if self.count in self.calls else 1.0)), sums


def grpo(model, **parts):
    return build(model, [FunctionReward(digits)], **({"kl": KLPenalty(coefficient=0.0)} | parts))


def train(module, steps, folder, callbacks=()):
    fit(module, steps, callbacks, folder=folder, seed=3)


class Weights(L.Callback):
    def __init__(self):
        self.after, self.skipped = [], []

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.after.append(weights(pl_module).clone())
        self.skipped.append(float(trainer.callback_metrics["train/skipped_updates"]))


def test_an_update_that_is_not_a_number_is_left_out_and_kept_for_inspection(reasoner, tmp_path):
    seen = Weights()
    train(
        grpo(reasoner, loss=BreaksAt({2, 4})), 3, tmp_path, [seen, NonFiniteGradients(patience=2)]
    )  # three steps that count
    assert len(seen.after) == 5
    assert seen.skipped == [0, 1, 0, 1, 0]
    assert torch.equal(seen.after[0], seen.after[1]) and torch.equal(seen.after[2], seen.after[3])
    assert not torch.equal(seen.after[1], seen.after[2]) and torch.isfinite(seen.after[4]).all()
    assert sorted(path.name for path in tmp_path.glob("local/non_finite/*")) == [
        "rollout_000002.pt",
        "rollout_000004.pt",
    ]
    kept = torch.load(tmp_path / "local/non_finite/rollout_000002.pt", weights_only=True)
    assert (
        len(kept["completions"]) == 16
        and kept["rewards"]["digits"].shape == (16,)
        and kept["rows"][0]["task"].startswith("addition")
    )


def test_after_some_in_a_row_the_run_ends(reasoner, tmp_path):
    module = grpo(reasoner, loss=BreaksAt(set(range(2, 99))))
    with pytest.raises(ConfigError, match="infinite or NaN in 3 consecutive rollouts.*non_finite"):
        train(module, 9, tmp_path, [NonFiniteGradients(patience=3)])
    assert len(list(tmp_path.glob("local/non_finite/*"))) == 3 and torch.isfinite(weights(module)).all()


def crowded(
    module,
    most,
    message="[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried to allocate 5 "
    "bytes",
):
    """Passes over more than `most` rows fail as PyTorch's do when memory is short."""
    fit_in = module.policy.logprobs

    def logprobs(groups, *args, **kwargs):
        if len(groups.completion_ids) > most:
            raise RuntimeError(message)
        return fit_in(groups, *args, **kwargs)

    module.policy.logprobs = logprobs


def test_a_pass_that_does_not_fit_is_halved_once(reasoner, tmp_path):
    plain, short = grpo(reasoner), grpo(reasoner)
    train(plain, 2, tmp_path)
    short.configure_model()
    crowded(short, 12)
    with pytest.warns(UserWarning, match="did not fit into memory; from here on passes have"):
        train(short, 2, tmp_path)
    assert torch.allclose(weights(plain), weights(short), atol=1e-6)
    again = grpo(reasoner)
    again.configure_model()
    crowded(again, 2)
    with (
        pytest.warns(UserWarning, match="did not fit"),
        pytest.raises(ConfigError, match="set batch.update_token_budget to"),
    ):
        train(again, 2, tmp_path)
    other = grpo(reasoner)
    other.configure_model()
    crowded(other, 2, "something else")
    with pytest.raises(RuntimeError, match="something else"):
        train(other, 2, tmp_path)
