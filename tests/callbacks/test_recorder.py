"""A recorded rollout is the rollout: tensors bit for bit, advantages computed anew, other objectives offline."""

import json

import lightning as L
import pyarrow.parquet
import pytest
import torch

from callbacks import RolloutRecorder
from cli import inspect
from lightning_modules import SFT, KLPenalty
from objectives import ClippedSurrogate, LeaveOneOut, ReinforcePlusPlus, SequenceMean
from policies import PolicyParams
from rewards import FunctionReward
from rollouts import BatchPlan, read_rollout
from support.errors import ConfigError
from tests.helpers import build, digits, fit, sums


def seldom(completions):
    return [None if len(text) % 2 else 1.0 for text in completions]


class Keep(L.Callback):
    def __init__(self):
        self.batches, self.losses = [], []

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.batches.append(pl_module.last_rollout)
        self.losses.append(float(trainer.callback_metrics["train/loss"]))


def module(model, **parts):
    rewards = [FunctionReward(digits, weight=2.0), FunctionReward(seldom)]
    return build(model, rewards, **({"batch": BatchPlan(2, 4), "kl": KLPenalty(coefficient=0.1)} | parts))


def record(made, folder, rollouts=2, recorder=None):
    """The batches and losses of these rollouts, and the files that the recorder wrote."""
    keep = Keep()
    data = sums((1, 3), train_size=16, val_size=4)
    fit(made, rollouts, [recorder or RolloutRecorder(), keep], data=data, folder=folder, seed=0)
    return keep, sorted((folder / "local/rollouts").glob("*.parquet"))


def test_a_recorded_rollout_is_the_rollout(reasoner, tmp_path):
    made = module(reasoner)
    keep, paths = record(made, tmp_path)
    assert [path.name for path in paths] == ["rollout_000001.parquet", "rollout_000002.parquet"]
    for path, wanted in zip(paths, keep.batches, strict=True):
        found = read_rollout(path, pad=made.policy.pad_token_id)
        for name in (
            "prompt_ids",
            "prompt_mask",
            "completion_ids",
            "completion_mask",
            "action_mask",
            "behaviour_logprobs",
            "advantages",
            "reference_logprobs",
        ):
            assert torch.equal(getattr(found, name), getattr(wanted, name)), name
        assert (
            found.rows == wanted.rows
            and found.completions == wanted.completions
            and found.finish_reasons == wanted.finish_reasons
        )
        assert all(
            torch.equal(found.rewards[n].nan_to_num(9), wanted.rewards[n].nan_to_num(9)) for n in ("digits", "seldom")
        )
    facts = json.loads(pyarrow.parquet.read_schema(paths[1]).metadata[b"rollout"])
    assert facts == {"group_size": 4, "rollout": 2, "method": "GRPO", "temperature": 1.0, "kl_coefficient": 0.1}
    assert "Coloured by advantage" in inspect.main([str(paths[0])]).read_text()
    decoded = read_rollout(paths[0], decoder=made.policy.decode)
    assert decoded.completions == keep.batches[0].completions


def test_advantages_and_losses_of_another_objective_offline(reasoner, tmp_path):
    """No weights are loaded for advantages: the modules below have none."""
    made = module(reasoner)
    keep, paths = record(made, tmp_path, rollouts=1)
    batch = read_rollout(paths[0])
    logged = batch.advantages
    assert torch.equal(module("assets/tiny_reasoner").advantages(batch), logged) and logged.abs().max() > 0.1
    found = module("assets/tiny_reasoner", advantage=LeaveOneOut()).advantages(batch)
    for row in range(8):
        totals = [
            2 * float(batch.rewards["digits"][i])
            + (0.0 if batch.rewards["seldom"][i].isnan() else float(batch.rewards["seldom"][i]))
            for i in range(4 * (row // 4), 4 * (row // 4) + 4)
        ]
        own = totals[row % 4]
        assert float(found[row]) == pytest.approx(own - (sum(totals) - own) / 3, abs=1e-5)
    # In the first rollout the policy is the behaviour policy and the reference: the ratio is 1, the penalty 0, and the
    # loss is minus the mean advantage.
    behaviour, mask = batch.behaviour_logprobs, batch.action_mask
    for advantages, expected in ((logged, keep.losses[0]), (found, -float(found.mean()))):
        loss, _ = ClippedSurrogate()(behaviour, behaviour, advantages[:, None].expand(mask.shape), mask)
        assert float((loss * mask * SequenceMean()(mask)[:, None]).sum()) == pytest.approx(expected, abs=1e-5)


def test_advantages_by_token_and_every_other_rollout(reasoner, tmp_path):
    keep, paths = record(
        module(reasoner, advantage=ReinforcePlusPlus()), tmp_path, 4, RolloutRecorder(every_n_rollouts=2)
    )
    assert [path.name for path in paths] == ["rollout_000002.parquet", "rollout_000004.parquet"]
    wanted = keep.batches[3].advantages
    assert wanted.dim() == 2 and torch.equal(
        read_rollout(paths[1]).advantages, wanted * keep.batches[3].completion_mask
    )


def test_what_cannot_be_recorded_or_read_is_said(reasoner, tmp_path):
    with pytest.raises(ConfigError, match="every_n_rollouts is 0"):
        RolloutRecorder(0)
    with pytest.raises(ConfigError, match="SFT makes none"):
        RolloutRecorder().on_fit_start(None, SFT(PolicyParams(reasoner)))
    pyarrow.parquet.write_table(pyarrow.table({"a": [1]}), tmp_path / "other.parquet")
    for name in ("other.parquet", "none.parquet"):
        with pytest.raises(ConfigError, match="is not a rollout"):
            read_rollout(tmp_path / name)


@pytest.mark.parametrize(
    "column, values",
    [
        ("completion_ids", [["x"], ["y"], ["z"], ["w"]]),  # texts for token ids
        ("actions", [[True], [True, False], [], []]),  # other lengths than the completions
        ("row", ["{", "{", "{", "{"]),
        ("row", ["[" * 100_000] * 4),
        ("prompt_ids", [None, None, None, None]),
    ],
)
def test_a_recorded_rollout_that_somebody_changed_is_refused_in_a_paragraph(tmp_path, column, values):
    columns = {
        "completion_ids": [[1], [2], [3], [4]], "actions": [[True]] * 4, "row": ["{}"] * 4, "prompt_ids": [[1]] * 4,
        "logprobs": [[0.0]] * 4, "finish": ["eos"] * 4, "completion": ["x"] * 4,
    }  # fmt: skip
    about = {b"rollout": b'{"group_size": 2}'}
    whole, other = tmp_path / "whole.parquet", tmp_path / "changed.parquet"
    pyarrow.parquet.write_table(pyarrow.table(columns).replace_schema_metadata(about), whole)
    assert read_rollout(whole).completion_ids.tolist() == [[1], [2], [3], [4]]
    pyarrow.parquet.write_table(pyarrow.table(columns | {column: values}).replace_schema_metadata(about), other)
    with pytest.raises(ConfigError, match="is not a rollout that callbacks.RolloutRecorder wrote"):
        read_rollout(other)
