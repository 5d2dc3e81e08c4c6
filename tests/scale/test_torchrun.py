"""configs/scale/two_cpus.yaml through main.py, by torchrun and by Lightning's launcher.

Both start the same training, and one goes on from the other's shards.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

ROOT = Path(__file__).resolve().parents[2]


def whole(checkpoint, file):
    dcp_to_torch_save(checkpoint, file)
    return torch.load(file, weights_only=True)


def run(launcher, folder, model, *more):
    small = {
        "model.policy.model": model,
        "model.batch.prompts_per_rollout": 4,
        "model.batch.group_size": 4,
        "model.sampling.max_new_tokens": 8,
        "model.rewards+": '{"class_path": "rewards.FunctionReward", "init_args": {"function": "tests.helpers.digits"}}',
        "data.train_size": 16,
        "trainer.max_steps": 3,
        "trainer.limit_val_batches": 0,
        "trainer.logger": "false",
        "trainer.enable_progress_bar": "false",
        "trainer.callbacks": '[{"class_path": "callbacks.RolloutCheckpoint", '
        '"init_args": {"every_n_rollouts": 1, "keep": 2}}]',
        "trainer.default_root_dir": folder,
    }
    command = [
        *launcher,
        str(ROOT / "main.py"),
        "fit",
        f"--config={ROOT}/configs/grpo.yaml",
        f"--config={ROOT}/configs/scale/two_cpus.yaml",
    ]
    command += [f"--{name}={value}" for name, value in small.items()]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([*command, *more], env=environment, cwd=folder, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]
    return folder / "local/checkpoints"


@pytest.mark.long
def test_launchers_agree_and_take_over(reasoner, tmp_path):
    first, second = tmp_path / "torchrun", tmp_path / "lightning"
    first.mkdir(), second.mkdir()
    made = run([sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"], first, reasoner)
    assert sorted(path.name for path in made.iterdir()) == ["rollout_000002.ckpt", "rollout_000003.ckpt"]
    taken_over = run([sys.executable], second, reasoner, f"--ckpt_path={made / 'rollout_000002.ckpt'}")
    start, one, other = (
        whole(folder / f"rollout_00000{n}.ckpt", tmp_path / f"{i}.pt")
        for i, (folder, n) in enumerate([(made, 2), (made, 3), (taken_over, 3)])
    )
    assert one["state_dict"].keys() == other["state_dict"].keys()
    assert all(torch.equal(one["state_dict"][name], weight) for name, weight in other["state_dict"].items())
    assert any(not torch.equal(one["state_dict"][name], weight) for name, weight in start["state_dict"].items())
