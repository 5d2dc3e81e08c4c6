"""Everything about MLflow: the logger, what a run records, names of runs, and where a run's files go."""

from tracking.logger import PatientMLFlowLogger

__all__ = ["PatientMLFlowLogger"]
