"""Scores of a classifier from its confusion matrix."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor


@dataclass
class Confusion:
    """Counts of predictions.

    Fields:
        counts: [true class, predicted class].
        labels: names of the classes.
    """

    counts: Float[Tensor, "classes classes"]
    labels: list[str]

    def scores(self) -> dict[str, float]:
        """Accuracy, and precision, recall and F1 as means over the classes, weighted by their numbers of rows.

        A class that is never predicted has precision 0.
        """
        counts = self.counts.double()
        right, true, predicted = counts.diagonal(), counts.sum(1), counts.sum(0)
        precision, recall = right / predicted.clamp(min=1), right / true.clamp(min=1)
        f1 = 2 * right / (true + predicted).clamp(min=1)
        weights = true / true.sum()
        return {
            "accuracy": float(right.sum() / counts.sum()),
            "precision": float((weights * precision).sum()),
            "recall": float((weights * recall).sum()),
            "f1": float((weights * f1).sum()),
        }

    def shares(self) -> Float[Tensor, "classes classes"]:
        """The fraction of every true class's rows that is predicted as each class."""
        return self.counts.double() / self.counts.double().sum(1, keepdim=True).clamp(min=1)

    def hardest_pair(self) -> tuple[str, str, float]:
        """The two classes that are confused most, and the mean fraction of their rows that is taken for the other."""
        shares = self.shares()
        both = ((shares + shares.T) / 2).fill_diagonal_(-1.0)
        place = int(both.argmax())
        first, second = sorted(divmod(place, len(self.labels)))
        return self.labels[first], self.labels[second], float(both.flatten()[place])
