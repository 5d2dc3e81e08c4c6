"""CPU, memory, disk, network and GPU use, as MLflow's system metrics."""

from typing import Any

import lightning as L

from tracking.runs import mlflow_runs


class SystemMetrics(L.Callback):
    """Start MLflow's system-metrics monitor on the run.

    MLflow's own switch has no effect on a run that Lightning's logger opened.

    Args:
        interval: seconds between samples.
    """

    def __init__(self, interval: float = 10.0) -> None:
        self.interval = interval
        self.monitor: Any = None

    def on_fit_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        for _, run in mlflow_runs(trainer)[:1]:
            self.monitor = SystemMetricsMonitor(
                run, sampling_interval=self.interval, samples_before_logging=1, resume_logging=True
            )
            self.monitor.start()

    def _stop(self) -> None:
        if self.monitor is not None:
            self.monitor.finish()
            self.monitor = None

    def on_fit_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        self._stop()

    def on_exception(self, trainer: L.Trainer, pl_module: Any, exception: BaseException) -> None:
        self._stop()
