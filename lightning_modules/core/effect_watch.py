"""Warnings about a method whose mechanism has nothing to work on.

Without them an inactive method looks like one that does not help.
"""

from collections import defaultdict

from lightning.pytorch.utilities import rank_zero_warn


class EffectWatch:
    """Counts consecutive rollouts without something that the method depends on.

    Args:
        patience: consecutive rollouts after which it warns, once per name.
    """

    def __init__(self, patience: int = 20) -> None:
        self.patience, self.absent, self.said = patience, defaultdict[str, int](int), set[str]()

    def see(self, name: str, present: bool, message: str) -> None:
        """Count one rollout.

        Args:
            message: follows "<n> rollouts in a row"; says what is missing and what to do.
        """
        self.absent[name] = 0 if present else self.absent[name] + 1
        if self.absent[name] >= self.patience and name not in self.said:
            self.said.add(name)
            rank_zero_warn(f"{self.absent[name]} rollouts in a row {message}")
