"""Settings that keep other packages' messages out of the terminal. `main.py` imports this module before any of them."""

import logging
import os
import warnings

# What MLflow cannot send waits in tracking/outbox.py and does not hold up the training.
_ENVIRONMENT = {
    "TOKENIZERS_PARALLELISM": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
}
_WARNINGS = (
    "isinstance.treespec, LeafSpec",
    "does not have many workers",
    "`skip_none` is deprecated",
    "in eval mode at the start of training",  # the frozen reference
    "special characters in metric name",  # MLflow writes val/pass@1 as val/pass1
    "args parameter is intended to run from within Python",
    "smaller than the logging interval",
    "is_gradient_checkpointing",  # peft uses the attribute's former name
)
_LOG_RECORDS = {
    "lightning.pytorch.utilities.rank_zero": "litlogger",
    "lightning.pytorch.trainer.connectors.checkpoint_connector": "was not set",
}
# They report each table that MLflow makes, and each monitor that starts or stops.
_LOGGERS = ("mlflow.store.db.utils", "mlflow.system_metrics.system_metrics_monitor", "alembic")


def _without(text: str) -> logging.Filter:
    class Filter(logging.Filter):
        def filter(self, record: logging.LogRecord) -> bool:
            return text not in record.getMessage()

    return Filter()


for _name, _value in _ENVIRONMENT.items():
    os.environ.setdefault(_name, _value)
for _message in _WARNINGS:
    warnings.filterwarnings("ignore", message=f".*{_message}.*")
for _name, _text in _LOG_RECORDS.items():
    logging.getLogger(_name).addFilter(_without(_text))
for _name in _LOGGERS:
    logging.getLogger(_name).setLevel(logging.WARNING)
