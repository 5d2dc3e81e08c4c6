"""Order and position of prompts, by themselves and through a Lightning checkpoint in the middle of an epoch."""

import lightning as L
import pytest
import torch

from datamodules import PromptLoader, PromptSampler
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
