"""The project's own prompts: a plain LightningDataModule that subclasses nothing of the distribution."""

import random

import lightning as L
from torch.utils.data import DataLoader


def till(count, seed):
    """Rows with a prompt and the columns that the rewards read."""
    rng = random.Random(seed)
    pairs = [(rng.randint(1, 99), rng.randint(1, 99)) for _ in range(count)]
    return [{"id": f"{seed}-{i}", "prompt": f"{a}+{b}=?", "answer": str(a + b)} for i, (a, b) in enumerate(pairs)]


class Till(L.LightningDataModule):
    """Batches of rows, each a list with as many rows as the module takes prompts per rollout."""

    def __init__(self, prompts_per_rollout: int = 8, train_size: int = 64, val_size: int = 32) -> None:
        super().__init__()
        self.prompts_per_rollout = prompts_per_rollout
        self.splits = {"train": till(train_size, seed=1), "val": till(val_size, seed=2)}

    def rows(self, split: str) -> list[dict]:
        """Rows of a split.

        Checks call this method, and methods that measure something before the first rollout (AdaptThink: the reward of
        the initial policy).
        """
        return self.splits.get(split, [])

    def train_dataloader(self) -> DataLoader:
        rows, size = self.splits["train"], self.prompts_per_rollout
        return DataLoader(rows, batch_size=size, shuffle=True, drop_last=True, collate_fn=list)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.splits["val"], batch_size=32, collate_fn=list)

    predict_dataloader = val_dataloader
