"""Figure and table of a classifier's confusions."""

import lightning as L
from matplotlib.figure import Figure

from objectives.classification import Confusion
from tracking.runs import mlflow_runs


class ConfusionMatrix(L.Callback):
    """After every validation and test of a classifier, log its confusion matrix to MLflow.

    The figure is figures/confusion_<stage>_<steps>.png, the counts are confusion_<stage>.json. Does nothing for modules
    without classes.
    """

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._log(trainer, pl_module, "val")

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._log(trainer, pl_module, "test")

    def _log(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        confusion = getattr(pl_module, "confusion", None)
        if confusion is None or trainer.sanity_checking:
            return
        table = {"labels": confusion.labels, "counts": confusion.counts.tolist()}
        for client, run in mlflow_runs(trainer):
            figure = confusion_figure(confusion)
            client.log_figure(run, figure, f"figures/confusion_{stage}_{trainer.global_step:06d}.png")
            client.log_dict(run, table, f"confusion_{stage}.json")


def confusion_figure(confusion: Confusion) -> Figure:
    """The fractions of every class's rows by predicted class, with the pair that is confused most in the title."""
    shares, names = confusion.shares(), confusion.labels
    side = max(3.2, 0.75 * len(names))
    figure = Figure(figsize=(side + 0.6, side), layout="constrained")
    axes = figure.subplots()
    axes.imshow(shares.numpy(), vmin=0, vmax=1, cmap="Blues")
    places = list(range(len(names)))
    axes.set_xticks(places, names, rotation=30)
    axes.set_yticks(places, names)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    for row in places:
        for column in places:
            share = float(shares[row, column])
            color = "white" if share > 0.5 else "black"
            axes.text(column, row, f"{share:.2f}", ha="center", va="center", color=color, fontsize=8)
    first, second, share = confusion.hardest_pair()
    axes.set_title(f"hardest pair: {first} and {second} ({share:.2f})", fontsize=9)
    return figure
