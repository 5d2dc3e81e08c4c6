"""Everything about MLflow: the logger, what a run records, names of runs, and where a run's files go."""

from lightning_posttrain import check_siblings

check_siblings(__name__)

from tracking.logger import PatientMLFlowLogger

__all__ = ["PatientMLFlowLogger"]
