"""Order and position of prompts, by themselves and through a Lightning checkpoint in the middle of an epoch."""

from types import SimpleNamespace

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader

from callbacks import RolloutCheckpoint
from datamodules import ArithmeticPrompts, PromptLoader, PromptSampler
from datamodules.samplers.prompt_sampler import RowSampler
from support.errors import ConfigError
from tests.helpers import quiet_trainer

ROWS = [{"id": i} for i in range(11)]


class Recorder(L.LightningModule):
    """Writes down the prompts that it was given."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen = []

    def training_step(self, rows, batch_idx):
        self.seen.append([row["id"] for row in rows])
        self.optimizers().step()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def run(folder, steps, checkpoint=None):
    module = Recorder()
    trainer = quiet_trainer(steps, folder=folder)
    loader = PromptLoader(ROWS, PromptSampler(11, 2, seed=3))
    trainer.fit(module, loader, ckpt_path=checkpoint, weights_only=True if checkpoint else None)
    return trainer, module.seen


@pytest.mark.parametrize("stop", [2, 5, 7])
def test_a_resumed_run_sees_the_prompts_it_would_have_seen(tmp_path, stop):
    _, whole = run(tmp_path, 12)
    trainer, first = run(tmp_path, stop)
    trainer.save_checkpoint(tmp_path / "stop.ckpt")
    torch.manual_seed(999)
    _, rest = run(tmp_path, 12, str(tmp_path / "stop.ckpt"))
    assert first + rest == whole


def test_each_row_at_most_once_an_epoch_and_epochs_differ():
    sampler = PromptSampler(11, 2, seed=1)
    first, second = list(sampler), list(sampler)
    assert len(first) == len(second) == len(sampler) == 5
    assert len({i for batch in first for i in batch}) == 10
    assert first != second
    assert first == list(PromptSampler(11, 2, seed=1)) != list(PromptSampler(11, 2, seed=2))


def test_processes_share_the_single_process_batches():
    shares = [list(PromptSampler(11, 4, 1, rank, 2)) for rank in (0, 1)]
    assert [a + b for a, b in zip(*shares, strict=True)] == list(PromptSampler(11, 4, 1))


@pytest.mark.parametrize(
    ("arguments", "message"), [((0, 2, 1), "empty"), ((3, 4, 1), "3 rows"), ((9, 3, 1, 0, 2), "evenly")]
)
def test_impossible_sizes_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        PromptSampler(*arguments)


def test_another_data_set_is_refused_on_resume():
    with pytest.raises(ConfigError, match="size=11, but this run has size=12"):
        PromptSampler(12, 2, 1).load_state_dict(PromptSampler(11, 2, 1).state_dict())


def test_rows_without_rollouts_name_their_own_setting():
    with pytest.raises(ConfigError, match=r"4 rows per step cannot be drawn from 3 rows; set data\.batch_size"):
        RowSampler(3, 4, seed=0)
    with pytest.raises(ConfigError, match=r"set data\.batch_size to a multiple"):
        RowSampler(9, 3, seed=0, processes=2)
    with pytest.raises(ConfigError, match=r"same data and data\.batch_size"):
        RowSampler(9, 3, seed=0).load_state_dict(RowSampler(8, 3, seed=0).state_dict())


def test_fewer_held_out_rows_than_processes_are_refused_on_all_of_them():
    for rank in (0, 1):
        data = ArithmeticPrompts(train_size=16, val_size=1)
        data.trainer = SimpleNamespace(world_size=2, global_rank=rank, state=SimpleNamespace(fn="fit"))
        with pytest.raises(
            ConfigError, match=r"1 row\(s\) of the split 'val' for 2 processes.*trainer.limit_val_batches"
        ):
            data.val_dataloader()


class Epochs(Recorder):
    """Writes down the epoch of every rollout, and the validations."""

    def training_step(self, rows, batch_idx):
        self.seen.append((self.trainer.current_epoch, [row["id"] for row in rows]))
        self.optimizers().step()

    def validation_step(self, rows, batch_idx):
        self.seen.append("validation")


def trained(folder, checkpoint=None, every=0, **options):
    module, saving = Epochs(), RolloutCheckpoint(every_n_rollouts=every, keep=None, folder=str(folder / f"{every}"))
    trainer = quiet_trainer(-1, [saving], folder=folder, **(options | {"max_steps": options.get("max_steps", -1)}))
    loader = PromptLoader(ROWS, PromptSampler(11, 4, seed=3))
    trainer.fit(module, loader, DataLoader(ROWS[:1]), ckpt_path=checkpoint, weights_only=True if checkpoint else None)
    return module.seen


@pytest.mark.parametrize(("limit", "rollouts"), [(1, 1), (2, 2), (1.0, 2)])
@pytest.mark.parametrize("steps", [-1, 100])
def test_no_epoch_is_empty_or_short(tmp_path, limit, rollouts, steps):
    seen = trained(tmp_path, max_epochs=5, max_steps=steps, limit_train_batches=limit)
    assert [epoch for epoch, _ in seen] == [epoch for epoch in range(5) for _ in range(rollouts)]
    sampler = PromptSampler(11, 4, seed=3)
    assert [ids for _, ids in seen] == [ids for _ in range(5) for ids in sampler][: len(seen)]


VALIDATIONS = {
    "none": {},
    "every rollout": {"validate_every": 1},
    "every third rollout": {"validate_every": 3},
    "every epoch": {"limit_val_batches": 1, "check_val_every_n_epoch": 1},
}


@pytest.mark.parametrize("validation", VALIDATIONS)
@pytest.mark.parametrize("limits", [{"max_epochs": 3}, {"max_epochs": 3, "max_steps": 100}, {"max_steps": 6}])
def test_a_run_that_ended_goes_on_within_its_epoch(tmp_path, validation, limits):
    """From its last rollout, and from a checkpoint after any rollout: the same rollouts, epochs and validations."""
    options = limits | VALIDATIONS[validation]
    whole = trained(tmp_path, every=1, **options)
    assert [entry[0] for entry in whole if entry != "validation"] == [0, 0, 1, 1, 2, 2]
    for done in (2, 3):  # the end of an epoch, and the middle of one
        checkpoint = tmp_path / "1" / f"rollout_{done:06d}.ckpt"
        rest = trained(tmp_path / f"killed {done}", checkpoint, **options)
        assert rest == whole[len(whole) - len(rest) :] and sum(entry != "validation" for entry in rest) == 6 - done
        ended = trained(tmp_path / f"ended {done}", **(options | {"max_steps": done}))
        checkpoint = tmp_path / f"ended {done}" / "0" / f"rollout_{done:06d}.ckpt"
        assert ended + trained(tmp_path / f"again {done}", checkpoint, **options) == whole
