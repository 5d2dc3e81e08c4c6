"""Figure of how often the model thinks, by difficulty."""

import lightning as L
from matplotlib.figure import Figure

from tracking.runs import mlflow_runs


class ThinkingPlot(L.Callback):
    """After every validation, log the fractions of thinking and of answering at once by difficulty.

    The figure is figures/thinking_<rollout>.png of the MLflow run. Does nothing for a model without a think block, or
    for data without `task` or `level`.
    """

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        stats = getattr(pl_module, "thinking_stats", None)
        if stats is None or trainer.sanity_checking:
            return
        levels = sorted(
            name.removeprefix("thinking_rate/") for name in stats.means if name.startswith("thinking_rate/")
        )
        for client, run in mlflow_runs(trainer) if len(levels) > 1 else []:
            done = trainer.fit_loop.epoch_loop.total_batch_idx + 1
            client.log_figure(run, thinking_figure(stats.means, levels), f"figures/thinking_{done:06d}.png")


def thinking_figure(means: dict[str, float], levels: list[str]) -> Figure:
    """Bars of the two rates by level, and a line of the mean completion length in tokens.

    Args:
        means: `thinking_rate/<level>`, `no_thinking_rate/<level>` and `length/<level>` of every level.
        levels: names of the levels, in the order of the bars.
    """
    figure = Figure(figsize=(max(4.0, 1.1 * len(levels)), 3.2), layout="constrained")
    rates = figure.subplots()
    positions = list(range(len(levels)))
    bars = (
        ("thinking_rate", "thinks", "#1f618d", -0.2),
        ("no_thinking_rate", "answers at once", "#e67e22", 0.2),
    )
    for metric, label, color, offset in bars:
        heights = [means[f"{metric}/{level}"] for level in levels]
        rates.bar([position + offset for position in positions], heights, 0.4, label=label, color=color)
    rates.set_xticks(positions, levels, rotation=20)
    rates.set_ylim(0, 1)
    rates.set_ylabel("fraction of completions")
    lengths = rates.twinx()
    lengths.plot(positions, [means[f"length/{level}"] for level in levels], color="#555555", marker="o", label="tokens")
    lengths.set_ylabel("tokens")
    lengths.set_ylim(bottom=0)
    rates.legend(fontsize=8, loc="upper left")
    return figure
