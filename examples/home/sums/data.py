"""Own prompts. A plain LightningDataModule; nothing of the distribution is subclassed."""

import random

import lightning as L
from torch.utils.data import DataLoader


def till(count, seed):
    """Rows with a prompt and the columns that the rewards read."""
    draw = random.Random(seed)
    pairs = [(draw.randint(1, 99), draw.randint(1, 99)) for _ in range(count)]
    return [{"id": f"{seed}-{i}", "prompt": f"{a}+{b}=?", "answer": str(a + b)} for i, (a, b) in enumerate(pairs)]


class Till(L.LightningDataModule):
    """A batch is a list of rows, as many as the module draws prompts for a rollout."""

    def __init__(self, prompts_per_rollout: int = 8, train_size: int = 64, val_size: int = 32) -> None:
        super().__init__()
        self.prompts_per_rollout = prompts_per_rollout
        self.splits = {"train": till(train_size, seed=1), "val": till(val_size, seed=2)}

    def rows(self, split: str) -> list[dict]:
        """Asked for by methods that measure something before the first rollout (AdaptThink: what the initial policy earns), and by checks."""
        return self.splits.get(split, [])

    def train_dataloader(self) -> DataLoader:
        return DataLoader(
            self.splits["train"], batch_size=self.prompts_per_rollout, shuffle=True, drop_last=True, collate_fn=list
        )

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.splits["val"], batch_size=32, collate_fn=list)

    predict_dataloader = val_dataloader
