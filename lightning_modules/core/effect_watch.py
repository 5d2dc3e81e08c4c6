"""Says once when a method's mechanism has nothing to work on: otherwise an inactive method looks like one that does not help."""

from collections import defaultdict

from lightning.pytorch.utilities import rank_zero_warn


class EffectWatch:
    """Counts rollouts in a row in which something that the method lives on was absent.

    Args:
        patience: rollouts in a row after which it warns, once for each name.
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
