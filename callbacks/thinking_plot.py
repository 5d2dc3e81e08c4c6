"""A picture of when the model thinks."""

import lightning as L
from matplotlib.figure import Figure

from tracking.runs import mlflow_runs


class ThinkingPlot(L.Callback):
    """After every validation, the shares of thinking and of answering at once against difficulty, as figures/thinking_<rollout>.png of the run.

    Does nothing for a model that knows no think block, or for data without `task` or `level`.
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
    """Bars of the two rates by level, and the mean completion length over them."""
    figure = Figure(figsize=(max(4.0, 1.1 * len(levels)), 3.2), layout="constrained")
    rates = figure.subplots()
    places = range(len(levels))
    rates.bar(
        [p - 0.2 for p in places],
        [means[f"thinking_rate/{level}"] for level in levels],
        0.4,
        label="thinks",
        color="#1f618d",
    )
    rates.bar(
        [p + 0.2 for p in places],
        [means[f"no_thinking_rate/{level}"] for level in levels],
        0.4,
        label="answers at once",
        color="#e67e22",
    )
    rates.set_xticks(list(places), levels, rotation=20)
    rates.set_ylim(0, 1)
    rates.set_ylabel("share of completions")
    lengths = rates.twinx()
    lengths.plot(
        list(places), [means[f"length/{level}"] for level in levels], color="#555555", marker="o", label="tokens"
    )
    lengths.set_ylabel("tokens")
    lengths.set_ylim(bottom=0)
    rates.legend(fontsize=8, loc="upper left")
    return figure
