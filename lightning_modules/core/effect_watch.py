"""Warnings about a method whose mechanism is inactive.

Without them an inactive method looks like one that does not help.
"""

from collections import defaultdict

from lightning.pytorch.utilities import rank_zero_warn


class EffectWatch:
    """Counts consecutive rollouts without an event that the method depends on.

    Args:
        patience: number of consecutive rollouts after which it warns, once per name.
    """

    def __init__(self, patience: int = 20) -> None:
        self.patience, self.absent, self.said = patience, defaultdict[str, int](int), set[str]()

    def see(self, name: str, present: bool, message: str) -> None:
        """Count one rollout.

        Args:
            name: name of the event.
            present: whether the event occurred.
            message: rest of the warning after "In <n> consecutive rollouts": the missing event and what to do.
        """
        self.absent[name] = 0 if present else self.absent[name] + 1
        if self.absent[name] >= self.patience and name not in self.said:
            self.said.add(name)
            rank_zero_warn(f"In {self.absent[name]} consecutive rollouts {message}")
